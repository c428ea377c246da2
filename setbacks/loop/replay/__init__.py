"""Replay: what would a model have answered in the conversations of a log?

The last assistant turn of each logged conversation is replaced by each model's answer, and judged.
A log is cut into shards of some thousand conversations. Each shard is an ordinary evaluation in a
run folder of its own, so memory does not grow with the log, a killed replay resumes, and any engine
works, such as `ray`. What remains of a shard for the result is one small file of outcomes.

A prompt that several conversations of a shard share is answered once and counts for each of them.
"""

from __future__ import annotations

import json
from itertools import chain, islice
from pathlib import Path

from setbacks.errors import InputError
from setbacks.files import own_folder, write_atomic
from setbacks.loop.logs import Logs
from setbacks.loop.replay.rates import Outcomes, Replayed
from setbacks.loop.replay.shard import Shard, logs_changed, prompts_of
from setbacks.pipeline import check
from setbacks.recipe import Recipe
from setbacks.runs.progress import Show
from setbacks.runs.redo import described

SIZE = 10_000  # conversations of a shard


def replay(
    logs: Logs,
    recipe: Recipe,
    folder: Path,
    size: int = SIZE,
    on_progress: Show | None = None,
) -> Replayed:
    """Replay logs in a folder, or resume that.

    Args:
        logs: the logged conversations.
        recipe: an evaluation; its suites are replaced by the logs, and its last judge counts.
        folder: of the replay.
        size: number of conversations in a shard.
        on_progress: called with (what, done, total).

    Raises:
        InputError: a log, a model or the folder is at fault, or the logs have changed.
        SetbacksError: something failed on the way; progress is saved.
    """
    conversations = iter(logs)
    parts = iter(lambda: list(islice(conversations, size)), [])
    first = next(parts)
    if not (folder / "settings.json").exists():
        check(recipe)  # before there is a folder, which takes no other settings
    _settle(folder, logs, recipe, size)
    outcomes = Outcomes([arm.name for arm in recipe.evaluate], by_cluster=logs.cluster is not None)
    shards, number = folder / "shards", 0
    for number, part in enumerate(chain([first], parts)):
        shard = Shard(shards / f"{number:05}", recipe)
        outcomes.add(shard.outcomes(prompts_of(part, number), on_progress))
    logs.report()
    if (shards / f"{number + 1:05}.jsonl").exists():
        raise logs_changed(folder)
    return outcomes.result(recipe)


def _settle(folder: Path, logs: Logs, recipe: Recipe, size: int) -> None:
    """Make the folder, private to its owner; a replay with other settings is refused."""
    settings = {
        "logs": [str(Path(source).absolute()) for source in logs.sources],
        "fields": logs.fields,
        "cluster": logs.cluster,
        "conversations_per_shard": size,
        "recipe": recipe.model_dump(mode="json"),
    }
    path = folder / "settings.json"
    if not own_folder(folder, path.name, "a replay"):
        write_atomic(path, json.dumps(settings, indent=1).encode())
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        (folder / "shards").mkdir(mode=0o700, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: cannot hold a replay ({error})") from None
    if changes := described({key: held.get(key) for key in settings}, settings):
        raise InputError(
            f"{folder}: holds a replay with other settings ({changes}); choose another "
            "folder with --out"
        )
