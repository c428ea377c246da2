"""Recipes in the folders of earlier versions: they stay as they were, so that their runs resume."""

from __future__ import annotations

from typing import Any

from setbacks.data.sources import FIRST, GROWN

OFF = {"decontaminate": None}  # fields that earlier versions did not have, switched off


def is_earlier(data: dict[str, Any]) -> bool:
    """Whether an earlier version wrote a folder's recipe: it lacks fields that all have now."""
    return not OFF.keys() <= data.keys()


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
