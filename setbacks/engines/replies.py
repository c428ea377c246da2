"""What a server sends back: an answer, or the reason why there is none. No network here.

Servers that speak OpenAI's protocol differ in nearly everything but the place of the text. So only
what is needed is read, and leniently: an answer that was paid for is never thrown away because a
count is missing.

A provider that blocks a prompt says so in an error, and each provider says it in its own words.
`Problem.blocks` decides it by one rule:

1. A *code* decides: a value of `code`, `type`, `reason` and the like that names a content filter,
   a moderation, a guardrail, or a policy on content. So does a flag such as `filtered: true`.
2. Without one the *message* decides: one sentence must say that the prompt or the answer was
   blocked, and that it was for its content.
3. What the error repeats of the request does not count, and neither does a sentence on a wrong
   parameter, on an account, or on access: there, each request would fail.

Where it is in doubt it is no block. A failure stops the run with its message; a block that is none
would count as a refusal, and nobody would notice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from setbacks.records import Finish


class Reply(NamedTuple):
    """An answer: its text, why it ended, and what the server counted; None where it did not."""

    text: str
    finish: Finish
    prompt_tokens: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Problem:
    """Why there is no answer, as the server says it.

    Args:
        summary: for people.
        codes: the machine-readable values in it.
        messages: the texts in it.
    """

    summary: str
    codes: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()

    def blocks(self, prompt: str = "") -> bool:
        """Whether it says that a filter or a policy on content blocked the prompt or the answer.

        Args:
            prompt: what was asked: an error may quote it, and what it says there does not count.
        """
        return any(map(_code_blocks, self.codes)) or any(
            _sentence_blocks(sentence)
            for message in self.messages
            for sentence in _SENTENCE_END.split(_without(prompt, message)[:_LONGEST_MESSAGE])
        )

    @property
    def too_long(self) -> bool:
        """Whether it says that prompt and answer do not fit into the model's context."""
        return any(_TOO_LONG_CODE.search(_plain(code)) for code in self.codes) or any(
            _TOO_LONG.search(message) for message in self.messages
        )

    def mentions(self, parameter: str) -> bool:
        """Whether it names a parameter of the request."""
        return any(
            re.search(rf"(?<![\w.]){re.escape(parameter)}(?!\w)", text)
            for text in (*self.messages, *self.codes)
        )


def read(data: bytes) -> Reply | Problem:
    """Read the body of a chat completion.

    Args:
        data: the body; its status said that all went well, which need not be so.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return problem(data)
    choice = _first_choice(body)
    if choice is None:
        return problem(data)
    message = choice.get("message")
    if not isinstance(message, Mapping):  # of a server of plain completions
        message = {"content": message if message is not None else choice.get("text")}
    text, reason = _text(message.get("content")), choice.get("finish_reason")
    refusal = _refusal(message)
    reason = reason if isinstance(reason, str) else ""
    finish = _finish(reason)
    if not text.strip():
        if refusal:
            text, finish = refusal if isinstance(refusal, str) else text, "refusal"
        elif _said(choice).blocks():
            finish = "filter"
    if _plain(reason) in _BROKEN and finish == "stop":
        return Problem(f"the answer broke off (finish_reason: {reason})")
    usage = body.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    return Reply(
        text,
        finish,
        _count(usage.get("prompt_tokens"), 1),
        _count(usage.get("completion_tokens"), 1 if text else 0),
    )


def problem(data: bytes) -> Problem:
    """Read the body of an error.

    Args:
        data: the body, or as much of it as was read.
    """
    text = data.decode("utf-8", "replace")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        page = text.lstrip().startswith("<")  # of something in between, and for people
        return Problem(text, messages=() if page else (text,))
    said = _said(body)
    return Problem(_summary(body) or text, said.codes, said.messages)


# An answer ---------------------------------------------------------------------------------------


def _first_choice(body: Any) -> Mapping[str, Any] | None:
    """The choice with the lowest index, if one holds anything; there may be more, in any order."""
    choices = body.get("choices") if isinstance(body, Mapping) else None
    found = [
        choice
        for choice in (choices if isinstance(choices, list) else ())
        if isinstance(choice, Mapping)
        and any(choice.get(key) is not None for key in ("message", "text", "finish_reason"))
    ]
    return min(found, key=lambda choice: _count(choice.get("index"), 0) or 0, default=None)


def _text(content: Any) -> str:
    """The text of a content, which may come in parts: what the model thought is no part of it."""
    if isinstance(content, Mapping):
        content = content.get("parts", [content])
    if isinstance(content, list):
        return "".join(map(_part, content))
    return content if isinstance(content, str) else ""


def _part(part: Any) -> str:
    """The text of a part of a content."""
    if isinstance(part, Mapping):
        is_text = part.get("type", "text") in ("text", "output_text") and not part.get("thought")
        part = part.get("text") if is_text else None
    if isinstance(part, Mapping):
        part = part.get("value")
    return part if isinstance(part, str) else ""


def _refusal(message: Mapping[str, Any]) -> Any:
    """What a provider reports as the model's refusal, beside the content or as a part of it."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    found = [part.get("refusal", True) for part in parts if _is_refusal(part)]
    return message.get("refusal") or next(iter(found), None)


