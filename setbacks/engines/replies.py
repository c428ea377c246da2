"""What a server sends back: an answer, or the reason why there is none. No network here.

Servers that speak OpenAI's protocol differ in nearly everything except the place of the text. So
only what is needed is read, and leniently: an answer that was paid for is never discarded because a
count is missing.

A provider that blocks a prompt reports it as an error, each in different words. `Problem.blocks`
recognizes it by one rule:

1. A *code* decides: a value of `code`, `type`, `reason` and the like that names a content filter,
   a moderation, a guardrail, or a policy on content. So does a flag such as `filtered: true`.
2. Otherwise the *message* decides: one sentence must say that the prompt or the answer was blocked,
   and that the reason was its content.
3. Text of the request in the error does not count, and neither does a sentence about a wrong
   parameter, an account, or access: there, every request would fail.

In doubt it is not a block. A failure stops the run with its message; a false block would count as a
refusal, and nobody would notice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from setbacks.records import Finish


class Reply(NamedTuple):
    """An answer: its text, why it ended, and the server's token counts; None if missing.

    `thought` is the reasoning that the server reports apart from the text; `tokens` counts both.
    """

    text: str
    finish: Finish
    prompt_tokens: int | None = None
    tokens: int | None = None
    thought: str | None = None
    thought_tokens: int | None = None


@dataclass(frozen=True)
class Problem:
    """Why there is no answer, according to the server.

    Args:
        summary: for people.
        codes: the machine-readable values in it.
        messages: the texts in it.
    """

    summary: str
    codes: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()

    def blocks(self, sent: Sequence[str] = ()) -> bool:
        """Return whether a filter or policy on content blocked the prompt or the answer.

        Args:
            sent: the texts in the request. An error may quote them, and a quotation does not count.
        """
        return any(map(_code_blocks, self.codes)) or any(
            _sentence_blocks(sentence)
            for message in self.messages
            for sentence in _SENTENCE_END.split(_without(sent, message)[:_LONGEST_MESSAGE])
        )

    @property
    def too_long(self) -> bool:
        """Return whether prompt and answer do not fit into the context window."""
        return any(_TOO_LONG_CODE.search(_plain(code)) for code in self.codes) or any(
            _TOO_LONG.search(message) for message in self.messages
        )

    def mentions(self, parameter: str) -> bool:
        """Return whether it names a parameter of the request."""
        return any(
            re.search(rf"(?<![\w.]){re.escape(parameter)}(?!\w)", text)
            for text in (*self.messages, *self.codes)
        )


def read(data: bytes) -> Reply | Problem:
    """Read the body of a chat completion.

    Args:
        data: the body; its status was a success, but it may still hold an error.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return problem(data)
    choice = _first_choice(body)
    if choice is None:
        return problem(data)
    message = choice.get("message")
    if not isinstance(message, Mapping):  # from a server of plain completions
        message = {"content": message if message is not None else choice.get("text")}
    text, reason = _text(message.get("content")), choice.get("finish_reason")
    refusal = _refusal(message)
    reason = reason if isinstance(reason, str) else ""
    finish = _finish(reason)
    if not text.strip():
        if refusal:
            text, finish = refusal if isinstance(refusal, str) else text, "refusal"
        elif _reported(choice).blocks():
            finish = "filter"
    if _plain(reason) in _BROKEN and finish == "stop":
        return Problem(f"the answer broke off (finish_reason: {reason})")
    usage = body.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    details = usage.get("completion_tokens_details")
    details = details if isinstance(details, Mapping) else {}
    thought = _thought(message)
    return Reply(
        text,
        finish,
        _count(usage.get("prompt_tokens"), 1),
        _count(usage.get("completion_tokens"), 1 if text or thought else 0),
        thought,
        _count(details.get("reasoning_tokens"), 1) if thought else None,
    )


def problem(data: bytes) -> Problem:
    """Read the body of an error.

    Args:
        data: the body, or its beginning.
    """
    text = data.decode("utf-8", "replace")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        page = text.lstrip().startswith("<")  # HTML, from a proxy in between
        return Problem(text, messages=() if page else (text,))
    reported = _reported(body)
    return Problem(_summary(body) or text, reported.codes, reported.messages)


# An answer ---------------------------------------------------------------------------------------


def _first_choice(body: Any) -> Mapping[str, Any] | None:
    """Return the choice with the lowest index that is not empty; they come in any order."""
    choices = body.get("choices") if isinstance(body, Mapping) else None
    present = [
        choice
        for choice in (choices if isinstance(choices, list) else ())
        if isinstance(choice, Mapping)
        and any(choice.get(key) is not None for key in ("message", "text", "finish_reason"))
    ]
    return min(present, key=lambda choice: _count(choice.get("index"), 0) or 0, default=None)


def _text(content: Any) -> str:
    """Return the text of a content, which may come in parts, without the model's thoughts."""
    if isinstance(content, Mapping):
        content = content.get("parts", [content])
    if isinstance(content, list):
        return "".join(map(_part, content))
    return content if isinstance(content, str) else ""


