"""Recipes in the folders of earlier versions: they stay as they were, so that their runs resume."""

from __future__ import annotations

from typing import Any

from setbacks.data.sources import FIRST, GROWN

OFF = {"decontaminate": None}  # fields that earlier versions did not have, switched off


def is_earlier(data: dict[str, Any]) -> bool:
    """Whether an earlier version wrote a folder's recipe: it lacks fields that all have now."""
    return not OFF.keys() <= data.keys()


def renamed(data: dict[str, Any]) -> dict[str, Any]:
    """Return a run folder's data with the keys that fields have now.

    `train.samples` answers were written for each mistake, whatever they were about. Now
    `train.attempts` is how often to try for one that is about its instruction.
    """
    train = data.get("train")
    if not isinstance(train, dict) or "samples" not in train:
        return data
    kept = {key: value for key, value in train.items() if key != "samples"}
    return data | {"train": kept | {"attempts": train["samples"], "min_overlap": 0}}


def pinned(data: Any) -> Any:
    """Return plain data in which built-in sets that have grown since are as they were at first."""
    if isinstance(data, list):
        return [pinned(item) for item in data]
    if not isinstance(data, dict):
        return data
    data = {key: pinned(value) for key, value in data.items()}
    if str(data.get("source")) in GROWN and data.get("revision") is None:
        data["revision"] = FIRST
    return data
