"""From a conversation to token ids and back, with nothing changed on the way.

The chat template itself says what a model reads: a training row is its own rendering of the whole
conversation, and a prompt is the part of that which comes before the answer's words. So a model
learns what it is asked for, even where a template writes something between its generation prompt
and an answer, such as an empty thought.

A template marks turns with special tokens. Only its own words may become such tokens: a user who
writes one would end the turn and start another. So text that spells a special token stays text.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from os.path import commonprefix
from typing import TYPE_CHECKING, Any, NamedTuple

from setbacks.errors import InputError
from setbacks.prompts import fill, prompts
from setbacks.records import Message

if TYPE_CHECKING:
    from setbacks.recipe import Engine
    from setbacks.records import Request

log = logging.getLogger(__name__)

# Private-use characters: no template writes them.
_MARK, _THOUGHT = "\ue000{}\ue001", "\ue002"
_MARKER = re.compile(r"[<\[{][^<>\[\]{}]+[>\]}]")  # how control tokens are spelled
# Text with all that a template might change: capitals, quotes, blank lines, signs.
_TRICKY = 'Say "Ab",\n\n1 < 2 & 3.'


class Part(NamedTuple):
    """A part of a rendered conversation: the template's own words, or the text of a message."""

    text: str
    is_message: bool


class Prompt(NamedTuple):
    """What comes before an answer's words: its parts and its ids.

    `blank` is written between it and the first word, and is part of that word's token.
    """

    parts: Sequence[Part]
    blank: str
    ids: list[int]


class Turn(NamedTuple):
    """What a template is shown of a message: its role, and the blanks at either end of its text.

    The text itself is replaced by a mark, so a template cannot change it. Blanks are shown because
    many templates trim them.
    """

    role: str
    before: str = ""
    after: str = ""
    thought: str = ""  # some templates render a thought that comes with an answer

    @classmethod
    def of(cls, role: str, text: str) -> Turn:
        """Return what a template is shown of a message."""
        core = text.strip()
        before, _, after = text.partition(core) if core else (text, "", "")
        return cls(role, before, after)


_USER, _ANSWER = Turn("user"), Turn("assistant")


# To ids ------------------------------------------------------------------------------------------


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
    return prompt.ids + _following(tokenizer, prompt, [_message(prompt.blank + prefill)])


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
        *_, bare_opening, bare_tail = _pieces(tokenizer, [*turns, _ANSWER])
        *_, opening, tail = _pieces(tokenizer, [*turns, Turn.of("assistant", answer)])
        # Blanks at the answer's ends, unless the template trims them.
        answer = opening.removeprefix(bare_opening) + answer.strip()
        closing = tail.removesuffix(bare_tail) + end.text
    rest = [_message(prompt.blank + answer), Part(closing, False)]
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


