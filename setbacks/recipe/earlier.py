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


def batched(data: Any, held: Any) -> Any:
    """Return plain data with the batches of a folder's recipe, where both have their default.

    Batches of generation had 128 prompts at most by default; now they have 256.
    """
    if isinstance(data, dict) and isinstance(held, dict):
        if (data.get("batch_size"), held.get("batch_size")) == (256, 128):
            data = data | {"batch_size": 128}
        return {key: batched(value, held.get(key)) for key, value in data.items()}
    if isinstance(data, list) and isinstance(held, list) and len(data) == len(held):
        return [batched(*pair) for pair in zip(data, held, strict=True)]
    return data


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