def _part(part: Any) -> str:
    """Return the text of a part of a content."""
    if isinstance(part, Mapping):
        is_text = part.get("type", "text") in ("text", "output_text") and not part.get("thought")
        part = part.get("text") if is_text else None
    if isinstance(part, Mapping):
        part = part.get("value")
    return part if isinstance(part, str) else ""


def _thought(message: Mapping[str, Any]) -> str | None:
    """Return the reasoning that a server reports: in a field, or in parts of the content."""
    fields = (_text(message.get(key)) for key in ("reasoning_content", "reasoning", "thinking"))
    content = message.get("content")
    if isinstance(content, Mapping):
        content = content.get("parts")
    parts = content if isinstance(content, list) else []
    texts = [*fields, "".join(map(_part_of_thought, parts))]
    return next(filter(None, (text.strip() for text in texts)), None)


def _part_of_thought(part: Any) -> str:
    """Return the text of a part of a content, if it is a thought."""
    if not isinstance(part, Mapping):
        return ""
    if part.get("type") in ("thinking", "reasoning"):
        return _text(part.get("thinking") or part.get("text"))
    return _text(part.get("text")) if part.get("thought") else ""


def _refusal(message: Mapping[str, Any]) -> Any:
    """Return what a provider reports as the refusal, in a field or a part of the content."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    refusals = [part.get("refusal", True) for part in parts if _is_refusal(part)]
    return message.get("refusal") or next(iter(refusals), None)


def _is_refusal(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "refusal"


def _finish(reason: str) -> Finish:
    """Return why an answer ended."""
    plain = _plain(reason)
    if _CUT_OFF.search(plain):
        return "length"
    if _BLOCKED_CODE.search(plain) or _BLOCKED_END.search(plain):
        return "filter"
    return "refusal" if "refus" in plain else "stop"


def _count(value: Any, least: int) -> int | None:
    """Return a count of any type; None if it is missing or cannot be right."""
    if isinstance(value, bool):
        return None
    try:
        number = int(float(value))
    except (TypeError, ValueError, OverflowError):
        return None
    return number if least <= number < 2**53 else None


_CUT_OFF = re.compile("length|maxtoken|maxoutput|tokenlimit|contextwindow")
_BROKEN = set(
    "error abort aborted cancelled canceled networkerror insufficientsystemresource".split()
)

# An error ----------------------------------------------------------------------------------------

_LONGEST_MESSAGE = 4_000
_BEGINNING = 40  # characters of a text, by which a quotation of a part is recognized
_DEEPEST = 8

# Keys of errors, as `_plain` has them.
_CODES = set(
    "code errorcode type errortype status reason reasons finishreason stopreason providercode "
    "failedcheck".split()
)
_MESSAGES = set(
    "message msg error errors errormessage errormsg detail details description title statusmsg "
    "blockreasonmessage raw".split()
)
_FLAGS = set("filtered flagged blocked flaggedinput inputsensitive outputsensitive".split())
_OF_THE_REQUEST = set("input prompt messages request body ctx loc params url".split())

_BLOCKED_CODE = re.compile(
    "content(filter|polic|management|moderat|safety|violat|block|restrict)|responsibleai|moderat"
    "|guardrail|datainspection|sensitive|prohibitedcontent|inappropriate|unsafe|harmful|safety"
    "|policyviolation|usagepolic|(prompt|input|output|response)(block|filter|flag)|riskdetect"
    "|censor|toxic|jailbreak|promptinjection|flagged|blockreason|^1301$"
)
# These are clear as the reason why an answer ended, but not as the code of an error.
_BLOCKED_END = re.compile("blocklist|spii|recitation|blocked|filtered")
# A code that names a filter which is missing or was configured wrongly.
_SET_WRONGLY = re.compile(
    "^(invalid|unsupported|unknown|missing|unrecognized|unexpected)"
    "|unavailable|timeout|timedout|notfound|required|disabled|notenabled|setting|parameter|config"
    "|filtererror"
)

_SENTENCE_END = re.compile(r"(?:[.;!?](?=\s|$)|[。；！？\n])+")
_IDENTIFIER = re.compile("_|[a-z][A-Z]")
_SUBJECT = (
    r"\b(?:prompt|input|output|content(?![- ]?(?:type|length|encoding))|text|query|question|message"
    r"|response|completion|candidate|answer|generation|data"
)
_ABOUT = re.compile(rf"{_SUBJECT}|request)s?\b", re.IGNORECASE)
_FOR_CONTENT = re.compile(
    r"content[- _]?(?:filter|management|polic|moderat|safety)|moderation|guardrail|\bsafety\b"
    r"|(?:usage|acceptable[- ]use|use|community|our) (?:polic|guideline)|responsible[- ]ai"
    r"|terms of (?:use|service)|\bunsafe|\bharmful|inappropriate|\bsensitive|offensive|\btoxic"
    r"|prohibited[_ ](?:content|use)|high[- ]risk|jailbreak|prompt injection|security configuration"
    r"|violat\w*.{0,40}(?:polic|guideline)",
    re.IGNORECASE,
)
_WAS_BLOCKED = re.compile(
    r"block|filter(?:ed|s)\b|flagged|reject|refus|violat|trigger|interven|not allowed|denied"
    r"|\bcontain|considered|detected",
    re.IGNORECASE,
)
# These need no reason with them.
_SURELY_BLOCKED = re.compile(
    rf"{_SUBJECT})s?\b (?:(?!not\b)\w+ ){{0,3}}(?:flagged|filtered)\b|content exists risk"
    r"|\bblocked (?:in|out)put\b|new_sensitive"
    r"|\b(?:blocked|violate[ds]|triggered|rejected) (?:\w+ ){0,3}"
    r"(?:guardrail|content (?:filter|polic))"
    r"|\bguardrails? (?:\w+ ){0,2}(?:blocked|intervened|triggered)"
    r"|(?:内容|输入|输出|提示|文本|请求|信息).*(?:敏感|不安全|违规|违法|不合规|高风险)",
    re.IGNORECASE,
)
# A sentence about the form of the request, or about its sender.
_ABOUT_ELSE = re.compile(
    r"\b(?:invalid(?! (?:prompt|request|input))|unsupported|unknown|unrecogni[sz]ed|unexpected"
    r"|missing|required|must|parameters?|arguments?|fields?"
    r"|not (?:enabled|configured|supported|available|found|valid|permitted)"
    r"|disabled|account|subscription|billing|quota|api[- ]?key|permission|network|firewall"
    r"|model (?:is|was|has))\b",
    re.IGNORECASE,
)

_TOO_LONG_CODE = re.compile("contextlength|contextwindow|stringabovemax|stringtoolong|promptlong")
_TOO_LONG = re.compile(
    r"context (?:length|window|size|limit)|max_model_len|reduce the length"
    r"|maximum (?:model |sequence |input |prompt )?length|(?:input|prompt)[- ]?tokens? exceed"
    r"|\b(?:prompt|input|messages?)\b.{0,40}\btoo (?:long|large)|too many (?:input |prompt )?tokens"
    r"|exceed.{0,60}\b(?:token limit|(?:maximum|max) .{0,20}tokens|context)",
    re.IGNORECASE,
)


def _plain(text: str) -> str:
    """Return a name without case, spaces and punctuation: CONTENT_FILTER equals contentFilter."""
    return re.sub(r"[\W_]+", "", text).lower()


def _reported(body: Any) -> Problem:
    """Return all codes and messages of an error, wherever they are in it."""
    codes: list[str] = []
    messages: list[str] = []
    for is_code, text in _statements(body, _DEEPEST):
        (codes if is_code else messages).append(text)
    return Problem("", tuple(codes), tuple(messages))


def _statements(body: Any, depth: int) -> Iterator[tuple[bool, str]]:
    """Yield (whether it is a code, text), without text of the request."""
    if isinstance(body, list) and depth:
        for item in body:
            yield from _statements(item, depth - 1)
    if not isinstance(body, Mapping) or not depth:
        return
    for key, value in body.items():
        plain = _plain(key)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping | list):
                if plain not in _OF_THE_REQUEST:
                    yield from _statements(item, depth - 1)
            elif plain in _FLAGS:
                if item:
                    yield True, f"content_filter_{plain}"
            elif plain == "blockreason" and item:
                yield True, f"{plain}{item}"
            elif plain in _CODES and isinstance(item, str | int):
                yield True, str(item)
            elif plain in _MESSAGES and isinstance(item, str):
                yield False, item
                yield from _statements(_json(item), depth - 1)  # a provider behind this one


def _json(text: str) -> Any:
    """Return the object or list that a text holds, if any."""
    if text.lstrip().startswith(("{", "[")):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass
    return None


def _code_blocks(code: str) -> bool:
    plain = _plain(code)
    return bool(_BLOCKED_CODE.search(plain)) and not _SET_WRONGLY.search(plain)


def _sentence_blocks(sentence: str) -> bool:
    if _ABOUT_ELSE.search(sentence):
        return False
    # Libraries put codes into their messages.
    codes = filter(_IDENTIFIER.search, re.findall(r"\w+", sentence))
    if _SURELY_BLOCKED.search(sentence) or any(map(_code_blocks, codes)):
        return True
    return all(pattern.search(sentence) for pattern in (_ABOUT, _FOR_CONTENT, _WAS_BLOCKED))


def _without(sent: Sequence[str], message: str) -> str:
    """Return a message without the texts of the request, which it may quote in full or in part."""
    # A shorter text is not recognized as a quotation.
    texts = [text for text in sent if len(text[:_BEGINNING].strip()) >= 12]
    for text in texts:
        message = message.replace(text, " ")
    for text in texts:
        message = message.partition(text[:_BEGINNING])[0]
    return message


def _summary(body: Any) -> str:
    """Return an error in short: its message and its code."""
    if isinstance(body, list) and len(body) == 1:
        (body,) = body
    if not isinstance(body, Mapping):
        return ""
    error = body.get("error") or body.get("base_resp") or body
    if isinstance(error, str):
        return error
    if not isinstance(error, Mapping):
        return ""
    text = error.get("message") or error.get("detail") or error.get("status_msg")
    code = error.get("code") or error.get("type")
    return (f"{text} ({code})" if code else str(text)) if text else ""