def plain(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a text that follows another, in which nothing is a special token.

    A lone surrogate, which JSON can hold and no tokenizer can, becomes a replacement character.
    """
    if not text:
        return []
    text = _encodable(text)
    ids = _inner(tokenizer, text, split_special_tokens=True)
    spelled = _controls(tokenizer).ids.intersection(ids)
    if not spelled or len(text) == 1:
        return ids
    # The tokenizer does not split tokens that it does not call special: cut them here.
    names = [_name(tokenizer, token) for token in spelled]
    inside = "|".join(f"(?<={re.escape(name[0])})(?={re.escape(name[1:])})" for name in names)
    parts = [part for part in re.split(inside, text) if part]
    pieces: Sequence[str] = parts if len(parts) > 1 else text  # one by one, if spelled otherwise
    return [token for piece in pieces for token in plain(tokenizer, piece)]


def _ids(tokenizer: Any, parts: Sequence[Part], *, inner: bool = False) -> list[int]:
    """Return the ids of a rendered conversation, as `apply_chat_template` gives them.

    Where a message spells a control token, the parts are tokenized apart instead.

    Args:
        tokenizer: a transformers tokenizer.
        parts: of the conversation.
        inner: they do not begin it.
    """
    if not any(part.is_message and _spells_control(tokenizer, part.text) for part in parts):
        parts = [Part("".join(part.text for part in parts), False)]
    ids: list[int] = []
    for part in parts:
        if part.is_message:
            ids += plain(tokenizer, part.text)
        else:
            ids += (_inner if inner else _raw)(tokenizer, part.text)
        inner = True
    return ids


def _following(tokenizer: Any, prompt: Prompt, rest: Sequence[Part]) -> list[int]:
    """Return the ids of what follows a prompt."""
    whole = _ids(tokenizer, [*prompt.parts, *rest])
    if whole[: len(prompt.ids)] == prompt.ids:
        return whole[len(prompt.ids) :]
    # The tokenizer would join the end of the prompt to what follows; a model that is asked sees the
    # prompt alone.
    return _ids(tokenizer, rest, inner=True)


def _raw(tokenizer: Any, text: str, **options: Any) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, **options)["input_ids"]
    return ids


def _inner(tokenizer: Any, text: str, **options: Any) -> list[int]:
    """Return the ids of a text that follows another.

    SentencePiece puts a blank before the first word of whatever it is given, so the text is
    tokenized after a character that does not join it.
    """
    puts_blank = _raw(tokenizer, "\nx")[len(_raw(tokenizer, "\n")) :] != _raw(tokenizer, "x")
    for other in ("\n", ".", "x") if puts_blank else ():
        before = _raw(tokenizer, other)
        ids = _raw(tokenizer, other + text, **options)
        if ids[: len(before)] == before:
            return ids[len(before) :]
    return _raw(tokenizer, text, **options)


def _message(text: str) -> Part:
    return Part(_encodable(text), True)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


class Controls(NamedTuple):
    """The tokens that text must not become: they steer a model, and are not words."""

    ids: frozenset[int]
    spelled: re.Pattern[str]  # any of them, in folded text


def _spells_control(tokenizer: Any, text: str) -> bool:
    controls = _controls(tokenizer)
    # Most texts do not look like it, and need not be tokenized to know.
    looks_so = controls.spelled.search(_folded(text))
    return bool(looks_so) and not controls.ids.isdisjoint(_raw(tokenizer, text))


def _folded(text: str) -> str:
    """A text without the differences that a tokenizer's normalizer may remove."""
    return unicodedata.normalize("NFKC", text).casefold()


def _controls(tokenizer: Any) -> Controls:
    return _controls_of(tokenizer, _state(tokenizer))


@lru_cache(maxsize=16)
def _controls_of(tokenizer: Any, state: str) -> Controls:
    """Find the special tokens, and the added tokens that are not called so but look like them.

    The second kind has `<think>` in it, which Qwen3 does not flag as special. It leaves out what a
    tokenizer has as added tokens and uses as words, such as Gemma's line breaks and HTML tags.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    template = str(tokenizer.chat_template)

    def looks_like_control(name: str) -> bool:
        word = backend is not None and backend.model.token_to_id(name) is not None
        return bool(_MARKER.fullmatch(name)) and (name in template or not word)

    ids = set(tokenizer.all_special_ids)
    for token, added in tokenizer.added_tokens_decoder.items():
        if added.special or looks_like_control(added.content):
            ids.add(token)
    names = sorted(_folded(_name(tokenizer, token)) for token in ids)
    return Controls(frozenset(ids), re.compile("|".join(map(re.escape, names)) or "(?!)"))


def _name(tokenizer: Any, token: int) -> str:
    """How a token is spelled; its form in the vocabulary may be a normalized one."""
    added = tokenizer.added_tokens_decoder.get(token)
    return str(added.content if added else tokenizer.convert_ids_to_tokens(token))


def _state(tokenizer: Any) -> str:
    """What a tokenizer's renderings depend on; it can be changed after loading."""
    return f"{tokenizer.chat_template}\0{tokenizer.special_tokens_map}\0{len(tokenizer)}"


# The end of a turn -------------------------------------------------------------------------------


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
    return _inner(tokenizer, text) if text else [_eos(tokenizer)]


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
    return _turn_end_of(tokenizer, _state(tokenizer))


@lru_cache(maxsize=16)
def _turn_end_of(tokenizer: Any, state: str) -> TurnEnd:
    """Find the end of a turn in what the template writes after an answer.

    After the last answer a template may write more, such as the eos; in the middle of a
    conversation the next turn follows. What both share belongs to the turn.
    """
    if not tokenizer.chat_template:
        return TurnEnd()
    rendered = _optional_pieces(tokenizer, [_USER, _ANSWER])
    if rendered is None:  # it renders no answers
        return TurnEnd()
    last = rendered[2]
    middle = (_optional_pieces(tokenizer, [_USER, _ANSWER, _USER]) or [""] * 3)[2]
    in_turn = _after_thoughts(tokenizer)

    def ends(text: str) -> list[int]:
        return [
            token
            for token in _controls_in(tokenizer, text)
            if token not in in_turn and _name(tokenizer, token) in text
        ]

    def up_to(text: str, token: int) -> TurnEnd:
        name = _name(tokenizer, token)
        return TurnEnd(text[: text.rindex(name) + len(name)], frozenset([token]))

    shared = commonprefix([last, middle])
    if found := ends(shared):
        return up_to(shared, found[-1])
    if found := ends(last):
        return up_to(last, found[0])
    return TurnEnd("", frozenset(ends(middle)[:1]))  # the next turn's beginning ends this one


def _after_thoughts(tokenizer: Any) -> set[int]:
    """Return the control tokens between a thought and an answer: they end no turn."""
    rendered = _optional_pieces(tokenizer, [_USER, _ANSWER._replace(thought=_THOUGHT)])
    _, found, after = rendered[1].rpartition(_THOUGHT) if rendered else ("", "", "")
    return set(_controls_in(tokenizer, after)) if found else set()


def _controls_in(tokenizer: Any, text: str) -> list[int]:
    controls = _controls(tokenizer).ids
    return [token for token in _raw(tokenizer, text) if token in controls]


# Back to text ------------------------------------------------------------------------------------


def written(tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int], prefill: str) -> str:
    """Return the text of an answer: its prefill, and what a model wrote after it.

    It is decoded together with its prompt: SentencePiece drops the blank before the first word of
    whatever it decodes.

    Args:
        tokenizer: a transformers tokenizer.
        prompt: the ids that the model was given, the prefill included.
        tokens: what it wrote.
        prefill: how the answer was begun for it.
    """
    text: str = tokenizer.decode(tokens, skip_special_tokens=True)
    if prefill:
        before = tokenizer.decode(prompt, skip_special_tokens=True)
        whole = tokenizer.decode([*prompt, *tokens], skip_special_tokens=True)
        if whole.startswith(before):
            text = whole[len(before) :]
    return (prefill + text).strip()


