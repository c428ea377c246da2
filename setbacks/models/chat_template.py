"""From a conversation to token ids, with nothing changed on the way.

The chat template decides what a model reads: a training row is the template's rendering of the
whole conversation, and a prompt is the part of it before the answer's words. So a model learns
what it is later asked for, even where a template writes something between its generation prompt
and an answer, such as an empty thought. A model that is to think first gets the template's own
generation prompt instead (`setbacks.models.thinking`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from os.path import commonprefix
from typing import TYPE_CHECKING, Any, NamedTuple

from setbacks.errors import InputError
from setbacks.messages import with_system
from setbacks.models.fitting import Fitted, fitted
from setbacks.models.rendering import (
    ANSWER,
    MARK,
    USER,
    Turn,
    layout,
    optional_layout,
    optional_pieces,
    template_pieces,
)
from setbacks.models.thinking import Thinking, thinking_of
from setbacks.models.tokens import (
    MARKER,
    Part,
    control_tokens,
    controls_in,
    inner_ids,
    message_part,
    part_ids,
    plain,
    state_of,
    written,
)
from setbacks.notices import notice
from setbacks.prompts import Words, fill, prompts
from setbacks.records import Message

if TYPE_CHECKING:
    from setbacks.recipe import Engine
    from setbacks.records import Request

__all__ = [
    "encode",
    "encode_answer",
    "encode_request",
    "ending",
    "plain",
    "stop_tokens",
    "thinking_before",
    "written",
]

_THOUGHT = "\ue002"  # a private-use character: no template writes it


class Prompt(NamedTuple):
    """What comes before an answer's words: its parts and its ids.

    `blank` is white space between it and the first word, and is part of that word's token. `turns`
    show how the template renders an answer that follows.
    """

    parts: Sequence[Part]
    blank: str
    ids: list[int]
    turns: Sequence[Turn]


def encode(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    prefill: str = "",
    template: str = "own",
    words: Words | None = None,
    variables: Mapping[str, Any] | None = None,
    thinks: bool = False,
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
        thinks: end with the template's own generation prompt, so that the model can think first.

    Raises:
        InputError: the tokenizer has no chat template, or one that cannot be used.
    """
    prompt = _prompt(tokenizer, messages, template, words, variables or {}, thinks)
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
    variables: Mapping[str, Any] | None = None,
    thought: str | None = None,
    thinking: Thinking | None = None,
) -> tuple[list[int], list[int]]:
    """Return the ids of a prompt, and those of an answer to it with the end of the turn.

    Together they are the template's rendering of the conversation, up to the end of the turn.
    The prompt's ids are those of `encode`. An empty thought that a template writes before an answer
    is part of the prompt; a given thought is part of the answer.

    Args:
        tokenizer: a transformers tokenizer.
        messages: the turns before the answer.
        answer: the assistant's text.
        template: as in `encode`.
        words: as in `encode`.
        variables: as in `encode`.
        thought: the assistant's thought before its answer, if it is to be learned.
        thinking: how the model writes thoughts; needed with `thought`.

    Raises:
        InputError: as in `encode`; or no token ends the answer.
    """
    variables = variables or {}
    thinks = thought is not None and thinking is not None
    prompt = _prompt(tokenizer, messages, template, words, variables, thinks)
    end = turn_end(tokenizer) if template == "own" else TurnEnd()
    closing = end.text
    if template == "own":
        turns = prompt.turns
        *_, bare_opening, bare_tail = template_pieces(tokenizer, [*turns, ANSWER], variables)
        own = Turn.of("assistant", answer)
        *_, opening, tail = template_pieces(tokenizer, [*turns, own], variables)
        # White space at the ends of the answer, unless the template trims it.
        answer = opening.removeprefix(bare_opening) + answer.strip()
        closing = tail.removesuffix(bare_tail) + end.text
    rest = [message_part(prompt.blank + answer), Part(closing, False)]
    if thought is not None and thinking is not None:
        before, between = Part(thinking.before, False), Part(thinking.between, False)
        rest = [before, message_part(thought.strip()), between, *rest]
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
        variables={**spec.template, **request.template},
        thinks=not option and thinking_before(tokenizer, request, spec) is not None,
    )


