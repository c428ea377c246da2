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
from setbacks.messages import with_system
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
from setbacks.prompts import Words, fill, prompts
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

    `blank` is white space between it and the first word, and is part of that word's token.
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
    words: Words | None = None,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """Return the ids of a prompt that ends where the assistant's answer begins.

    Args:
        tokenizer: a transformers tokenizer.
        messages: the turns so far.
        prefill: the given beginning of the assistant's turn.
        template: "own" for the tokenizer's chat template, "alpaca" for the paper's.
        words: those of the Alpaca template; None for English.
        variables: more variables for the tokenizer's template, as in `apply_chat_template`; another
            `chat_template` may be among them.

    Raises:
        InputError: the tokenizer has no chat template, or one that cannot be used.
    """
    prompt = _prompt(tokenizer, messages, template, words, variables or {})
    if not prefill:
        return prompt.ids
    return prompt.ids + _following(tokenizer, prompt, [message_part(prompt.blank + prefill)])


def encode_answer(
    tokenizer: Any,
    messages: Sequence[Message],
    answer: str,
    *,
    template: str = "own",
    words: Words | None = None,
) -> tuple[list[int], list[int]]:
    """Return the ids of a prompt, and those of an answer to it with the end of the turn.

    Together they are the template's rendering of the conversation, up to the end of the turn.
    The prompt's ids are those of `encode`.

    Args:
        tokenizer: a transformers tokenizer.
        messages: the turns before the answer.
        answer: the assistant's text.
        template: as in `encode`.
        words: as in `encode`.

    Raises:
        InputError: as in `encode`; or no token ends the answer.
    """
    prompt = _prompt(tokenizer, messages, template, words, {})
    end = _turn_end(tokenizer) if template == "own" else TurnEnd()
    closing = end.text
    if template == "own":
        turns = [Turn.of(message.role, message.content) for message in messages]
        *_, bare_opening, bare_tail = template_pieces(tokenizer, [*turns, ANSWER])
        *_, opening, tail = template_pieces(tokenizer, [*turns, Turn.of("assistant", answer)])
        # White space at the ends of the answer, unless the template trims it.
        answer = opening.removeprefix(bare_opening) + answer.strip()
        closing = tail.removesuffix(bare_tail) + end.text
    rest = [message_part(prompt.blank + answer), Part(closing, False)]
    completion = _following(tokenizer, prompt, rest)
    return prompt.ids, completion if end.text else [*completion, _eos(tokenizer)]


def encode_request(
    tokenizer: Any, request: Request, spec: Engine, words: Words, option: str = ""
) -> list[int]:
    """Return the ids of a request, and of an option after its prefill."""
    return encode(
        tokenizer,
        with_system(request.turns, spec.system),
        prefill=request.prefill + option,
        template=spec.chat_template,
        words=words,
        variables=request.template,
    )


def _following(tokenizer: Any, prompt: Prompt, rest: Sequence[Part]) -> list[int]:
    """Return the ids of what follows a prompt."""
    whole = part_ids(tokenizer, [*prompt.parts, *rest])
    if whole[: len(prompt.ids)] == prompt.ids:
        return whole[len(prompt.ids) :]
    # The tokenizer would merge the end of the prompt with what follows; in generation, a model sees
    # the prompt alone.
    return part_ids(tokenizer, rest, inner=True)


# The prompt ---------------------------------------------------------------------------------------


