"""What a judge is worth against people: where calibrations rest, and how reports find them.

`setbacks calibrate` leaves its figures in the user's data folder, under the very judge that was
measured: another model, another rubric or other heads make another judge, of which they say
nothing.

Environment: SETBACKS_DATA (the data folder).
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setbacks.errors import SetbacksError
from setbacks.files import NoHome, user_folder
from setbacks.judges import agreement
from setbacks.plugins import plugin
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
    newest = {found["labels"]: found for found in map(_read, files)}  # the later one wins
    own = [row | {"own": True} for found in newest.values() for row in found["sources"]]
    if spec.heads is None:
        return own + agreement(spec.judge)
    fitted = Path(spec.heads).with_suffix(".json")
    return own + (_read(fitted)["sources"] if fitted.exists() else [])


def folder(spec: JudgeSpec, recipe: Recipe) -> Path:
    """Return where the calibrations of this very judge rest; it may not be there yet.

    Args:
        spec: the judge.
        recipe: gives it what the spec leaves open: the model, the language, a vote's judges.
    """
    asked = inspect.signature(plugin("judges", spec.judge)).parameters
    told: dict[str, Any] = spec.model_dump(
        mode="json", exclude={"name", "kinds", "engine", "heads"}, exclude_defaults=True
    )
    if "engine" in asked:
        engine = spec.engine or recipe.model
        told["engine"] = engine.model_dump(mode="json", exclude=SPEED, exclude_defaults=True)
    if "language" in asked:
        told["language"] = recipe.language
    if "of" in asked:
        counted = {judge.called: judge for judge in recipe.judges}
        told["of"] = [folder(counted[name], recipe).name for name in spec.of]
    if "heads" in asked:
        heads = Path(spec.heads or asked["heads"].default)
        told["heads"] = digest(heads.read_bytes()) if heads.exists() else None
    return data() / "calibrations" / f"{spec.judge}-{digest(json.dumps(told, sort_keys=True))}"


def data() -> Path:
    """Return the user's data folder, which may not be there yet.

    Raises:
        NoHome: the user has no home folder, and SETBACKS_DATA is not set.
    """
    return user_folder("SETBACKS_DATA", "XDG_DATA_HOME", ".local/share")


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {"labels": found["labels"], "sources": list(found["sources"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SetbacksError(
            f"{file}: no calibration ({type(error).__name__}: {error}); remove it, and calibrate "
            "anew with `setbacks calibrate`"
        ) from None
