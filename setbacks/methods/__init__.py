"""Methods: what a model is trained on, and how. One file per method.

`open_method` finds the method that `train.method` names, in this package or in another, through the
entry point group ``setbacks.methods``. Read `sft.py` first: it is the shortest.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from setbacks.data.instructions import instructions
from setbacks.errors import InputError, SetbacksError
from setbacks.messages import Prompt, turns_of
from setbacks.notices import notice
from setbacks.plugins import describe, plugin
from setbacks.prompts import Words, ask
from setbacks.recipe import Recipe, Source, Sources, Train
from setbacks.records import (
    Analysis,
    Example,
    Instruction,
    Setback,
    Teaching,
    digest,
    same_prompt,
)

if TYPE_CHECKING:
    from setbacks.runs.session import Session
    from setbacks.training import TrainingRun

# Keys of `train` that only some methods use; `Method.unused` names those that one does not.
CHOICE_OF_ANALYSES = ("analyses", "most_analyses")
LEARNING_OF_ANALYSES = ("question", "verdict", "verdict_weight", "mix.contrast", "mix.safe")
USE_OF_MISTAKES = (*CHOICE_OF_ANALYSES, *LEARNING_OF_ANALYSES, "categories", "mix.refusal")


class Method(ABC):
    """Turns analyses and answers into training examples, and trains on them.

    A method is a subclass with a `name` and `examples`. Everything else has a default.

    Attributes:
        name: name of the method, and of the arm that it trains, in files.
        title: name of the method in reports; by default its `name`, with spaces.
        Options: the section `train` of a recipe, with the method's own options added.
        uses_mistakes: whether mistakes are induced and analyzed.
        learns_analyses: whether the model's own verdicts are read before and after training.
        learning_rate: peak learning rate if the recipe gives none; None: by the model's size, as
            `setbacks.training.learning_rate` gives it for supervised fine-tuning.
        reads: keys of the recipe besides `train` that training depends on, and no earlier stage,
            such as `respond.sampling` or `words.*.unguided` (`*` is any language). If one of them
            changes, training is redone.
        outputs: files and folders that the method writes in the run folder besides those of every
            training. Redoing the training sets them aside.
        temporary: further outputs, from which an interrupted training resumes, such as
            checkpoints; deleted when the adapter is saved.
        one_process: whether training cannot be shared among processes.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    Options: ClassVar[type[Train]] = Train
    uses_mistakes: ClassVar[bool] = False
    learns_analyses: ClassVar[bool] = False
    learning_rate: ClassVar[float | None] = None
    reads: ClassVar[tuple[str, ...]] = ()
    outputs: ClassVar[tuple[str, ...]] = ()
    temporary: ClassVar[tuple[str, ...]] = ()
    one_process: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        """Give a method with a new name its own title, not that of the class it extends."""
        super().__init_subclass__(**options)
        if "name" in vars(cls) and "title" not in vars(cls):
            cls.title = cls.name.replace("_", " ")

    @classmethod
    def open(cls, recipe: Recipe) -> Method:
        """Make the method that a recipe describes."""
        return cls()

    @abstractmethod
    def examples(self, recipe: Recipe, material: Sequence[Any]) -> list[Example]:
        """Return the examples of one epoch, in any order; the loss is on each one's completion.

        Called once without material before a run begins, to check its data.

        Args:
            recipe: the run's recipe.
            material: what `prepare` returned; by default the analyses.

        Raises:
            InputError: the recipe lacks data that the method needs.
        """

    def check(self, recipe: Recipe) -> None:
        """Check, before any work, whether a recipe's model can be trained this way.

        Raises:
            InputError: it cannot.
        """

    def unused(self, recipe: Recipe) -> Sequence[str]:
        """Return the keys of `train` that change nothing in this method, such as `mix.contrast`.

        A run says so if its recipe sets one of them, and a study does not vary it. None by default.
        """
        return ()

    def has_teacher(self, recipe: Recipe) -> bool:
        """Return whether the model learns from corrections that it wrote with more context.

        If so, the judge `train.judge` checks them, and the preflight measures the flip rate.
        """
        return False

    def sources(self, recipe: Recipe) -> Mapping[str, Sources]:
        """Return the sources of the examples of each kind, for the model card."""
        return {
            "analysis": mistake_sources(recipe),
            "refusal_analysis": refusal_sources(recipe),
            "contrast": recipe.analyze.contrast,
            "helpful": recipe.train.helpful,
            "safe": recipe.train.safe,
        }

    def prepare(self, run: Session, analyses: Sequence[Analysis]) -> Sequence[Any]:
        """Generate texts that the method needs, in a journal of the run named in `outputs`.

        Args:
            run: the session.
            analyses: every candidate analysis.

        Returns:
            The material for `examples`; by default the analyses.
        """
        return analyses

    def fit(self, run: TrainingRun, examples: Sequence[Example], adapter: Path) -> int:
        """Train an adapter on the examples; by default by supervised fine-tuning.

        Args:
            run: the run.
            examples: the examples of one epoch.
            adapter: where the adapter is saved.

        Returns:
            The number of tokens read.
        """
        from setbacks.training import supervised

        return supervised.fit(run, examples, adapter)

    def guided_prompt(self, words: Words, instruction: Prompt) -> Prompt:
        """Return the guided prompt of the trained model.

        Args:
            words: of the instruction's language.
            instruction: the prompt without guidance.
        """
        return ask(words["guided"], instruction)

    def more_tokens(self, recipe: Recipe) -> int:
        """Return the tokens that a guided answer needs besides the answer itself."""
        return 0

    def split(self, words: Words, text: str) -> tuple[str, str | None]:
        """Split a guided output of the trained model into the answer and the rest, if any.

        Args:
            words: of the instruction's language.
            text: the whole output.
        """
        return text, None


