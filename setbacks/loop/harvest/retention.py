"""Harvested texts are personal data: what a folder says of itself, its end, and what learned of it.

`harvest.json` holds no text: how a harvest was asked for, its counts, and the day on which its
texts expire.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from setbacks.errors import InputError, SetbacksError
from setbacks.files import HARVEST, writing
from setbacks.recipe import Source
from setbacks.records import Mistake
from setbacks.runs.folder import Run, RunFolder

ABOUT = HARVEST
MARK = "harvested:"  # begins the source of every harvested setback


def about(folder: Path) -> dict[str, Any] | None:
    """Return what a folder's `harvest.json` holds; None if it is not the folder of a harvest."""
    try:
        held = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return held if isinstance(held, dict) else None


def write_about(run: RunFolder, held: Mapping[str, Any]) -> None:
    """Write `harvest.json`."""
    run.write_text(ABOUT, json.dumps(held, indent=1, ensure_ascii=False) + "\n")


def today() -> str:
    """Return the day, in UTC, as `expires` has it."""
    return datetime.now(UTC).date().isoformat()


def expire(place: Path) -> Iterator[tuple[Path, str, bool]]:
    """Delete the texts of every harvest in a folder that has expired.

    Its `harvest.json`, which holds no text, stays. A harvest with a problem does not keep the
    others from expiring.

    Args:
        place: the folder of a harvest, or one with such folders in it.

    Yields:
        Each harvest's folder, the day on which it expires, and whether its texts were deleted now.

    Raises:
        InputError: there is no harvest.
        SetbacksError: some harvests are damaged, in use, or cannot be deleted; the others are done.
    """
    folders = sorted(path.parent for path in place.rglob(ABOUT))
    if not folders:
        raise InputError(f"{place}: has no harvest (no {ABOUT})")
    problems = []
    for folder in folders:
        try:
            yield folder, *_expired(folder)
        except SetbacksError as error:
            problems.append(str(error))
    if problems:
        raise SetbacksError(
            f"{len(problems)} of {len(folders)} harvests not checked: {'; '.join(problems)}"
        )


def _expired(folder: Path) -> tuple[str, bool]:
    """Delete a harvest's texts if they have expired; return the day, and whether they were."""
    held = about(folder)
    if held is None or not isinstance(held.get("expires"), str):
        raise SetbacksError(f"{folder / ABOUT}: damaged; delete the folder if it has expired")
    due = (folder / "recipe.yaml").exists() and held["expires"] <= today()
    if due:
        with RunFolder(folder):
            _delete_texts(folder)
    return held["expires"], due


def _delete_texts(folder: Path) -> None:
    for path in sorted(folder.iterdir(), key=lambda path: path.name == "recipe.yaml"):
        if path.name in (ABOUT, ".lock"):
            continue
        with writing(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def learned_from_logs(folder: Path) -> bool:
    """Return whether a run, or one that it continues or replays, learned from harvested logs.

    Args:
        folder: the run's.
    """
    left, seen = [folder], set()
    while left:
        folder = left.pop()
        if folder.resolve() in seen or not (folder / "recipe.yaml").is_file():
            continue
        seen.add(folder.resolve())
        run = Run(folder)
        sources = run.recipe.parts(Source)
        if any((Path(source.source).parent / ABOUT).is_file() for source in sources):
            return True
        if any(m.source.startswith(MARK) for m in run.records("mistakes.jsonl", Mistake)):
            return True
        left += map(Path, run.recipe.train.replay.runs)
        if run.recipe.start is not None:
            left.append(run.recipe.start.parent)
    return False
