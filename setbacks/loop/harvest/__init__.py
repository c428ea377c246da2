"""`setbacks harvest`: the failures in the chat logs of a deployed model, as training data.

Two kinds of answers are setbacks: harmful ones, and refusals of safe requests. The logs are read
twice. First every answer is redacted and judged, and the verdicts, without any text, are journaled
in `scanned.jsonl`, so that a killed harvest resumes. Then the answers that may be setbacks are
selected, and what repeats another, an earlier round's training data or a test suite is dropped.

The result is an ordinary run folder of an evaluation, whose one arm `logs` has these candidates as
its answers. So people can label them on the review page, the least certain ones first, and
`setbacks.jsonl` is written again with their labels in place of the judge's verdicts.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from setbacks.errors import InputError
from setbacks.judges import open_judge
from setbacks.loop.harvest.judging import adopt, scan
from setbacks.loop.harvest.result import write
from setbacks.loop.harvest.retention import about, write_about
from setbacks.loop.harvest.selection import Taken, select
from setbacks.loop.harvest.settings import ARM, CANDIDATES, Settings
from setbacks.loop.harvest.survey import Survey
from setbacks.loop.logs import Logs
from setbacks.recipe import Recipe
from setbacks.runs.folder import RunFolder
from setbacks.runs.progress import Show
from setbacks.runs.redo import described
from setbacks.runs.results import as_json_lines
from setbacks.runs.session import Session
from setbacks.stages.checks import check_judge_and_model
from setbacks.stages.respond import respond


def recipe_of(judged: Recipe, out: Path) -> Recipe:
    """Return the recipe of a harvest's folder: an evaluation of the candidates.

    Args:
        judged: a recipe with the judge.
        out: the folder.

    Raises:
        InputError: the judge counts others' verdicts.
    """
    if len(judged.judges) != 1:
        raise InputError("harvest takes one judge that decides by itself, not a vote")
    fields = {name: name for name in ("text", "response", "language", "source")}
    candidates = {"source": str(out.absolute() / CANDIDATES), "fields": fields}
    data = judged.model_dump(mode="json") | {
        "name": "harvest",
        "language": "auto",
        "evaluate": [{"name": ARM, "answers": [candidates]}],
        "respond": {
            "guidance": False,
            "suites": [{"name": ARM, "kind": "harmful", "sources": [candidates]}],
        },
    }
    return Recipe.parse(data, "the command line")


def harvest(
    recipe: Recipe, out: Path, logs: Logs, settings: Settings, show: Show | None = None
) -> dict[str, Any]:
    """Harvest logs into a folder, or resume; return what `harvest.json` holds.

    Args:
        recipe: as `recipe_of` returns it.
        out: the folder.
        logs: the chat logs.
        settings: what else it is told.
        show: takes the progress: what, done, total.

    Raises:
        InputError: a log, a recipe, a run or the judge is at fault, or the folder is of another
            harvest.
        SetbacksError: the judge failed; progress is saved.
    """
    survey = Survey.of(logs)  # reads everything once before any work
    taken = Taken(settings)
    check_judge_and_model(recipe.judges[0])  # may fetch a model
    with RunFolder(out, recipe) as folder, Session(folder, show) as run:
        logs.report()
        about = _begin(folder, survey, settings)
        opened = open_judge(recipe.judges[0], run)
        scanned = scan(run, opened, survey, settings)
        counts = {"answers": len(survey.is_first), "repeats": survey.is_first.count(0)}
        rows, verdicts = select(survey, settings, scanned, taken, counts)
        _write_once(folder, CANDIDATES, as_json_lines(rows))
        write_about(folder, about | {"counts": counts})
        if rows:
            adopt(run, opened, respond(run, None)[ARM], verdicts)
        return write(folder)


def _begin(folder: RunFolder, survey: Survey, settings: Settings) -> dict[str, Any]:
    """Write how a harvest was asked for; return what `harvest.json` holds.

    Raises:
        InputError: the folder holds a harvest that was asked for in another way.
    """
    redactor = settings.redactor
    asked = {
        "logs": [Path(source).name for source in survey.logs.sources],
        "fields": survey.logs.fields,
        "judge": folder.recipe.judges[0].called,
        "safe": settings.safe,
        "unsure": settings.unsure,
        "redacted": redactor and ("names" if redactor.pipeline else "patterns"),
        "pipeline": redactor and redactor.pipeline,
        "digest": survey.digest,
    }
    old = about(folder.path)
    if old is None:
        expires = datetime.now(UTC).date() + timedelta(settings.keep_days)
        old = asked | {"expires": expires.isoformat()}
        write_about(folder, old)
    for name, value in asked.items():
        before = old.get(name, value)  # an earlier version wrote fewer of them
        if before != value:
            what = f"holds another harvest ({described({name: before}, {name: value})})"
            if name == "digest":
                what = "the logs have changed since this harvest began"
            raise InputError(f"{folder.path}: {what}; choose another folder with --out")
    return old


def _write_once(folder: RunFolder, name: str, text: str) -> None:
    path = folder.path / name
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise InputError(
            f"{path}: was selected with other --seen or --against; choose another folder with --out"
        )
    folder.write_text(name, text)
