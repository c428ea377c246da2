"""Personal data in texts is replaced by marks, such as <EMAIL_ADDRESS>, with Presidio.

One value has one mark in all turns of a conversation, and a second value of the same kind another,
such as <EMAIL_ADDRESS_2>. Everything runs on this machine: patterns need no model. Names of people
and places are found by a spaCy pipeline, if one is installed or named.

What matters for an analysis of harm stays: groups of people, organizations and dates.

Source: https://microsoft.github.io/presidio/analyzer
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from setbacks.errors import InputError
from setbacks.messages import Message, Prompt, turns_of
from setbacks.notices import notice
from setbacks.text import one_line

if TYPE_CHECKING:
    from presidio_analyzer import AnalyzerEngine, RecognizerResult

KEPT = {"NRP", "ORGANIZATION", "DATE_TIME"}
# Presidio's scores: patterns with a weak one, such as any nine digits, find too much.
LEAST = 0.4
LEAST_OF: Mapping[str, float] = {"URL": 0.6}  # below it, any name with a dot
LONGEST = 10**9  # characters of a text; spaCy's own limit is for its parser
PIPELINES = ("en_core_web_trf", "en_core_web_lg", "en_core_web_md", "en_core_web_sm")


class Redactor:
    """Replaces personal data in prompts and answers.

    Args:
        names: a spaCy pipeline that finds names, by its name or folder; None takes an installed
            English one.

    Raises:
        InputError: Presidio is not installed, or there is no such pipeline.
    """

    def __init__(self, names: str | None = None) -> None:
        try:
            import presidio_analyzer  # noqa: F401
            import spacy
        except ImportError as error:
            raise InputError(
                f"redaction needs {error.name}: pip install 'setbacks[redact]', or keep personal "
                "data as it is with --no-redact"
            ) from None
        logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
        installed = spacy.util.get_installed_models()
        self.pipeline = names or next((name for name in PIPELINES if name in installed), None)
        if self.pipeline is None:
            notice(
                "redaction: no English spaCy pipeline is installed, so names of people and places "
                "are not found; install one, or name one with --names"
            )
        self._analyzer = _analyzer(self.pipeline)

    def __call__(self, prompt: Prompt, answer: str) -> tuple[Prompt, str]:
        """Return a prompt and its answer without personal data."""
        marks = _Marks()
        if isinstance(prompt, str):
            return self._text(prompt, marks), self._text(answer, marks)
        turns = tuple(self._turn(turn, marks) for turn in turns_of(prompt))
        return turns, self._text(answer, marks)

    def _turn(self, turn: Message, marks: _Marks) -> Message:
        calls = turn.tool_calls and tuple(
            call.model_copy(
                update={
                    "function": call.function.model_copy(
                        update={"arguments": self._text(call.function.arguments, marks)}
                    )
                }
            )
            for call in turn.tool_calls
        )
        changes = {"content": self._text(turn.content, marks), "tool_calls": calls}
        return turn.model_copy(update=changes)

    def _text(self, text: str, marks: _Marks) -> str:
        parts, end = [], 0
        for start, stop, kind in _spans(self._analyzer.analyze(text, language="en")):
            parts += [text[end:start], marks.of(kind, text[start:stop])]
            end = stop
        return "".join(parts) + text[end:]


class _Marks:
    """The marks of one conversation."""

    def __init__(self) -> None:
        self._by_value: dict[tuple[str, str], str] = {}

    def of(self, kind: str, value: str) -> str:
        """Return the mark of a value."""
        key = kind, " ".join(value.casefold().split())
        if key not in self._by_value:
            number = 1 + sum(other == kind for other, _ in self._by_value)
            self._by_value[key] = f"<{kind}>" if number == 1 else f"<{kind}_{number}>"
        return self._by_value[key]


def _spans(results: list[RecognizerResult]) -> list[tuple[int, int, str]]:
    """Return what to replace, in order; of what overlaps, the kind with the best score."""
    spans: list[tuple[int, int, str]] = []
    best = 0.0
    for one in sorted(results, key=lambda one: (one.start, -one.end)):
        least = LEAST_OF.get(one.entity_type, LEAST)
        if one.score < least or one.entity_type in KEPT:
            continue
        if spans and one.start < spans[-1][1]:
            start, stop, kind = spans[-1]
            kind = one.entity_type if one.score > best else kind
            spans[-1], best = (start, max(stop, one.end), kind), max(best, one.score)
        else:
            spans.append((one.start, one.end, one.entity_type))
            best = one.score
    return spans


def _analyzer(pipeline: str | None) -> AnalyzerEngine:
    import spacy
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import SpacyNlpEngine
    from presidio_analyzer.predefined_recognizers import EmailRecognizer
    from tldextract import TLDExtract

    domains = TLDExtract(suffix_list_urls=(), cache_dir=None)  # the list that it ships

    class OfflineEmail(EmailRecognizer):
        """Presidio's own fetches the list of domains from the network first."""

        def validate_result(self, pattern_text: str) -> bool:
            return bool(domains(pattern_text).fqdn)

    class Loaded(SpacyNlpEngine):
        """Presidio's own downloads a pipeline that is not installed."""

        def __init__(self, nlp: Any) -> None:
            super().__init__()
            nlp.max_length = LONGEST
            self.nlp = {"en": nlp}  # type: ignore[assignment]  # None in the base class

    try:
        nlp = spacy.load(pipeline) if pipeline else spacy.blank("en")
    except (OSError, ValueError) as error:
        raise InputError(one_line(f"{pipeline}: no spaCy pipeline ({error})")) from None
    registry = RecognizerRegistry(supported_languages=["en"])
    registry.load_predefined_recognizers(languages=["en"])
    registry.remove_recognizer("EmailRecognizer")
    registry.add_recognizer(OfflineEmail(supported_language="en"))
    return AnalyzerEngine(registry, Loaded(nlp), supported_languages=["en"])
