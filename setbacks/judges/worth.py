"""What a judge is worth against people: where calibrations rest, and how reports find them.

`setbacks calibrate` leaves its figures in the user's data folder, under the very judge that was
measured: another model, another rubric or other heads make another judge, of which they say
nothing.

Environment: SETBACKS_DATA (the data folder).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setbacks.errors import SetbacksError
from setbacks.files import NoHome, user_folder
from setbacks.judges import judge_class
from setbacks.records import digest

if TYPE_CHECKING:
    from setbacks.recipe import JudgeSpec, Recipe

RESULT = "calibration.json"
# Of an engine, what changes how fast its answers come, and not which.
SPEED = {"device", "dtype", "batch_size", "cuda_graphs"}


def worth(spec: JudgeSpec, recipe: Recipe) -> list[dict[str, Any]]:
    """Return what a judge is worth against human labels, a row a source; nothing if unmeasured.

    What the user measured comes first and is marked `own`; then what was measured when heads were
    fitted, or what ships with the judge.

    Raises:
        InputError: there is no such judge.
        SetbacksError: a stored calibration is broken.
    """
    try:
        files = list(folder(spec, recipe).glob(f"*/{RESULT}"))
    except NoHome:  # then this user has calibrated nothing
        files = []
    files.sort(key=lambda file: file.stat().st_mtime)
    newest = {result["labels"]: result for result in map(read, files)}  # the later one wins
    own = [row | {"own": True} for result in newest.values() for row in result["sources"]]
    return own + judge_class(spec).agreement(spec)


def folder(spec: JudgeSpec, recipe: Recipe) -> Path:
    """Return where the calibrations of this very judge rest; it may not be there yet.

    Args:
        spec: the judge.
        recipe: gives it what the spec leaves open: the model, the language, a vote's judges.
    """
    kind = judge_class(spec)
    files = kind.files(spec)
    identity: dict[str, Any] = spec.model_dump(
        mode="json", exclude={"name", "kinds", "engine", *files}, exclude_defaults=True
    )
    if kind.needs_engine:
        engine = spec.engine or recipe.model
        identity["engine"] = engine.model_dump(mode="json", exclude=SPEED, exclude_defaults=True)
    identity |= {key: getattr(recipe, key) for key in kind.reads}
    if spec.counts:
        counted = {judge.called: judge for judge in recipe.judges}
        identity["of"] = [folder(counted[name], recipe).name for name in spec.counts]
    for option, file in files.items():
        identity[option] = digest(file.read_bytes()) if file.exists() else None
    key = digest(json.dumps(identity, sort_keys=True))
    return data() / "calibrations" / f"{spec.judge}-{key}"


def data() -> Path:
    """Return the user's data folder, which may not be there yet.

    Raises:
        NoHome: the user has no home folder, and SETBACKS_DATA is not set.
    """
    return user_folder("SETBACKS_DATA", "XDG_DATA_HOME", ".local/share")


def read(file: Path) -> dict[str, Any]:
    """Return the `labels` (their name, if any) and the `sources` (rows) of a calibration.

    Raises:
        SetbacksError: the file is broken.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        return {"labels": data.get("labels"), "sources": list(data["sources"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SetbacksError(
            f"{file}: not a calibration ({type(error).__name__}: {error}); remove it, and run "
            "`setbacks calibrate` again"
        ) from None
