"""What a chat template writes around the texts of a conversation.

A template is shown marks in place of the texts, so it cannot change them. What it writes between
the marks are its pieces. The names, arguments and ids of tool calls are texts too. A template may
write a text as JSON or as Python does; its mark shows which, since it contains quotes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

from setbacks.errors import InputError
from setbacks.messages import Message
from setbacks.models.tokens import Part, message_part, state_of

MARK = "\ue000:{}'\""  # a private-use character: no template writes it

_KEY = r"[no]?\d+"  # of a text: its turn, or a number after n (needed) or o (optional)
_ESCAPES = str.maketrans({"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r"})
# What a template makes of a mark, and what it makes of a text that it writes in the same way.
_WAYS: dict[str, tuple[str, Callable[[str], str]]] = {
    "plain": (rf"\ue000:{_KEY}\.*'\"", str),
    "json": (rf"\ue000:{_KEY}\.*'\\\"", lambda text: json.dumps(text, ensure_ascii=False)[1:-1]),
    "ascii": (rf"\\ue000:{_KEY}\.*'\\\"", lambda text: json.dumps(text)[1:-1]),
    "escaped": (rf"\ue000:{_KEY}\.*\\'\"", lambda text: text.translate(_ESCAPES)),  # LFM2's
    "repr": (rf"'\\ue000:{_KEY}\.*\\'\"'", repr),
    # Beside white space, as part of a longer text that has quotes of both kinds.
    "inner repr": (rf"\\ue000:{_KEY}\.*\\'\"", lambda text: repr("'\"" + text)[4:-1]),
}
_MARKS = re.compile("|".join(f"({mark})" for mark, _ in _WAYS.values()))


class Turn(NamedTuple):
    """What a template sees of a message: its role, and the white space at either end of its text.

    The text is replaced by a mark, so a template cannot change it. White space is kept because many
    templates trim it.
    """

    role: str
    before: str = ""
    after: str = ""
    thought: str = ""  # some templates render a thought that comes with an answer
    tools: str = ""  # the JSON of a turn's other fields, with marks
    silent: bool = False  # whether it only calls tools

    @property
    def calls(self) -> bool:
        """Whether it calls tools."""
        return '"tool_calls"' in self.tools

    @classmethod
    def of(cls, role: str, text: str) -> Turn:
        """Return what a template sees of a message."""
        core = text.strip()
        before, _, after = text.partition(core) if core else (text, "", "")
        return cls(role, before, after)


USER, ANSWER = Turn("user"), Turn("assistant")


class Slot(NamedTuple):
    """Where a template writes a text: the key of the text, and the way it is written."""

    key: str
    way: str


class Layout(NamedTuple):
    """What a template writes: its pieces, and the slots between them.

    `leaves_out` are the turns with tool calls whose text it does not write.
    """

    pieces: tuple[str, ...]
    slots: tuple[Slot, ...]
    leaves_out: tuple[int, ...] = ()

    def parts(self, texts: Mapping[str, str]) -> list[Part]:
        """Put texts into the slots."""
        parts = [Part(self.pieces[0], False)]
        for (key, way), piece in zip(self.slots, self.pieces[1:], strict=True):
            parts += [message_part(_WAYS[way][1](texts[key])), Part(piece, False)]
        return parts


# The marks ----------------------------------------------------------------------------------------


def marked(messages: Sequence[Message]) -> tuple[list[Turn], dict[str, str]]:
    """Return what a template sees of messages, and the texts by the keys of their marks."""
    texts = {str(index): message.content.strip() for index, message in enumerate(messages)}
    marks = _Marks(texts)
    turns = []
    for message in messages:
        turn = Turn.of(message.role, message.content)
        if tools := _tool_fields(message, marks):
            silent = bool(message.tool_calls) and not message.content.strip()
            turn = turn._replace(tools=json.dumps(tools), silent=silent)
        turns.append(turn)
    return turns, texts


class _Marks:
    """Marks for texts, which it adds to `texts`."""

    def __init__(self, texts: dict[str, str]) -> None:
        self._texts = texts
        self._shared: dict[str, str] = {}

    def add(self, text: str, *, needed: bool = True) -> str:
        """Return a text as a template sees it."""
        turn = Turn.of("", text)
        key = f"{'n' if needed else 'o'}{len(self._texts):04}"
        self._texts[key] = text.strip()
        return turn.before + MARK.format(key) + turn.after

    def share(self, text: str, *, needed: bool = False) -> str:
        """Return the same for equal texts: templates compare ids and look up names."""
        if text not in self._shared:
            self._shared[text] = self.add(text, needed=needed)
            if len(text) != 9:  # Mistral's templates count the characters of ids, and so do marks
                self._shared[text] = self._shared[text].replace("'", ".'")
        return self._shared[text]

    def within(self, value: Any) -> Any:
        """Return a value of JSON with its texts replaced."""
        if isinstance(value, dict):
            # Some templates sort by key: marks sort as their texts do.
            marks = {key: self.add(key) for key in sorted(value, key=str.lower)}
            return {marks[key]: self.within(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [self.within(entry) for entry in value]
        return self.add(value) if isinstance(value, str) else value


def _tool_fields(message: Message, marks: _Marks) -> dict[str, Any]:
    """Return the fields of a message that only conversations with tools have."""
    fields: dict[str, Any] = {}
    if message.name is not None:
        fields["name"] = marks.share(message.name)
    if message.tool_calls:
        fields["tool_calls"] = []
        for call in message.tool_calls:
            name, arguments = call.function.name, call.function.arguments
            parsed = _parsed(arguments)
            forms = {"text": marks.add(arguments)}
            if parsed is not None:
                forms["object"] = marks.within(parsed)
            entry: dict[str, Any] = {} if call.id is None else {"id": marks.share(call.id)}
            entry["type"] = call.type
            entry["function"] = {"name": marks.share(name, needed=True), "arguments": forms}
            fields["tool_calls"].append(entry)
    if message.tool_call_id is not None:
        fields["tool_call_id"] = marks.share(message.tool_call_id)
    return fields


def _parsed(arguments: str) -> dict[str, Any] | None:
    """Return the arguments of a call; None if they are no JSON object."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# What the template writes -------------------------------------------------------------------------


