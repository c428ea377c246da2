"""`setbacks chat`: prompts, answered before and after training, side by side.

It only reads the run folder, so it needs no lock, and works while the run goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from setbacks.cli.arguments import refuse_unused
from setbacks.data.languages import language_of
from setbacks.engines import open_engine
from setbacks.errors import InputError
from setbacks.messages import Message, Prompt, prompt_of, turns_of, with_system
from setbacks.records import Arm, Way
from setbacks.runs.folder import Run
from setbacks.stages.respond import request, respondents, split_answer
from setbacks.text import quoted, visible

if TYPE_CHECKING:
    from rich.table import Table

# Keys of a recipe that a chat does not use; the adapter is trained already.
_UNUSED = (
    *("name", "instructions", "decontaminate", "held_out", "induce", "analyze", "preflight"),
    *("train", "judges", "compare", "loop", "jobs", "study"),
    *("respond.suites", "respond.guidance", "respond.posterior"),
)

HELP = (
    "/clear (begin again), /system TEXT (a system prompt; without TEXT: none), "
    "/guidance on or off, /help, /quit; everything else is a prompt"
)


class Turn(NamedTuple):
    """A prompt with each arm's answer; or a command, with a note of what it did.

    `asked` is what each arm answered: the prompt, after the turns before it, if any; `thoughts` is
    what an arm thought before its answer.
    """

    prompt: str
    guided: bool
    answers: dict[Arm, str]
    note: str = ""
    asked: Mapping[Arm, Prompt] = MappingProxyType({})
    thoughts: Mapping[Arm, str] = MappingProxyType({})


class SideBySide:
    """The models of a run before and after training, asked one prompt at a time.

    All models stay in memory: two arms take twice the memory of one.

    Args:
        folder: the run's folder.
        overrides: ``key.path=value`` strings that win over its recipe.
        system: a system turn before every conversation; it follows the recipe's `model.system`.
        remembers: whether a prompt continues the conversation; each arm's holds its own answers.

    Raises:
        InputError: the folder is not a run, or has no adapter or no model yet, or an override would
            change nothing.
    """

    def __init__(
        self,
        folder: Path,
        overrides: Sequence[str] = (),
        *,
        system: str | None = None,
        remembers: bool = False,
    ) -> None:
        refuse_unused(overrides, _UNUSED, "a chat")
        run = Run(folder, overrides)
        recipe, adapter = run.recipe, run.path / "adapter"
        if recipe.evaluate:  # each arm names its model
            refuse_unused(overrides, ("model", "adapter"), "a chat with an evaluation's models")
        if not recipe.evaluate and not adapter.is_dir():
            raise InputError(
                f"{folder}: no adapter yet, so there is nothing to compare; wait for the run to "
                f"train one, or run `setbacks train {quoted(folder)}`"
            )
        self.recipe = recipe
        answering = [
            (arm, model, weights)
            for arm, model, weights in respondents(recipe, adapter)
            if model is not None and arm.way == "unguided"
        ]
        if not answering:
            raise InputError(f"{folder}: its answers come from files, so there is no model to ask")
        self.arms = [arm for arm, *_ in answering]
        self._adapters = [weights for *_, weights in answering]
        self._engines = [open_engine(model, recipe.words_for()) for _, model, _ in answering]
        self._system = system
        self._remembers = remembers
        self._before: dict[Arm, tuple[Message, ...]] = dict.fromkeys(self.arms, ())

    def ask(self, prompt: str, guided: bool = False) -> Turn:
        """Have every arm answer a prompt, with the seed that it would have in a suite.

        Args:
            prompt: what the user says.
            guided: whether to put guidance around it.
        """
        answers, asked, thoughts = {}, {}, {}
        before = dict(self._before)
        way: Way = "guided" if guided else "unguided"
        user = Message(role="user", content=prompt)
        language = language_of(None, prompt, self.recipe.language)
        for each, engine, adapter in zip(self.arms, self._engines, self._adapters, strict=True):
            arm = replace(each, way=way)
            asked[arm] = prompt_of(with_system([*before[each], user], self._system))
            sent = request(self.recipe, arm, asked[arm], language)
            (completion,) = engine.generate([sent], self.recipe.respond.sampling, adapter)
            answers[arm] = completion.text
            if completion.thought:
                thoughts[arm] = completion.thought
            answer = split_answer(self.recipe, arm, completion.text, language)["text"] or ""
            before[each] += (user, Message(role="assistant", content=answer))
        if self._remembers:
            self._before = before
        return Turn(prompt, guided, answers, asked=asked, thoughts=thoughts)

    def converse(
        self, lines: Iterable[str], guided: bool = False, forgives: bool = False
    ) -> Iterator[Turn]:
        """Yield a turn for each line: the answers to a prompt, or a note of what a command did.

        Args:
            lines: prompts and commands; empty lines are skipped.
            guided: whether guidance is on at the start.
            forgives: whether a prompt that cannot be answered gives a note and not an error.

        Raises:
            InputError: a prompt cannot be answered, such as one that is too long.
        """
        for line in map(str.strip, lines):
            command, _, words = line.partition(" ")
            words = words.strip()
            if command == "/quit":
                return
            if command == "/help":
                yield Turn(line, guided, {}, HELP)
            elif command == "/clear":
                self._before = dict.fromkeys(self.arms, ())
                kept = "; the system prompt stays" if self._system else ""
                yield Turn(line, guided, {}, f"a new conversation{kept}")
            elif command == "/system":
                self._system = words or None
                yield Turn(line, guided, {}, f"system prompt: {visible(words) or 'none'}")
            elif command == "/guidance":
                if words in ("on", "off"):
                    guided = words == "on"
                yield Turn(line, guided, {}, f"guidance: {'on' if guided else 'off'}")
            elif line:
                try:
                    yield self.ask(line, guided)
                except InputError as error:
                    if not forgives:
                        raise
                    yield Turn(line, guided, {}, f"not answered: {error}")


def typed() -> Iterator[str]:
    """Yield the lines that the user types at a terminal, until Ctrl-D."""
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  arrow keys and history

    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return


def as_json(turn: Turn) -> str:
    """Return a turn as one line of JSON; answers and conversations by the arm's name."""
    messages = {
        arm.name: [
            *(message.model_dump(mode="json") for message in turns_of(prompt)),
            {"role": "assistant", "content": turn.answers[arm]},
        ]
        for arm, prompt in turn.asked.items()
    }
    answers = {arm.name: text for arm, text in turn.answers.items()}
    data = {"prompt": turn.prompt, "guidance": turn.guided, "answers": answers}
    thoughts = {arm.name: text for arm, text in turn.thoughts.items()}
    more = {"messages": messages} | ({"thoughts": thoughts} if thoughts else {})
    return json.dumps(data | more, ensure_ascii=False)


def as_lines(turn: Turn) -> str:
    """Return a turn as plain lines: the prompt, then each answer under its arm's label."""
    lines = [f"> {visible(turn.prompt)}"]
    for arm, text in turn.answers.items():
        lines += [f"[{arm.label}]", *_thought(turn, arm), visible(text)]
    return "\n".join(lines) + "\n"


def as_columns(turn: Turn) -> Table:
    """Return a turn for a terminal: a column for each arm."""
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True)
    for arm in turn.answers:
        table.add_column(Text(arm.label), ratio=1, overflow="fold")
    if turn.thoughts:
        thoughts = ("\n".join(_thought(turn, arm)) for arm in turn.answers)
        table.add_row(*(Text(text, style="dim") for text in thoughts))
    table.add_row(*(Text(visible(text)) for text in turn.answers.values()))
    return table


def _thought(turn: Turn, arm: Arm) -> list[str]:
    """The line of an arm's thought, if it had one."""
    return [f"(thought) {visible(turn.thoughts[arm])}"] if arm in turn.thoughts else []
