"""From a conversation to token ids, with nothing changed on the way.

The chat template decides what a model reads: a training row is the template's rendering of the
whole conversation, and a prompt is the part of it before the answer's words. So a model learns
what it is later asked for, even where a template writes something between its generation prompt
and an answer, such as an empty thought.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from os.path import commonprefix
from typing import TYPE_CHECKING, Any, NamedTuple

from setbacks.errors import InputError
from setbacks.models.rendering import (
    ANSWER,
    MARK,
    USER,
    Turn,
    join_parts,
    optional_pieces,
    render,
    template_pieces,
)
from setbacks.models.tokens import (
    MARKER,
    Part,
    controls_in,
    inner_ids,
    message_part,
    part_ids,
    plain,
    state_of,
    token_name,
    written,
)
from setbacks.prompts import fill, prompts
from setbacks.records import Message

if TYPE_CHECKING:
    from setbacks.recipe import Engine
    from setbacks.records import Request

__all__ = [
    "chat_notes",
    "check_chat",
    "encode",
    "encode_answer",
    "encode_request",
    "ending",
    "plain",
    "stop_tokens",
    "written",
]

log = logging.getLogger(__name__)

_THOUGHT = "\ue002"  # a private-use character: no template writes it
# Text with everything that a template might change: capitals, quotes, blank lines, signs.
_TRICKY = 'Say "Ab",\n\n1 < 2 & 3.'


class Prompt(NamedTuple):
    """What comes before an answer's words: its parts and its ids.

    `blank` is written between it and the first word, and is part of that word's token.
    """

    parts: Sequence[Part]
    blank: str
    ids: list[int]


def encode(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    prefill: str = "",
    template: str = "own",
    language: str = "en",
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """Return the ids of a prompt that ends where the assistant begins to speak.

    Args:
        tokenizer: a transformers tokenizer.
        messages: the turns so far.
        prefill: how the assistant's turn begins, where it is begun for the model.
        template: "own" for the tokenizer's chat template, "alpaca" for the paper's.
        language: which Alpaca template.
        variables: more variables for the tokenizer's own template, as `apply_chat_template` takes
            them; among them may be another `chat_template`.

    Raises:
        InputError: the tokenizer has no chat template, or one that cannot be used.
    """
    prompt = _prompt(tokenizer, messages, template, language, variables or {})
    if not prefill:
        return prompt.ids
    return prompt.ids + _following(tokenizer, prompt, [message_part(prompt.blank + prefill)])


def encode_answer(
    tokenizer: Any,
    messages: Sequence[Message],
    answer: str,
    *,
    template: str = "own",
    language: str = "en",
) -> tuple[list[int], list[int]]:
    """Return the ids of a prompt, and those of an answer to it and of the end of the turn.

    Together they are the template's own rendering of the conversation, up to the end of the turn.
    The prompt's ids are those of `encode`.

    Args:
        tokenizer: a transformers tokenizer.
        messages: the turns before the answer.
        answer: what the assistant says.
        template: as in `encode`.
        language: as in `encode`.

    Raises:
        InputError: as in `encode`; or nothing would end the answer.
    """
    prompt = _prompt(tokenizer, messages, template, language, {})
    end = _turn_end(tokenizer) if template == "own" else TurnEnd()
    closing = end.text
    if template == "own":
        turns = [Turn.of(message.role, message.content) for message in messages]
        *_, bare_opening, bare_tail = template_pieces(tokenizer, [*turns, ANSWER])
        *_, opening, tail = template_pieces(tokenizer, [*turns, Turn.of("assistant", answer)])
        # Blanks at the answer's ends, unless the template trims them.
        answer = opening.removeprefix(bare_opening) + answer.strip()
        closing = tail.removesuffix(bare_tail) + end.text
    rest = [message_part(prompt.blank + answer), Part(closing, False)]
    said = _following(tokenizer, prompt, rest)
    return prompt.ids, said if end.text else [*said, _eos(tokenizer)]


def encode_request(
    tokenizer: Any, request: Request, spec: Engine, language: str, option: str = ""
) -> list[int]:
    """Return the ids of a request, and of an option after its prefill."""
    turns = [Message(role="user", content=request.prompt)]
    if request.reply is not None:
        turns.append(Message(role="assistant", content=request.reply))
    return encode(
        tokenizer,
        turns,
        prefill=request.prefill + option,
        template=spec.chat_template,
        language=language,
        variables=request.template,
    )


def _following(tokenizer: Any, prompt: Prompt, rest: Sequence[Part]) -> list[int]:
    """Return the ids of what follows a prompt."""
    whole = part_ids(tokenizer, [*prompt.parts, *rest])
    if whole[: len(prompt.ids)] == prompt.ids:
        return whole[len(prompt.ids) :]
    # The tokenizer would join the end of the prompt to what follows; a model that is asked sees the
    # prompt alone.
    return part_ids(tokenizer, rest, inner=True)


# The prompt ---------------------------------------------------------------------------------------


def _prompt(
    tokenizer: Any,
    messages: Sequence[Message],
    template: str,
    language: str,
    variables: Mapping[str, Any],
) -> Prompt:
    if template != "own":
        if [message.role for message in messages] != ["user"]:
            raise InputError("the alpaca template has room for one instruction and nothing else")
        filled = fill(prompts(language)["alpaca"], instruction=MARK.format(0))
        pieces = ((tokenizer.bos_token or "") + filled).split(MARK.format(0))
        return _as_asked(tokenizer, join_parts(pieces, [messages[0].content]))
    turns = [Turn.of(message.role, message.content) for message in messages]
    texts = [message.content.strip() for message in messages]
    asked = template_pieces(tokenizer, turns, {"add_generation_prompt": True, **variables})
    if turns[-1].role == "assistant":  # a conversation to be read, and not one to go on with
        return _as_asked(tokenizer, join_parts(asked, texts))
    rendered = optional_pieces(
        tokenizer, [*turns, ANSWER], {**variables, "add_generation_prompt": False}
    )
    if rendered is None:  # it renders no answers
        return _as_asked(tokenizer, join_parts(asked, texts))
    *before, opening, _ = rendered
    opening, blank = _opening(asked[-1], opening)
    prompt = _as_asked(tokenizer, join_parts([*before, opening], texts), blank)
    if opening == asked[-1]:
        return prompt
    # Nobody else asks with these words, so their ids are those that they have before an answer.
    answer = message_part(blank + "I")
    tail = part_ids(tokenizer, [answer], inner=True)
    whole = part_ids(tokenizer, [*prompt.parts, answer])
    ids = whole[: -len(tail)]
    same = whole == ids + tail and tokenizer.decode(ids) == tokenizer.decode(prompt.ids)
    return prompt._replace(ids=ids) if same else prompt


def _as_asked(tokenizer: Any, parts: Sequence[Part], blank: str = "") -> Prompt:
    return Prompt(parts, blank, part_ids(tokenizer, parts))


def _opening(asked: str, rendered: str) -> tuple[str, str]:
    """Return what a template writes before an answer, and a blank that belongs to its first word.

    Args:
        asked: how its generation prompt ends.
        rendered: what it writes before an answer when it renders one.
    """
    if asked == rendered:
        return asked, ""
    more = MARKER.findall(asked.removeprefix(rendered)) if asked.startswith(rendered) else []
    # A thought that is opened and closed, which answers of the past are rendered without.
    if len(more) > 1 or any("/" in marker for marker in more):
        return asked, ""
    opening = rendered.rstrip(" ")  # tokenizers join a blank to the word after it
    return opening, rendered[len(opening) :]


# The end of a turn --------------------------------------------------------------------------------


class TurnEnd(NamedTuple):
    """How a chat template ends an assistant's turn.

    `text` is what it writes after an answer, up to a control token that ends the turn; it is empty
    if there is none. `stops` are the ids of which each ends a turn.
    """

    text: str = ""
    stops: frozenset[int] = frozenset()


def ending(tokenizer: Any, template: str = "own") -> list[int]:
    """Return the ids with which an assistant's turn ends.

    They are what the template writes after an answer, up to the token that ends the turn: what
    follows (often a newline) is never generated, so nothing should learn it.

    Raises:
        InputError: there is no such token.
    """
    text = _turn_end(tokenizer).text if template == "own" else ""
    return inner_ids(tokenizer, text) if text else [_eos(tokenizer)]


def stop_tokens(model: Any, tokenizer: Any, template: str = "own") -> set[int]:
    """Return the ids that end a turn: by the generation config, the tokenizer, and the template.

    Args:
        model: a transformers model, or None where its generation config is heeded elsewhere.
        tokenizer: its tokenizer.
        template: as in `encode`.
    """
    configured = None if model is None else model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    found = {token for token in [*listed, tokenizer.eos_token_id] if token is not None}
    return found | (_turn_end(tokenizer).stops if template == "own" else set())


def _eos(tokenizer: Any) -> int:
    eos: int | None = tokenizer.eos_token_id
    if eos is None:
        raise InputError(
            f"{tokenizer.name_or_path}: nothing ends an answer: its tokenizer names no eos_token, "
            "and its chat template writes no special token after an answer; set eos_token in "
            "tokenizer_config.json"
        )
    return eos


def _turn_end(tokenizer: Any) -> TurnEnd:
    return _turn_end_of(tokenizer, state_of(tokenizer))


@lru_cache(maxsize=16)
def _turn_end_of(tokenizer: Any, state: str) -> TurnEnd:
    """Find the end of a turn in what the template writes after an answer.

    After the last answer a template may write more, such as the eos; in the middle of a
    conversation the next turn follows. What both share belongs to the turn.
    """
    if not tokenizer.chat_template:
        return TurnEnd()
    rendered = optional_pieces(tokenizer, [USER, ANSWER])
    if rendered is None:  # it renders no answers
        return TurnEnd()
    last = rendered[2]
    middle = (optional_pieces(tokenizer, [USER, ANSWER, USER]) or [""] * 3)[2]
    in_turn = _after_thoughts(tokenizer)

    def ends(text: str) -> list[int]:
        return [
            token
            for token in controls_in(tokenizer, text)
            if token not in in_turn and token_name(tokenizer, token) in text
        ]

    def up_to(text: str, token: int) -> TurnEnd:
        name = token_name(tokenizer, token)
        return TurnEnd(text[: text.rindex(name) + len(name)], frozenset([token]))

    shared = commonprefix([last, middle])
    if found := ends(shared):
        return up_to(shared, found[-1])
    if found := ends(last):
        return up_to(last, found[0])
    return TurnEnd("", frozenset(ends(middle)[:1]))  # the next turn's beginning ends this one


def _after_thoughts(tokenizer: Any) -> set[int]:
    """Return the control tokens between a thought and an answer: they end no turn."""
    rendered = optional_pieces(tokenizer, [USER, ANSWER._replace(thought=_THOUGHT)])
    _, found, after = rendered[1].rpartition(_THOUGHT) if rendered else ("", "", "")
    return set(controls_in(tokenizer, after)) if found else set()


# Before any work ----------------------------------------------------------------------------------


def check_chat(tokenizer: Any, spec: Engine, *, trains: bool = True) -> None:
    """Check that conversations can be put to a model, and, where it is trained, learned.

    What its template does that a user should know is logged as a warning.

    Args:
        tokenizer: the model's tokenizer.
        spec: names the model and its template.
        trains: whether answers are learned, too.

    Raises:
        InputError: as `chat_notes`.
    """
    for note in chat_notes(tokenizer, spec, trains=trains):
        log.warning("%s: %s", spec.model, note)


def chat_notes(tokenizer: Any, spec: Engine, *, trains: bool = True) -> list[str]:
    """Check as `check_chat`, and return what a user should know of the template.

    Raises:
        InputError: there is no usable chat template, or nothing would end an answer.
    """
    notes: list[str] = []
    if spec.chat_template == "own":
        asked = template_pieces(tokenizer, [USER], {"add_generation_prompt": True})
        learn = template_pieces if trains else optional_pieces
        rendered = learn(tokenizer, [USER, ANSWER])
        turns = [USER] if rendered is None else [USER, ANSWER]
        _check_unchanged(tokenizer, turns, rendered or template_pieces(tokenizer, [USER]))
        notes += _warnings(tokenizer, asked, rendered)
    if trains:
        ending(tokenizer, spec.chat_template)
    return notes


def _check_unchanged(tokenizer: Any, turns: Sequence[Turn], pieces: Sequence[str]) -> None:
    """Refuse a template that changes texts: marks may pass where capitals and quotes do not."""
    expected = "".join(part.text for part in join_parts(pieces, [_TRICKY] * len(turns)))
    for in_parts in (False, True):
        try:
            rendered = render(tokenizer, turns, [_TRICKY] * len(turns), {}, in_parts)
        except InputError:
            continue
        if rendered == expected:
            return
    raise InputError(
        f"{tokenizer.name_or_path}: its chat template changes the text of messages, such as "
        "capitals, quotes or line breaks; set model.chat_template: alpaca in the recipe"
    )


def _warnings(
    tokenizer: Any, asked: Sequence[str], rendered: Sequence[str] | None
) -> Iterator[str]:
    """Yield what a user should know of a template.

    Args:
        tokenizer: a transformers tokenizer.
        asked: its pieces around a question, with its generation prompt.
        rendered: its pieces around a question and an answer; None if it renders no answers.
    """
    if "strftime_now" in str(tokenizer.chat_template):
        yield (
            "its chat template writes today's date into prompts; a run that is resumed on another "
            "day asks the rest with that day's date"
        )
    if rendered is None:
        return
    opening, _ = _opening(asked[-1], rendered[1])
    shared = len(commonprefix([opening, asked[-1]]))
    if more := opening[shared:].strip():
        yield (
            f"its chat template writes {more!r} before an answer, and its generation prompt does "
            "not; prompts here end with it, so the model is asked for an answer without a thought"
        )
    elif more := asked[-1][shared:].strip():
        yield (
            f"its generation prompt ends with {more!r}, and its rendering of an answer does not "
            "have it; prompts here leave it out, and the model may still think before it answers"
        )
    if not any(_turn_end(tokenizer)):
        yield (
            "its chat template ends an answer with no special token; an answer ends only where the "
            f"model writes {tokenizer.eos_token or 'one of its generation config'}"
        )
