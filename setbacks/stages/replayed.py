"""Before step 3: examples of earlier runs (`train.replay`).

A model that is trained again and again forgets what only the first rounds taught. Replaying a part
of the old examples is the simplest remedy that works (Robins 1995, Connection Science 7).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from setbacks.data.overlap import bare_instruction
from setbacks.errors import InputError
from setbacks.methods import open_method
from setbacks.recipe import Recipe
from setbacks.records import Example, digest
from setbacks.runs.decontamination import Decontamination
from setbacks.runs.folder import Run


def replayed(
    recipe: Recipe, own: Sequence[Example], decontamination: Decontamination
) -> list[Example]:
    """Draw examples that earlier runs were trained on, in the recipe's proportion.

    The draw depends on the examples and on the training's seed, not on the order of the runs.
    Examples whose prompts are held out now are not drawn: an earlier run may have had other suites.

    Args:
        recipe: names the runs.
        own: the examples of this run, which are not drawn again.
        decontamination: of this run; it counts what is left out.

    Raises:
        InputError: a run is missing, has not been trained, or was trained by another method.
    """
    pool: dict[str, Example] = {}
    for folder, examples in _learned(recipe):
        bare = bare_instruction(Path(folder))
        prompts = [bare(example) for example in examples]
        for example in decontamination.learnable(folder, examples, prompts):
            pool.setdefault(example.id, example)
    for example in own:
        pool.pop(example.id, None)
    drawn = sorted(pool.values(), key=lambda x: digest("replay", recipe.train_seed, x.id))
    return drawn[: round(recipe.train.replay.share * len(own))]


def check(recipe: Recipe) -> None:
    """Look up the runs to replay.

    Raises:
        InputError: as `replayed`.
    """
    for _ in _learned(recipe):
        pass


def _learned(recipe: Recipe) -> Iterator[tuple[str, list[Example]]]:
    """Yield the folder of each earlier run, with its examples.

    Each example has the name of the run that first had it.
    """
    for folder in recipe.train.replay.runs:
        run = Run(Path(folder))
        examples = run.records("training.jsonl", Example)
        if not examples:
            raise InputError(
                f"train.replay: {folder} has no training.jsonl; name the folder of a run that has "
                "been trained"
            )
        theirs, ours = run.recipe.train.method, open_method(recipe).name
        if theirs != ours:
            raise InputError(
                f"train.replay: {folder} was trained by {theirs}, and its examples do not fit "
                f"{ours}; name runs of the same method"
            )
        yield (
            folder,
            [
                x if x.replayed_from else x.model_copy(update={"replayed_from": run.recipe.name})
                for x in examples
            ],
        )