# What a template writes --------------------------------------------------------------------------


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
        filled = fill(prompts(language)["alpaca"], instruction=_MARK.format(0))
        pieces = ((tokenizer.bos_token or "") + filled).split(_MARK.format(0))
        return _as_asked(tokenizer, _parts(pieces, [messages[0].content]))
    turns = [Turn.of(message.role, message.content) for message in messages]
    texts = [message.content.strip() for message in messages]
    asked = _pieces(tokenizer, turns, {"add_generation_prompt": True, **variables})
    if turns[-1].role == "assistant":  # a conversation to be read, and not one to go on with
        return _as_asked(tokenizer, _parts(asked, texts))
    rendered = _optional_pieces(
        tokenizer, [*turns, _ANSWER], {**variables, "add_generation_prompt": False}
    )
    if rendered is None:  # it renders no answers
        return _as_asked(tokenizer, _parts(asked, texts))
    *before, opening, _ = rendered
    opening, blank = _opening(asked[-1], opening)
    prompt = _as_asked(tokenizer, _parts([*before, opening], texts), blank)
    if opening == asked[-1]:
        return prompt
    # Nobody else asks with these words, so their ids are those that they have before an answer.
    answer = _message(blank + "I")
    tail = _ids(tokenizer, [answer], inner=True)
    whole = _ids(tokenizer, [*prompt.parts, answer])
    ids = whole[: -len(tail)]
    same = whole == ids + tail and tokenizer.decode(ids) == tokenizer.decode(prompt.ids)
    return prompt._replace(ids=ids) if same else prompt


def _as_asked(tokenizer: Any, parts: Sequence[Part], blank: str = "") -> Prompt:
    return Prompt(parts, blank, _ids(tokenizer, parts))


def _opening(asked: str, rendered: str) -> tuple[str, str]:
    """Return what a template writes before an answer, and a blank that belongs to its first word.

    Args:
        asked: how its generation prompt ends.
        rendered: what it writes before an answer when it renders one.
    """
    if asked == rendered:
        return asked, ""
    more = _MARKER.findall(asked.removeprefix(rendered)) if asked.startswith(rendered) else []
    # A thought that is opened and closed, which answers of the past are rendered without.
    if len(more) > 1 or any("/" in marker for marker in more):
        return asked, ""
    opening = rendered.rstrip(" ")  # tokenizers join a blank to the word after it
    return opening, rendered[len(opening) :]


def _parts(pieces: Sequence[str], texts: Sequence[str]) -> list[Part]:
    """Put texts between the pieces of a template."""
    parts = [Part(pieces[0], False)]
    for text, piece in zip(texts, pieces[1:], strict=True):
        parts += [_message(text), Part(piece, False)]
    return parts


def _optional_pieces(
    tokenizer: Any, turns: Sequence[Turn], variables: Mapping[str, Any] | None = None
) -> list[str] | None:
    try:
        return _pieces(tokenizer, turns, variables)
    except InputError:
        return None


