"""Methods: what a model is trained on. One file a method.

A method is anything with the shape of `Method`; the recipe's `train.method` finds it by name, in
this package or, through the entry point group ``setbacks.methods``, in another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from setbacks.errors import InputError
from setbacks.recipe import Recipe, Sources
from setbacks.records import Analysis, Example, Message, digest
from setbacks.suites import instructions


class Method(Protocol):
    """Turns analyses and answers into training examples.

    `name` names the arm that it trains; `uses_mistakes` says whether mistakes are to be induced and
    analysed at all; `learning_rate` is the peak where the recipe gives none.

    A method may have more: ``learns_analyses = True`` has the model's own verdicts read before and
    after training; ``reads`` names keys of the recipe that its training depends on besides
    ``train``, if they belong to a later stage; ``check(recipe)`` raises an `InputError`, before any
    work, where this model cannot be trained so; ``prepare(run, analyses)`` generates what the
    method needs of its own, in a journal of the run, and what it returns is given to `examples` in
    place of the analyses; ``fit(run, examples, adapter)`` trains in another way than
    `setbacks.training.supervised.fit`, with the same contract.
    """

    name: str
    uses_mistakes: bool
    learning_rate: float

    def examples(self, recipe: Recipe, analyses: Sequence[Analysis]) -> list[Example]:
        """Return the examples of one epoch, in any order; loss is on each one's completion."""
        ...


def example(
    kind: str, prompt: str, completion: str, parents: list[str], **more: str | None
) -> Example:
    """Make an example of one turn: the user says `prompt`, the model learns `completion`.

    Args:
        kind: what it is there for, in reports.
        prompt: the user's turn.
        completion: the model's.
        parents: ids of what it was made of.
        more: `verdict` or `rejected` of the example.
    """
    return Example(
        id=digest("example", kind, prompt, completion, *filter(None, more.values())),
        kind=kind,
        prompt=[Message(role="user", content=prompt)],
        completion=completion,
        parents=parents,
        **more,
    )


def answers(kind: str, sources: Sources) -> list[Example]:
    """Make an example of every instruction that has an answer.

    Raises:
        InputError: a source has no answers at all.
    """
    found = instructions(sources)
    made = [example(kind, i.text, i.answer, [i.id]) for i in found if i.answer]
    if sources and not made:
        raise InputError(
            f'{found[0].source}: has no field "answer", which {kind} examples need; map it with '
            "fields: {answer: THEIR_NAME}"
        )
    return made


def safe(recipe: Recipe, method: str) -> list[Example]:
    """Make an example of every safe answer to a red-team instruction.

    Raises:
        InputError: the recipe names none.
    """
    made = answers("safe", recipe.train.safe)
    if not made:
        raise InputError(f"train.method {method} needs safe answers: name data in train.safe")
    return made


def mixed(recipe: Recipe, own: Sequence[Example]) -> list[Example]:
    """Return a method's own examples with the recipe's helpful answers for so many."""
    helpful = answers("helpful", recipe.train.helpful)
    return [*own, *share(helpful, recipe.train.mix.helpful * len(own))]


def mistakes(analyses: Iterable[Analysis]) -> dict[str, Analysis]:
    """Return the analysed mistakes, one for each instruction's text: the first by its id.

    Analyses that failed their checks count too: the mistake is there all the same.
    """
    found: dict[str, Analysis] = {}
    for analysis in sorted(analyses, key=lambda analysis: analysis.response_id):
        if analysis.harmful:
            found.setdefault(analysis.instruction, analysis)
    return found


def share(examples: Iterable[Example], wanted: float) -> list[Example]:
    """Take about `wanted` examples, chosen by content and not by order; all if there are fewer."""
    return sorted(examples, key=lambda example: example.id)[: round(wanted)]