def _prompt(
    tokenizer: Any,
    messages: Sequence[Message],
    template: str,
    words: Words | None,
    variables: Mapping[str, Any],
) -> Prompt:
    if template != "own":
        if [message.role for message in messages] != ["user"]:
            raise InputError("the alpaca template takes one instruction and nothing else")
        filled = fill((words or prompts("en"))["alpaca"], instruction=MARK.format(0))
        pieces = ((tokenizer.bos_token or "") + filled).split(MARK.format(0))
        return _prompt_of(tokenizer, join_parts(pieces, [messages[0].content]))
    turns = [Turn.of(message.role, message.content) for message in messages]
    texts = [message.content.strip() for message in messages]
    question = template_pieces(tokenizer, turns, {"add_generation_prompt": True, **variables})
    if turns[-1].role == "assistant":  # a conversation to read, not to continue
        return _prompt_of(tokenizer, join_parts(question, texts))
    rendered = optional_pieces(
        tokenizer, [*turns, ANSWER], {**variables, "add_generation_prompt": False}
    )
    if rendered is None:  # it cannot render answers
        return _prompt_of(tokenizer, join_parts(question, texts))
    *before, opening, _ = rendered
    opening, blank = _opening(question[-1], opening)
    prompt = _prompt_of(tokenizer, join_parts([*before, opening], texts), blank)
    if opening == question[-1]:
        return prompt
    # Only this package asks with these words, so their ids are those before an answer.
    answer = message_part(blank + "I")
    tail = part_ids(tokenizer, [answer], inner=True)
    whole = part_ids(tokenizer, [*prompt.parts, answer])
    ids = whole[: -len(tail)]
    same = whole == ids + tail and tokenizer.decode(ids) == tokenizer.decode(prompt.ids)
    return prompt._replace(ids=ids) if same else prompt


def _prompt_of(tokenizer: Any, parts: Sequence[Part], blank: str = "") -> Prompt:
    return Prompt(parts, blank, part_ids(tokenizer, parts))


def _opening(generated: str, rendered: str) -> tuple[str, str]:
    """Return what a template writes before an answer, and a space that belongs to its first word.

    Args:
        generated: the end of its generation prompt.
        rendered: what it writes before an answer when it renders one.
    """
    if generated == rendered:
        return generated, ""
    more = (
        MARKER.findall(generated.removeprefix(rendered)) if generated.startswith(rendered) else []
    )
    # A thought that is opened and closed; earlier answers are rendered without it.
    if len(more) > 1 or any("/" in marker for marker in more):
        return generated, ""
    opening = rendered.rstrip(" ")  # tokenizers merge a space with the word after it
    return opening, rendered[len(opening) :]


# The end of a turn --------------------------------------------------------------------------------


class TurnEnd(NamedTuple):
    """How a chat template ends an assistant's turn.

    `text` is what it writes after an answer, up to a control token that ends the turn; it is empty
    if there is none. `stops` are the ids that end a turn.
    """

    text: str = ""
    stops: frozenset[int] = frozenset()


def ending(tokenizer: Any, template: str = "own") -> list[int]:
    """Return the ids with which an assistant's turn ends.

    They are what the template writes after an answer, up to the token that ends the turn: what
    follows (often a newline) is never generated, so it should not be learned.

    Raises:
        InputError: there is no such token.
    """
    text = _turn_end(tokenizer).text if template == "own" else ""
    return inner_ids(tokenizer, text) if text else [_eos(tokenizer)]


def stop_tokens(model: Any, tokenizer: Any, template: str = "own") -> set[int]:
    """Return the ids that end a turn, from the generation config, the tokenizer, and the template.

    Args:
        model: a transformers model; None if its generation config is applied elsewhere.
        tokenizer: its tokenizer.
        template: as in `encode`.
    """
    configured = None if model is None else model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    stops = {token for token in [*listed, tokenizer.eos_token_id] if token is not None}
    return stops | (_turn_end(tokenizer).stops if template == "own" else set())


def _eos(tokenizer: Any) -> int:
    eos: int | None = tokenizer.eos_token_id
    if eos is None:
        raise InputError(
            f"{tokenizer.name_or_path}: no token ends an answer: the tokenizer has no eos_token, "
            "and the chat template writes no special token after an answer; set eos_token in "
            "tokenizer_config.json"
        )
    return eos


def _turn_end(tokenizer: Any) -> TurnEnd:
    return _turn_end_of(tokenizer, state_of(tokenizer))


