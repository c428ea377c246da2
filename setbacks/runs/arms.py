"""The arms of a run, in the order in which tables and pages show them.

The respond stage writes them to `arms.json`. A folder of an older version has no such file: its
arms follow from its recipe.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from setbacks.errors import InputError, nearest
from setbacks.files import write_atomic
from setbacks.plugins import installed, plugin
from setbacks.recipe import Recipe
from setbacks.records import Arm, Way
from setbacks.text import one_line, quoted

NAME = "arms.json"


def planned_arms(recipe: Recipe) -> list[Arm]:
    """Return the arms that a recipe asks for, the baseline first.

    Args:
        recipe: the run's recipe.

    Raises:
        InputError: two arms of an evaluation have one name.
    """
    ways: list[Way] = ["unguided"]
    if recipe.respond.guidance:
        ways.append("guided")
    if recipe.respond.posterior:
        ways.append("posterior")
    if recipe.evaluate:
        arms = [
            Arm.evaluated(evaluated.name, way)
            for evaluated in recipe.evaluate
            # Answers from a file have one way of answering.
            for way in (ways if evaluated.model else ways[:1])
        ]
    else:
        method = _method(recipe.train.method)
        name, title = (method.name, method.title) if method else (recipe.train.method, None)
        arms = [Arm.untrained(way) for way in ways]
        arms += [Arm.of_method(name, way, title) for way in ways]
    names = [arm.name for arm in arms]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f'two arms are called "{twice[0]}": rename one, or set respond.guidance=false'
        )
    return arms


def untrained_arms(recipe: Recipe) -> list[Arm]:
    """Return the arms that training does not change.

    A probe that ranks drafts is also fitted on what a method writes for its training.
    """
    posterior = recipe.respond.posterior
    by_probe = posterior is not None and posterior.rank_by == "states"
    return [
        arm
        for arm in planned_arms(recipe)
        if arm.is_untrained and not (by_probe and arm.way == "posterior")
    ]


def choose_arm(
    path: Path, arms: Sequence[Arm], name: str, *, trained: bool, among: str = ""
) -> Arm:
    """Return the arm that a user names, or the only one of a kind.

    Args:
        path: of the run, for messages.
        arms: to choose from.
        name: the user's; "" takes the only unguided arm that is trained, or that is not.
        trained: which of the two.
        among: what all the arms have in common, for messages, such as " without guidance".

    Raises:
        InputError: there is no such arm, or there are several.
    """
    if name:
        chosen = [arm for arm in arms if arm.name == name]
    else:
        chosen = [arm for arm in arms if arm.way == "unguided" and arm.trained == trained]
    if len(chosen) == 1:
        return chosen[0]
    names, kind = [arm.name for arm in arms], "trained" if trained else "untrained"
    problem = f"{'several' if chosen else 'no'} {kind} arms."
    if name:
        problem = f'no arm "{name}"{among}.{nearest(name, names)}'
    listed = ", ".join(names)
    raise InputError(one_line(f"{path}: has {problem} Name one as {path}:ARM: {listed}"))


def trained_arm(name: str, way: Way = "unguided") -> Arm:
    """Return the arm of a model that a comparison or a study trained.

    Args:
        name: of the method, whose readable name the arm gets, or of a variant.
        way: how the model answers.
    """
    method = _method(name)
    return Arm.of_method(name, way, method.title if method else None)


def _method(name: str) -> Any:
    """The class of a method; None if it is not installed, since a finished run can be read then."""
    return plugin("methods", name) if name in installed("methods") else None


def write_arms(folder: Path, arms: list[Arm]) -> None:
    """Write the record of a run's arms, unless the folder already has it."""
    text = json.dumps([asdict(arm) for arm in arms], indent=1, ensure_ascii=False) + "\n"
    path = folder / NAME
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text.encode())


def read_arms(folder: Path, recipe: Recipe) -> list[Arm]:
    """Return the arms that have responses in a run folder, in the order to show them.

    Args:
        folder: the run's folder.
        recipe: the folder's recipe.

    Raises:
        InputError: `arms.json` is damaged.
    """
    there = {path.stem for path in (folder / "responses").glob("*.jsonl")}
    if not there:
        return []
    arms = recorded_arms(folder, recipe)
    known = {arm.name for arm in arms}
    # Response files that the user added are arms, too.
    added = [Arm.evaluated(name) for name in sorted(there - known)]
    return [arm for arm in arms if arm.name in there] + added


def recorded_arms(folder: Path, recipe: Recipe) -> list[Arm]:
    """Return the arms of a run, whether or not they have responses.

    Args:
        folder: the run's folder.
        recipe: the folder's recipe.

    Raises:
        InputError: `arms.json` is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return planned_arms(recipe)
    try:
        return TypeAdapter(list[Arm]).validate_json(path.read_bytes())
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(
            f"{path}: damaged at {where or 'its start'}; delete it, and `setbacks respond "
            f"{quoted(path.parent)}` writes it again"
        ) from None