def layout(
    tokenizer: Any, turns: Sequence[Turn], variables: Mapping[str, Any] | None = None
) -> Layout:
    """Return what the template writes around the texts of turns.

    Raises:
        InputError: there is no template, or it does not write every text once and in order. System
            turns may be out of order.
    """
    key = json.dumps(dict(variables or {}))  # in order: templates write a list of tools
    found = _layout_of(tokenizer, state_of(tokenizer), tuple(turns), key)
    if isinstance(found, Layout):
        return found
    raise InputError(f"{tokenizer.name_or_path}: {found}")


def optional_layout(
    tokenizer: Any, turns: Sequence[Turn], variables: Mapping[str, Any] | None = None
) -> Layout | None:
    """Return the same as `layout`; None where it would raise."""
    try:
        return layout(tokenizer, turns, variables)
    except InputError:
        return None


def template_pieces(
    tokenizer: Any, turns: Sequence[Turn], variables: Mapping[str, Any] | None = None
) -> list[str]:
    """Return the pieces of a layout: for turns without tools, one more than turns.

    Raises:
        InputError: as `layout`.
    """
    return list(layout(tokenizer, turns, variables).pieces)


def optional_pieces(
    tokenizer: Any, turns: Sequence[Turn], variables: Mapping[str, Any] | None = None
) -> list[str] | None:
    """Return the same as `template_pieces`; None where it would raise."""
    found = optional_layout(tokenizer, turns, variables)
    return None if found is None else list(found.pieces)


@lru_cache(maxsize=256)
def _layout_of(tokenizer: Any, state: str, turns: tuple[Turn, ...], key: str) -> Layout | str:
    """Return the layout, or what is wrong: most conversations have the same turns and variables."""
    variables = json.loads(key)
    source = variables.get("chat_template") or tokenizer.chat_template
    if not source:
        return f"its tokenizer has no chat template; {_ALPACA}"
    if isinstance(source, dict) and "default" not in source:
        return (
            f"its tokenizer has several chat templates ({', '.join(source)}) and none is named "
            f"default; rename one to default, or {_ALPACA}"
        )
    texts = [turn.before + MARK.format(index) + turn.after for index, turn in enumerate(turns)]
    problems = []
    for form in _forms(turns):
        try:
            found = _cut(render(tokenizer, turns, texts, variables, form), turns, form)
        except InputError as error:
            problems.append(f"refuses a conversation of {_roles(turns)} ({error})")
            continue
        if isinstance(found, Layout):
            return found
        problems.append(found)
    # A text that is lost says more than the refusal of a form that the template does not take.
    lost = next((problem for problem in problems if not problem.startswith("refuses")), problems[0])
    simple = {turn.role for turn in turns} <= {"user", "assistant"} and len(turns) <= 2
    remedy = _ALPACA if simple else "leave such rows out, or choose a model with another template"
    return f"its chat template {lost}; {remedy}"


_ALPACA = "set model.chat_template: alpaca in the recipe"


def _roles(turns: Sequence[Turn]) -> str:
    return ", ".join(f"{turn.role} (tool calls)" if turn.silent else turn.role for turn in turns)