def thinking_before(tokenizer: Any, request: Request, spec: Engine) -> Thinking | None:
    """Return how a model thinks before its answer to a request; None if it does not.

    An answer with a given beginning is begun without a thought, and a conversation that is only
    read is no question.
    """
    if request.prefill or request.reply is not None:
        return None
    return thinking_of(tokenizer, spec, request.template)


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
    thinks: bool = False,
) -> Prompt:
    if template != "own":
        return _alpaca(tokenizer, messages, words or prompts("en"))
    asked = fitted(tokenizer, messages, {"add_generation_prompt": True, **variables})
    for note in asked.notes:
        notice(f"{tokenizer.name_or_path}: its chat template {note}")
    parts = asked.layout.parts(asked.texts)
    if messages[-1].role == "assistant":  # a conversation to read, not to continue
        return _prompt_of(tokenizer, parts)
    turns, rendered = _before_answer(tokenizer, asked, variables)
    if thinks or rendered is None:
        return _prompt_of(tokenizer, parts, turns)
    *before, end = parts
    opening, blank = answer_opening(end.text, rendered)
    prompt = _prompt_of(tokenizer, [*before, Part(opening, False)], turns, blank)
    if opening == end.text:
        return prompt
    # Only this package asks with these words, so their ids are those before an answer.
    answer = message_part(blank + "I")
    tail = part_ids(tokenizer, [answer], inner=True)
    whole = part_ids(tokenizer, [*prompt.parts, answer])
    ids = whole[: -len(tail)]
    same = whole == ids + tail and tokenizer.decode(ids) == tokenizer.decode(prompt.ids)
    return prompt._replace(ids=ids) if same else prompt


def _alpaca(tokenizer: Any, messages: Sequence[Message], words: Words) -> Prompt:
    """Return a prompt in the paper's template."""
    if [message.role for message in messages] != ["user"]:
        raise InputError(
            "the alpaca template takes one instruction and nothing else, not a conversation of "
            f"{', '.join(message.role for message in messages)}; leave such rows out, and "
            "model.system too, or set model.chat_template: own for a model with a template"
        )
    filled = (tokenizer.bos_token or "") + fill(words["alpaca"], instruction=MARK.format(0))
    before, _, after = filled.partition(MARK.format(0))
    instruction = message_part(messages[0].content)
    return _prompt_of(tokenizer, [Part(before, False), instruction, Part(after, False)])


def _prompt_of(
    tokenizer: Any, parts: Sequence[Part], turns: Sequence[Turn] = (), blank: str = ""
) -> Prompt:
    return Prompt(parts, blank, part_ids(tokenizer, parts), turns)


def _before_answer(
    tokenizer: Any, asked: Fitted, variables: Mapping[str, Any]
) -> tuple[list[Turn], str | None]:
    """Return turns that a template can render with an answer, and what it then writes before it.

    They are those of the conversation, unless the template writes these turns differently where an
    answer follows: Mistral's drop the system prompt there. One user turn shows the same end. The
    text is None if the template cannot render answers.
    """
    variables = {**variables, "add_generation_prompt": False}
    answered = optional_layout(tokenizer, [*asked.turns, ANSWER], variables)
    if answered is not None and answered.pieces[:-2] == asked.layout.pieces[:-1]:
        return asked.turns, answered.pieces[-2]
    answered = optional_layout(tokenizer, [USER, ANSWER], variables)
    if answered is None:
        return [USER], None
    question = layout(tokenizer, [USER], {**variables, "add_generation_prompt": True})
    generated, rendered = question.pieces[-1], answered.pieces[-2]
    shared = len(commonprefix([generated, rendered]))
    end = asked.layout.pieces[-1].removesuffix(generated[shared:])
    return [USER], end + rendered[shared:]


def answer_opening(generated: str, rendered: str) -> tuple[str, str]:
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
    text = turn_end(tokenizer).text if template == "own" else ""
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
    return stops | (turn_end(tokenizer).stops if template == "own" else set())


def _eos(tokenizer: Any) -> int:
    eos: int | None = tokenizer.eos_token_id
    if eos is None:
        raise InputError(
            f"{tokenizer.name_or_path}: no token ends an answer: the tokenizer has no eos_token, "
            "and the chat template writes no special token after an answer; set eos_token in "
            "tokenizer_config.json"
        )
    return eos


def turn_end(tokenizer: Any) -> TurnEnd:
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
    in_turn, names = _after_thoughts(tokenizer), control_tokens(tokenizer).names

    def ends(text: str) -> list[int]:
        return [
            token
            for token in controls_in(tokenizer, text)
            if token not in in_turn and names[token] in text
        ]

    def up_to(text: str, token: int) -> TurnEnd:
        name = names[token]
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
