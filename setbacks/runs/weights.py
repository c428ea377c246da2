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
from setbacks.files import write_atomic
from setbacks.models.fingerprint import fingerprints
from setbacks.runs.redo import StageName
from setbacks.runs.session import Session

NAME = "weights.json"
START = "train.start"  # the adapter that a training continues


def check_weights(
    run: Session, stage: StageName | None, outputs: Sequence[Path], used: Mapping[str, Path]
) -> None:
    """Check, before work on outputs, that the weights are those that wrote what is there.

    Weights are noted before the first record. Folders of earlier versions have no note: it is made
    now.

    Args:
        run: the session.
        stage: the stage that redoes the outputs; None where no command does.
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
    for what, now in fingerprints(used).items():
        if entry.setdefault(what, now) != now:
            redo = f"redo with --from {stage} (what is there moves to superseded/), or "
            raise InputError(
                f"{used[what]}: has changed since {there[0]} was written with it; "
                f"{redo if stage else ''}choose another folder with --out"
            )
    if entry != noted.pop(name, {}):
        noted |= {name: entry} if entry else {}
        run.write_text(NAME, _as_text(noted))


def have_changed(folder: Path, name: str, used: Mapping[str, Path]) -> bool:
    """Whether weights have changed since an output of a run was written with them.

    Args:
        folder: the run folder.
        name: the first one of the stage's outputs, as for `check_weights`.
        used: as for `check_weights`.

    Raises:
        InputError: the note is damaged.
    """
    return _differ(_noted(folder / NAME).get(name, {}), fingerprints(used))


def lend_weights(source: Path, target: Path, name: str) -> bool:
    """Copy the note of an output that a run lends to another, before the output itself.

    Args:
        source: the folder of the run that lends.
        target: the folder of the other run.
        name: the first one of the stage's outputs, as for `check_weights`.

    Returns:
        Whether it can be lent: the other run has nothing of this stage by other weights.

    Raises:
        InputError: a note is damaged.
    """
    given, noted = _noted(source / NAME), _noted(target / NAME)
    # What a training starts from is each run's own, and has written none of the texts.
    lent = {what: value for what, value in given.get(name, {}).items() if what != START}
    own = noted.get(name, {})
    if _differ(own, lent):
        return False
    if lent:
        write_atomic(target / NAME, _as_text(noted | {name: own | lent}).encode())
    return True


def _differ(noted: Mapping[str, str], others: Mapping[str, str]) -> bool:
    return any(noted.get(what, value) != value for what, value in others.items())


def _as_text(noted: Mapping[str, Mapping[str, str]]) -> str:
    return json.dumps(noted, indent=1, sort_keys=True) + "\n"


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