def _cut(text: str, turns: Sequence[Turn], form: Form) -> Layout | str:
    """Cut a rendering at its marks, or return what is wrong with it."""
    pieces, slots, end = [], [], 0
    for match in _MARKS.finditer(text):
        pieces.append(text[end : match.start()])
        slots.append(Slot(_keys(match.group())[0], list(_WAYS)[(match.lastindex or 1) - 1]))
        end = match.end()
    problem, left_out = _lost(slots, turns)
    if problem:
        return problem
    needed = {key for turn in turns for key in _keys(json.dumps(_tools(turn, form)))}
    if any(key.startswith("n") for key in needed - {slot.key for slot in slots}):
        return f"does not write every call of a tool in a conversation of {_roles(turns)}"
    return Layout((*pieces, text[end:]), tuple(slots), tuple(left_out))


def _lost(slots: Sequence[Slot], turns: Sequence[Turn]) -> tuple[str, list[int]]:
    """Return what a template does to the texts of turns, if anything; and which it may leave out.

    Only the turns of a user, and an assistant's answers, have to be plain and in order: templates
    may put a system prompt elsewhere, and write what tools return as JSON.
    """
    written = [(int(slot.key), slot.way) for slot in slots if slot.key.isdigit()]
    places = [index for index, _ in written]
    left_out = [
        index
        for index, turn in enumerate(turns)
        if turn.calls and not turn.silent and index not in places
    ]
    expected = [
        index for index, turn in enumerate(turns) if not turn.silent and index not in left_out
    ]
    if any(turns[index].role == "tool" for index in set(expected).difference(places)):
        return f"leaves out what tools return in a conversation of {_roles(turns)}", []
    spoken = [
        (index, way)
        for index, way in written
        if turns[index].role in ("user", "assistant") and not turns[index].calls
    ]
    in_order = [(index, "plain") for index, _ in sorted(spoken)]
    if sorted(places) != expected or spoken != in_order:
        return (
            "changes or reorders the text of messages, so special tokens in data could not be "
            "neutralized"
        ), []
    return "", left_out


# The template -------------------------------------------------------------------------------------


class Form(NamedTuple):
    """How messages are passed to a template; templates differ in what they take.

    Args:
        in_parts: each text as a list of parts. Templates of models with vision expect such a list,
            and drop or reject a plain string.
        arguments: of tool calls: an "object", as transformers documents, or JSON "text".
        silence: the text of a turn that only calls tools.
    """

    in_parts: bool = False
    arguments: str = "object"
    silence: str | None = ""


def _forms(turns: Sequence[Turn]) -> list[Form]:
    """Return the forms to try, the usual one first."""
    calls = any(turn.calls for turn in turns)
    silent = any(turn.silent for turn in turns)
    forms = product(
        (False, True), ("object", "text") if calls else ("object",), ("", None) if silent else ("",)
    )
    return [Form(*form) for form in forms]


def render(
    tokenizer: Any,
    turns: Sequence[Turn],
    texts: Sequence[str],
    variables: Mapping[str, Any],
    form: Form,
) -> str:
    """Return a template's rendering of a conversation.

    Args:
        tokenizer: a transformers tokenizer.
        turns: of the conversation.
        texts: of the turns.
        variables: of the template.
        form: how the messages are passed.

    Raises:
        InputError: the template fails.
    """
    from jinja2 import TemplateError

    conversation = [_message(turn, text, form) for turn, text in zip(turns, texts, strict=True)]
    try:
        rendered: str = tokenizer.apply_chat_template(conversation, tokenize=False, **variables)
    except (TemplateError, TypeError, ValueError, AttributeError, LookupError) as error:
        raise InputError(" ".join(str(error).split())[:200]) from error
    return rendered


def _message(turn: Turn, text: str, form: Form) -> dict[str, Any]:
    content: Any = [{"type": "text", "text": text}] if form.in_parts else text
    message = {"role": turn.role, "content": form.silence if turn.silent else content}
    if turn.thought:  # templates use one of these names
        message |= {"thinking": turn.thought, "reasoning_content": turn.thought}
    return message | _tools(turn, form)


def _tools(turn: Turn, form: Form) -> dict[str, Any]:
    """Return a turn's other fields in the form that a template takes."""
    fields: dict[str, Any] = json.loads(turn.tools) if turn.tools else {}
    for call in fields.get("tool_calls", ()):
        forms = call["function"]["arguments"]
        call["function"]["arguments"] = forms.get(form.arguments, forms["text"])
    return fields


def _keys(text: str) -> list[str]:
    """Return the keys of the marks in a text."""
    return re.findall(rf"(?<=:){_KEY}(?=\.*\\?'\\?\")", text)