def open_method(recipe: Recipe) -> Method:
    """Return the method that a recipe names.

    Raises:
        InputError: the method is unknown.
    """
    method: Method = plugin("methods", recipe.train.method).open(recipe)
    return method


def unused(recipe: Recipe) -> set[str]:
    """Return the keys of `train` that change nothing in a run of a recipe, such as `mix.contrast`.

    Raises:
        InputError: the method is unknown.
    """
    train, posterior = recipe.train, recipe.respond.posterior
    keys = {*open_method(recipe).unused(recipe)}
    if posterior is not None and posterior.rank_by == "states":  # by a probe of safe answers
        keys -= {"safe"}
    if train.helpful_from == "data":
        keys |= {"helpful_sampling"}
    if train.verdict == "within":
        keys |= {"verdict_weight"}
    return keys


def examples_of(method: Method, recipe: Recipe, material: Sequence[Any]) -> list[Example]:
    """Return a method's examples; a bug in it is reported with its file and line.

    Args:
        method: that makes the examples.
        recipe: the run's recipe.
        material: what `prepare` returned; empty before a run begins.

    Raises:
        InputError: the recipe lacks data that the method needs.
        SetbacksError: the method has a bug.
    """
    where = f"method {method.name}: `examples`"
    try:
        examples = method.examples(recipe, material)
    except (SetbacksError, OSError, MemoryError):
        raise
    except Exception as error:  # a plugin's code can raise anything
        raise SetbacksError(
            f"{where} failed: {describe(error, type(method).__module__)}"
        ) from error
    returned = type(examples).__name__
    if isinstance(examples, list):
        returned = next(
            (f"of {type(e).__name__}" for e in examples if not isinstance(e, Example)), ""
        )
    if not returned:
        return examples
    function: Any = inspect.unwrap(type(method).examples)
    code = function.__code__
    raise SetbacksError(
        f"{where} must return a list of Example, not {returned} "
        f"({code.co_filename}, line {code.co_firstlineno})"
    )


def mistake_sources(recipe: Recipe) -> Sources:
    """Return the sources of a recipe's mistakes."""
    drawn = recipe.instructions if recipe.induce.source != "existing" else []
    taken = recipe.induce.existing if recipe.induce.source != "induced" else []
    return [*drawn, *taken]


def refusal_sources(recipe: Recipe) -> Sources:
    """Return the sources of a recipe's refused safe requests."""
    drawn = recipe.induce.refusals if recipe.induce.source != "existing" else []
    taken = recipe.induce.existing if recipe.induce.source != "induced" else []
    return [*drawn, *taken]


def example(
    kind: str,
    prompt: Prompt,
    completion: str,
    parents: list[str],
    teacher: Teaching | None = None,
    **more: str | None,
) -> Example:
    """Make an example: the model learns to answer `prompt` by `completion`.

    The id does not depend on the teacher: with and without it, the same examples are chosen, and
    learned in the same order.

    Args:
        kind: the kind of example, in reports.
        prompt: what the user says, or the turns of a conversation.
        completion: the model's turn.
        parents: ids of the records that it comes from.
        teacher: who wrote the completion, if its distributions are learned.
        more: the example's `verdict`, `rejected`, `given` or `thought`.
    """
    return Example(
        id=digest("example", kind, prompt, completion, *filter(None, more.values())),
        kind=kind,
        prompt=turns_of(prompt),
        completion=completion,
        parents=parents,
        teacher=teacher,
        **more,
    )


def answered(kind: str, sources: Sources, language: str = "en") -> list[Instruction]:
    """Return every instruction that has an answer.

    Args:
        kind: of the examples that are made of them, for messages.
        sources: of the instructions.
        language: as `setbacks.data.instructions.instructions` takes it.

    Raises:
        InputError: a source has no answers at all.
    """
    rows = instructions(sources, answered_for=f"a {kind} example", language=language)
    return [row for row in rows if row.answer]


def answers(kind: str, sources: Sources) -> list[Example]:
    """Make an example of every instruction that has an answer.

    Raises:
        InputError: as `answered`.
    """
    return _taught(kind, answered(kind, sources))