def _pieces(
    tokenizer: Any, turns: Sequence[Turn], variables: Mapping[str, Any] | None = None
) -> list[str]:
    """Return the template's own words around the texts of turns: one piece more than turns.

    Raises:
        InputError: there is no template, or it does not write every text once and in order.
    """
    variables = variables or {}
    if variables.keys() <= {"add_generation_prompt"}:
        opens = bool(variables.get("add_generation_prompt"))
        return list(_pieces_of(tokenizer, _state(tokenizer), tuple(turns), opens))
    return _cut_rendering(tokenizer, turns, variables)


@lru_cache(maxsize=256)
def _pieces_of(tokenizer: Any, state: str, turns: tuple[Turn, ...], opens: bool) -> tuple[str, ...]:
    """Return the same of a template without variables: most conversations have the same turns."""
    return tuple(_cut_rendering(tokenizer, turns, {"add_generation_prompt": opens}))


def _cut_rendering(
    tokenizer: Any, turns: Sequence[Turn], variables: Mapping[str, Any]
) -> list[str]:
    _check_there(tokenizer, variables.get("chat_template") or tokenizer.chat_template)
    marks = [_MARK.format(index) for index in range(len(turns))]
    texts = [turn.before + mark + turn.after for turn, mark in zip(turns, marks, strict=True)]
    refusals = []
    for in_parts in (False, True):
        try:
            rendered = _render(tokenizer, turns, texts, variables, in_parts)
        except InputError as error:
            refusals.append(str(error))
        else:
            if pieces := _cut(rendered, marks):
                return pieces
    roles = ", ".join(turn.role for turn in turns)
    raise InputError(
        f"{tokenizer.name_or_path}: its chat template "
        + (
            f"refuses a conversation of {roles} ({refusals[0]})"
            if len(refusals) == 2
            else "changes or reorders the text of messages, so special tokens in data could not be "
            "kept harmless"
        )
        + "; set model.chat_template: alpaca in the recipe"
    )


def _check_there(tokenizer: Any, source: Any) -> None:
    if not source:
        raise InputError(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template; set "
            "model.chat_template: alpaca in the recipe"
        )
    if isinstance(source, dict) and "default" not in source:
        raise InputError(
            f"{tokenizer.name_or_path}: its tokenizer has several chat templates "
            f"({', '.join(source)}) and none is named default; rename one, or set "
            "model.chat_template: alpaca in the recipe"
        )


def _render(
    tokenizer: Any,
    turns: Sequence[Turn],
    texts: Sequence[str],
    variables: Mapping[str, Any],
    in_parts: bool,
) -> str:
    """Return what a template makes of a conversation.

    Args:
        tokenizer: a transformers tokenizer.
        turns: the conversation's.
        texts: of the turns.
        variables: of the template.
        in_parts: give each text as a list of parts. Templates of models that see images take such a
            list, and lose or refuse a plain string.

    Raises:
        InputError: the template fails.
    """
    from jinja2 import TemplateError

    conversation = [
        {
            "role": turn.role,
            "content": [{"type": "text", "text": text}] if in_parts else text,
            # Under one of these names; an empty one is left out.
            "thinking": turn.thought or None,
            "reasoning_content": turn.thought or None,
        }
        for turn, text in zip(turns, texts, strict=True)
    ]
    try:
        rendered: str = tokenizer.apply_chat_template(conversation, tokenize=False, **variables)
    except (TemplateError, TypeError, ValueError, AttributeError, LookupError) as error:
        raise InputError(" ".join(str(error).split())[:200]) from error
    return rendered


def _cut(text: str, marks: Sequence[str]) -> list[str]:
    """Cut a text at marks; nothing where one of them is missing, repeated or out of order."""
    pieces = []
    for mark in marks:
        piece, found, text = text.partition(mark)
        if not found:
            return []
        pieces.append(piece)
    pieces.append(text)
    return [] if any(mark in piece for mark in marks for piece in pieces) else pieces


# Before any work ---------------------------------------------------------------------------------


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
        asked = _pieces(tokenizer, [_USER], {"add_generation_prompt": True})
        learn = _pieces if trains else _optional_pieces
        rendered = learn(tokenizer, [_USER, _ANSWER])
        turns = [_USER] if rendered is None else [_USER, _ANSWER]
        _check_unchanged(tokenizer, turns, rendered or _pieces(tokenizer, [_USER]))
        notes += _warnings(tokenizer, asked, rendered)
    if trains:
        ending(tokenizer, spec.chat_template)
    return notes


def _check_unchanged(tokenizer: Any, turns: Sequence[Turn], pieces: Sequence[str]) -> None:
    """Refuse a template that changes texts: marks may pass where capitals and quotes do not."""
    expected = "".join(part.text for part in _parts(pieces, [_TRICKY] * len(turns)))
    for in_parts in (False, True):
        try:
            rendered = _render(tokenizer, turns, [_TRICKY] * len(turns), {}, in_parts)
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
