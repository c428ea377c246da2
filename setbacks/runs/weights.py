"""The weights on this machine, such as adapters, that each output of a run was written with.

No record depends on weights, and a path can get others, such as an adapter that is trained again.
So `weights.json` holds their fingerprints, and a stage stops before it reports old answers as those
of the new weights, or mixes both. A model of a hub has a revision instead, an embedded one a
manifest, and a run's own adapter is redone with its answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from setbacks.errors import InputError
from setbacks.models.fingerprint import fingerprint
from setbacks.runs.redo import StageName
from setbacks.runs.session import Session

NAME = "weights.json"


def check_weights(
    run: Session, stage: StageName, outputs: Sequence[Path], used: Mapping[str, Path]
) -> None:
    """Check, before work on outputs, that the weights are those that wrote what is there.

    Weights are noted before the first record. Folders of earlier versions, and files that another
    run lent, have no note: it is made now.

    Args:
        run: the session.
        stage: the stage that redoes the outputs.
        outputs: files and folders of the run; the first one names their entry.
        used: files and folders with weights, by what they hold. What is missing is left to those
            who load it: a finished run needs it no more.

    Raises:
        InputError: one has changed since then.
    """
    name, noted = outputs[0].relative_to(run.path).as_posix(), _noted(run.path / NAME)
    there = [output for output in outputs if _has_content(output)]
    # A stage that is redone begins with no output, but its old entry is still there.
    before = noted.get(name, {}) if there else {}
    entry = dict(before)
    for what, path in used.items():
        if (now := fingerprint(path)) is None:
            continue
        if entry.setdefault(what, now) != now:
            raise InputError(
                f"{path}: has changed since {there[0]} was written with it; redo with "
                f"--from {stage} (what is there moves to superseded/), or choose another folder "
                "with --out"
            )
    if entry != noted.pop(name, {}):
        noted |= {name: entry} if entry else {}
        run.write_text(NAME, json.dumps(noted, indent=1, sort_keys=True) + "\n")


def _noted(path: Path) -> dict[str, dict[str, str]]:
    if not path.exists():
        return {}
    try:
        return TypeAdapter(dict[str, dict[str, str]]).validate_json(path.read_bytes())
    except ValidationError:
        raise InputError(
            f"{path}: damaged; restore it from a copy, or delete it if no model, adapter or heads "
            "of this run have changed, and it is written again"
        ) from None


def _has_content(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists() and path.stat().st_size > 0