def _taught(kind: str, rows: Iterable[Instruction]) -> list[Example]:
    return [example(kind, row.text, row.answer or "", [row.id]) for row in rows]


def safely_answered(recipe: Recipe, method: str) -> list[Instruction]:
    """Return every red-team instruction that has a safe answer.

    Raises:
        InputError: the recipe names none.
    """
    rows = answered("safe", recipe.train.safe, recipe.language)
    if not rows:
        raise InputError(f"train.method {method} needs safe answers: name data in train.safe")
    return rows


def safe(recipe: Recipe, method: str) -> list[Example]:
    """Make an example of every safe answer to a red-team instruction.

    Raises:
        InputError: the recipe names none.
    """
    return _taught("safe", safely_answered(recipe, method))


def helpful_answers(recipe: Recipe) -> list[Example]:
    """Make an example of every helpful answer.

    If the model itself answers (`train.helpful_from`), there are none before the run: the train
    stage replaces the recipe's data by its answers.

    Raises:
        InputError: a source has no answers at all.
    """
    return [] if recipe.train.helpful_from == "model" else answers("helpful", recipe.train.helpful)


def own_answers(folder: Path) -> Source:
    """Return the model's own answers to benign prompts that passed their checks, as a source.

    Args:
        folder: of the run in which the model answered.
    """
    return Source(
        source=str(folder / "benign.jsonl"),
        fields={"text": "instruction", "answer": "answer"},
        where={"outcome": "kept"},
    )


def answers_itself(recipe: Recipe) -> bool:
    """Return whether the helpful answers are the model's own: those of `own_answers`."""
    sources = recipe.train.helpful
    return bool(sources) and all(x == own_answers(Path(x.source).parent) for x in sources)


def mixed(recipe: Recipe, own: Sequence[Example]) -> list[Example]:
    """Return a method's own examples, and helpful answers in the recipe's proportion."""
    return [*own, *helpful_share(recipe, len(own))]


def helpful_share(recipe: Recipe, number: int) -> list[Example]:
    """Return helpful answers in the recipe's proportion to a number of a method's own examples."""
    there = recipe.train.helpful_from == "data"  # else the model has not answered yet
    wanted = recipe.train.mix.helpful * number
    return share(helpful_answers(recipe), wanted, "helpful" if there else None)


def mistakes(analyses: Iterable[Analysis], kind: Setback = "harmful") -> dict[str, Analysis]:
    """Return the analyzed mistakes of a kind, one for each instruction: the first by id.

    Mistakes whose analyses failed their checks are included.

    Returns:
        By the instruction's text, as `same_text` gives it: answers may come from a file with other
        line endings.
    """
    by_instruction: dict[str, Analysis] = {}
    for analysis in sorted(analyses, key=lambda analysis: analysis.response_id):
        if analysis.label == kind:
            by_instruction.setdefault(same_prompt(analysis.instruction), analysis)
    return by_instruction


def refused(
    recipe: Recipe, analyses: Iterable[Analysis], harmful: int
) -> list[tuple[Instruction, Analysis]]:
    """Return refused safe requests that the data answer, each with its refusal.

    Args:
        recipe: the answers are in `induce.refusals`.
        analyses: of the refusals, and of other responses.
        harmful: number of examples of harmful mistakes, which limits them.
    """
    refusals = mistakes(analyses, "refusal")
    if not refusals:
        return []
    rows = instructions(recipe.induce.refusals, language=recipe.language)
    pairs = [
        (row, refusal)
        for row in sorted(rows, key=lambda row: row.id)
        if row.answer and (refusal := refusals.get(same_prompt(row.text)))
    ]
    return pairs[: _most_refusals(recipe, harmful)]


def share_of_refusals(
    recipe: Recipe, examples: Sequence[Example], harmful: int
) -> Sequence[Example]:
    """Take as many examples of refused requests as the recipe's mix allows.

    Args:
        recipe: with `train.mix.refusal`.
        examples: to take from.
        harmful: number of examples of harmful mistakes.
    """
    most = _most_refusals(recipe, harmful)
    return examples if most is None else share(examples, most)


def _most_refusals(recipe: Recipe, harmful: int) -> int | None:
    return round(recipe.train.mix.refusal * harmful) if harmful else None


def share(examples: Iterable[Example], wanted: float, key: str | None = None) -> list[Example]:
    """Take about `wanted` examples, chosen by content, not by order; all if there are fewer.

    Args:
        examples: to take from.
        wanted: number of examples.
        key: the key of `train.mix` that asks for them; if there are fewer, a notice says so.
    """
    ordered = sorted(examples, key=lambda example: example.id)
    if key and len(ordered) < round(wanted):
        notice(
            f"train.mix.{key} asks for {round(wanted)} examples, and there are {len(ordered)}: "
            "all are used"
        )
    return ordered[: round(wanted)]