def _is_refusal(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "refusal"


def _finish(reason: str) -> Finish:
    """Why an answer ended, in our words."""
    plain = _plain(reason)
    if _CUT_OFF.search(plain):
        return "length"
    if _BLOCKED_CODE.search(plain) or _BLOCKED_END.search(plain):
        return "filter"
    return "refusal" if "refus" in plain else "stop"


def _count(value: Any, least: int) -> int | None:
    """A count, in whichever type it comes; None where it is missing or cannot be right."""
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
# As why an answer ended these are clear; as the code of an error they are not.
_BLOCKED_END = re.compile("blocklist|spii|recitation|blocked|filtered")
# A code that names a filter, but as something that is not there or was set wrongly.
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
# These need no reason beside them.
_SURELY_BLOCKED = re.compile(
    rf"{_SUBJECT})s?\b (?:(?!not\b)\w+ ){{0,3}}(?:flagged|filtered)\b|content exists risk"
    r"|\bblocked (?:in|out)put\b|new_sensitive"
    r"|\b(?:blocked|violate[ds]|triggered|rejected) (?:\w+ ){0,3}"
    r"(?:guardrail|content (?:filter|polic))"
    r"|\bguardrails? (?:\w+ ){0,2}(?:blocked|intervened|triggered)"
    r"|(?:内容|输入|输出|提示|文本|请求|信息).*(?:敏感|不安全|违规|违法|不合规|高风险)",
    re.IGNORECASE,
)
# A sentence on how the request was put, or on who sent it.
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
    """A name without case, blanks and punctuation: CONTENT_FILTER and contentFilter are one."""
    return re.sub(r"[\W_]+", "", text).lower()


def _said(body: Any) -> Problem:
    """All that an error says of itself, wherever in it."""
    codes: list[str] = []
    messages: list[str] = []
    for is_code, text in _statements(body, _DEEPEST):
        (codes if is_code else messages).append(text)
    return Problem("", tuple(codes), tuple(messages))


def _statements(body: Any, depth: int) -> Iterator[tuple[bool, str]]:
    """Yield (whether it is a code, text); what is repeated of the request is left out."""
    if isinstance(body, list) and depth:
        for item in body:
            yield from _statements(item, depth - 1)
    if not isinstance(body, Mapping) or not depth:
        return
    for key, value in body.items():
        plain = _plain(key)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Mapping | list):
                if plain not in _OF_THE_REQUEST:
                    yield from _statements(one, depth - 1)
            elif plain in _FLAGS:
                if one:
                    yield True, f"content_filter_{plain}"
            elif plain == "blockreason" and one:
                yield True, f"{plain}{one}"
            elif plain in _CODES and isinstance(one, str | int):
                yield True, str(one)
            elif plain in _MESSAGES and isinstance(one, str):
                yield False, one
                yield from _statements(_json(one), depth - 1)  # a provider behind this one


def _json(text: str) -> Any:
    """An object or a list that a text holds, if it holds one."""
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
    return all(said.search(sentence) for said in (_ABOUT, _FOR_CONTENT, _WAS_BLOCKED))


def _without(prompt: str, message: str) -> str:
    """A message without the prompt, which it may quote, whole or up to somewhere."""
    begin = prompt[:40]
    if len(begin.strip()) < 12:  # as short as that it would be found in other words
        return message
    return message.replace(prompt, " ").partition(begin)[0]


def _summary(body: Any) -> str:
    """What an error says, in short: its message, with its code."""
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