@lru_cache(maxsize=16)
def _turn_end_of(tokenizer: Any, state: str) -> TurnEnd:
    """Find the end of a turn in what the template writes after an answer.

    After the last answer a template may write more, such as the eos token; in the middle of a
    conversation the next turn follows. What both have in common belongs to the turn.
    """
    if not tokenizer.chat_template:
        return TurnEnd()
    rendered = optional_pieces(tokenizer, [USER, ANSWER])
    if rendered is None:  # it cannot render answers
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
    if tokens := ends(shared):
        return up_to(shared, tokens[-1])
    if tokens := ends(last):
        return up_to(last, tokens[0])
    return TurnEnd("", frozenset(ends(middle)[:1]))  # the beginning of the next turn ends this one


def _after_thoughts(tokenizer: Any) -> set[int]:
    """Return the control tokens between a thought and an answer: they do not end a turn."""
    rendered = optional_pieces(tokenizer, [USER, ANSWER._replace(thought=_THOUGHT)])
    _, thought, after = rendered[1].rpartition(_THOUGHT) if rendered else ("", "", "")
    return set(controls_in(tokenizer, after)) if thought else set()


# Before any work ----------------------------------------------------------------------------------


def check_chat(tokenizer: Any, spec: Engine, *, trains: bool = True) -> None:
    """Check that a model can take conversations and, if it is trained, learn them.

    What a user should know about its template is logged as a warning.

    Args:
        tokenizer: the model's tokenizer.
        spec: the model and its template.
        trains: whether the model is trained too.

    Raises:
        InputError: as `chat_notes`.
    """
    for note in chat_notes(tokenizer, spec, trains=trains):
        log.warning("%s: %s", spec.model, note)


def chat_notes(tokenizer: Any, spec: Engine, *, trains: bool = True) -> list[str]:
    """Check as `check_chat`, and return what a user should know about the template.

    Raises:
        InputError: there is no usable chat template, or no token ends an answer.
    """
    notes: list[str] = []
    if spec.chat_template == "own":
        question = template_pieces(tokenizer, [USER], {"add_generation_prompt": True})
        learn = template_pieces if trains else optional_pieces
        rendered = learn(tokenizer, [USER, ANSWER])
        turns = [USER] if rendered is None else [USER, ANSWER]
        _check_unchanged(tokenizer, turns, rendered or template_pieces(tokenizer, [USER]))
        notes += _warnings(tokenizer, question, rendered)
    if trains:
        ending(tokenizer, spec.chat_template)
    return notes


def _check_unchanged(tokenizer: Any, turns: Sequence[Turn], pieces: Sequence[str]) -> None:
    """Reject a template that changes texts: it may keep marks but change capitals and quotes."""
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
    tokenizer: Any, question: Sequence[str], rendered: Sequence[str] | None
) -> Iterator[str]:
    """Yield what a user should know about a template.

    Args:
        tokenizer: a transformers tokenizer.
        question: its pieces around a question, with its generation prompt.
        rendered: its pieces around a question and an answer; None if it cannot render answers.
    """
    if "strftime_now" in str(tokenizer.chat_template):
        yield (
            "its chat template writes today's date into prompts; a run that is resumed on another "
            "day uses that day's date for the rest"
        )
    if rendered is None:
        return
    opening, _ = _opening(question[-1], rendered[1])
    shared = len(commonprefix([opening, question[-1]]))
    if more := opening[shared:].strip():
        yield (
            f"its chat template writes {more!r} before an answer, but its generation prompt "
            "does not; prompts here end with it, so the model answers without a thought"
        )
    elif more := question[-1][shared:].strip():
        yield (
            f"its generation prompt ends with {more!r}, but its rendering of an answer does not; "
            "prompts here omit it, and the model may still think before it answers"
        )
    if not any(_turn_end(tokenizer)):
        yield (
            "its chat template writes no special token after an answer; an answer ends only where "
            f"the model generates {tokenizer.eos_token or 'a stop token of its generation config'}"
        )
