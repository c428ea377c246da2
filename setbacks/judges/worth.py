"""How reliable a judge is: where calibrations are stored, and how reports find them.

`setbacks calibrate` stores its figures in the user's data folder, for exactly the judge that was
measured: with another model, language, option or file it is another judge, and so it is with
other weights at the same path.

Environment: SETBACKS_DATA (the data folder).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setbacks.errors import SetbacksError
from setbacks.files import NoHome, user_folder
from setbacks.judges import judge_class, weights_of_judge
from setbacks.models.fingerprint import fingerprints
from setbacks.notices import notice
from setbacks.records import digest

if TYPE_CHECKING:
    from setbacks.recipe import JudgeSpec, Recipe
    from setbacks.records import Verdict

RESULT = "calibration.json"
# Keys of an engine that change its speed, not its answers.
SPEED = {"device", "dtype", "batch_size", "cuda_graphs"}


def worth(spec: JudgeSpec, recipe: Recipe, version: int | None = None) -> list[dict[str, Any]]:
    """Return a judge's agreement with human labels, a row per source; empty if unmeasured.

    The user's calibrations come first and are marked `own`; then what comes with the judge or its
    files.

    Args:
        spec: the judge.
        recipe: as `folder`.
        version: of the judge that gave the verdicts; None for today's.

    Raises:
        InputError: the judge is unknown.
        SetbacksError: a stored calibration is broken.
    """
    try:
        files = list(folder(spec, recipe, version).glob(f"*/{RESULT}"))
    except NoHome:  # no data folder, so no calibrations
        files = []
    files.sort(key=lambda file: file.stat().st_mtime)
    newest, stale = {}, set()  # by the labels' name; the later one wins
    now = weights(spec, recipe) if files else []
    for result in map(read, files):
        if result["weights"] is None or {*now} <= {*result["weights"]}:
            newest[result["labels"]] = result
        else:
            stale.add(result["labels"])
    for labels in sorted(stale - newest.keys(), key=str):
        notice(
            f"{spec.called}: its weights have changed since it was calibrated on {labels}, and "
            "these figures are not used; run `setbacks calibrate` again"
        )
    own = [row | {"own": True} for result in newest.values() for row in result["sources"]]
    kind = judge_class(spec)
    if version in (None, kind.version):
        return own + kind.agreement(spec)
    return own + kind.earlier_agreement(spec, version)


def weights(spec: JudgeSpec, recipe: Recipe) -> list[str]:
    """Return the fingerprints of the weights here that a judge, and those that it counts, have now.

    Args:
        spec: the judge.
        recipe: as `folder`.

    Raises:
        InputError: as `worth`.
    """
    counted = [judge for judge in recipe.judges if judge.called in spec.counts]
    read = {value for one in counted for value in weights(one, recipe)}
    return sorted(read | {*fingerprints(weights_of_judge(spec, recipe)).values()})


def worth_of_verdicts(
    spec: JudgeSpec, recipe: Recipe, verdicts: Iterable[Verdict]
) -> list[dict[str, Any]]:
    """Return the agreement of the version of a judge that gave these verdicts.

    Args:
        spec: the judge.
        recipe: as `folder`.
        verdicts: on the answers of a run.

    Returns:
        As `worth`; empty if there are no verdicts, or if two versions gave them.

    Raises:
        InputError: as `worth`.
        SetbacksError: as `worth`.
    """
    versions = {verdict.version for verdict in verdicts}
    return worth(spec, recipe, *versions) if len(versions) == 1 else []


def folder(spec: JudgeSpec, recipe: Recipe, version: int | None = None) -> Path:
    """Return the folder for the calibrations of exactly this judge; it may not exist yet.

    Args:
        spec: the judge.
        recipe: the recipe, with all that the spec leaves open: the model, the language, the judges
            to count.
        version: of the judge; None for today's.
    """
    kind = judge_class(spec)
    files = kind.files(spec)
    identity: dict[str, Any] = spec.model_dump(
        mode="json", exclude={"name", "kinds", "thoughts", "engine", *files}, exclude_defaults=True
    )
    if kind.needs_engine:
        engine = spec.engine or recipe.model
        identity["engine"] = engine.model_dump(mode="json", exclude=SPEED, exclude_defaults=True)
    identity |= _read_by(kind.reads, recipe)
    if spec.counts:
        counted = {judge.called: judge for judge in recipe.judges}
        identity["of"] = [folder(counted[name], recipe).name for name in spec.counts]
    for option, file in files.items():
        identity[option] = digest(file.read_bytes()) if file.exists() else None
    if (version := version or kind.version) > 1:
        identity["version"] = version
    key = digest(json.dumps(identity, sort_keys=True))
    return data() / "calibrations" / f"{spec.judge}-{key}"


def _read_by(keys: Sequence[str], recipe: Recipe) -> dict[str, Any]:
    """Return what a recipe has at the keys that a judge reads; a part `*` stands for any name."""
    found: dict[str, Any] = {}
    for key in keys:
        first, *path = key.split(".")
        held = {first: recipe.model_dump(mode="json", include={first})[first]}
        for part in path:
            held = {
                f"{name}.{inner}": value
                for name, section in held.items()
                for inner, value in section.items()
                if part in ("*", inner)
            }
        found |= {name: value for name, value in held.items() if value not in ({}, [])}
    return found


def data() -> Path:
    """Return the user's data folder; it may not exist yet.

    Raises:
        NoHome: the user has no home folder, and SETBACKS_DATA is not set.
    """
    return user_folder("SETBACKS_DATA", "XDG_DATA_HOME", ".local/share")


def read(file: Path) -> dict[str, Any]:
    """Return the `labels`, the `sources` (rows) and the judge's `weights` of a calibration.

    The labels' name and the weights are None where it holds none.

    Raises:
        SetbacksError: the file is broken.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        return {
            "labels": data.get("labels"),
            "sources": list(data["sources"]),
            "weights": data.get("weights"),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SetbacksError(
            f"{file}: not a calibration ({type(error).__name__}: {error}); remove it, and run "
            "`setbacks calibrate` again"
        ) from None
