"""Which answers are candidates: those that may be setbacks, and repeat nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

from setbacks.data.conversations import prompt_as_data, reply_as_data
from setbacks.data.near import NearPrompts
from setbacks.data.overlap import learned_from
from setbacks.data.sources import built_in_tests, load
from setbacks.errors import InputError
from setbacks.loop.harvest.retention import MARK
from setbacks.loop.harvest.settings import Settings
from setbacks.loop.harvest.survey import Survey
from setbacks.loop.setback import NEAR, Conversations
from setbacks.messages import Prompt
from setbacks.recipe import Recipe, Source
from setbacks.records import Setback, Verdict

CUT = 0.5  # a verdict's threshold


class Finding(NamedTuple):
    """What is wrong with an answer, and how sure the judge is; `p` is None if it gives none."""

    kind: Setback
    p: float | None
    unsure: bool


def finding(verdict: Verdict, safe: bool | None, unsure: float) -> Finding | None:
    """Return what is wrong with an answer by a verdict; None if nothing is.

    Args:
        verdict: the judge's.
        safe: whether the request is known to be safe; only then a refusal is wrong.
        unsure: distance from 0.5 within which a probability decides nothing.
    """
    found = [_one("harmful", verdict.p_harmful, verdict.harmful, unsure)]
    if safe:
        found.append(_one("refusal", verdict.p_refused, verdict.refused, unsure))
    ranked = sorted(filter(None, found), key=lambda one: (one.unsure, -(one.p or 1.0)))
    return ranked[0] if ranked else None


def _one(kind: Setback, p: float | None, verdict: bool | None, unsure: float) -> Finding | None:
    if p is None:
        return Finding(kind, None, False) if verdict else None
    doubtful = abs(p - CUT) < unsure
    return Finding(kind, p, doubtful) if doubtful or p >= CUT else None


class Taken:
    """Prompts that a candidate must not repeat.

    Args:
        settings: name the earlier runs, and the recipes with test prompts.

    Raises:
        InputError: a folder of `seen` has no training data, or a recipe cannot be read.
    """

    REASONS = ("seen", "suites", "near")

    def __init__(self, settings: Settings) -> None:
        self._seen, self._tested, self._kept = Conversations(), NearPrompts(NEAR), Conversations()
        for run in settings.seen:
            if not (run / "training.jsonl").is_file():
                raise InputError(f"{run}: not a run that trained a model (no training.jsonl)")
            for prompt in learned_from(run):
                self._seen.add(prompt)
        sources = [source for path in settings.against for source in _held_out(Recipe.load(path))]
        for row in chain(built_in_tests(), *map(load, sources)):
            self._tested.add(row.text)

    def why(self, logged: Prompt, prompt: Prompt) -> str | None:
        """Return why a prompt is not used; None if it is new, and from now on it is taken.

        A test prompt counts in any turn, and in the logged prompt too, since redaction could hide
        one that has a link in it.
        """
        if any(self._tested.find(one) for one in dict.fromkeys((logged, prompt))):
            return "suites"
        if self._seen.repeats(prompt):
            return "seen"
        return None if self._kept.add_new(prompt) else "near"


def _held_out(recipe: Recipe) -> Iterator[Source]:
    """Yield the sources of a recipe's prompts that nothing may be trained on."""
    for suite in (*recipe.respond.suites, *recipe.loop.validation):
        yield from suite.sources
    yield from recipe.held_out


def select(
    survey: Survey,
    settings: Settings,
    scanned: Sequence[Verdict],
    taken: Taken,
    counts: dict[str, int],
) -> tuple[list[dict[str, Any]], list[Verdict]]:
    """Return the candidates, and the verdict on each; count the others in `counts`.

    Candidates are rows of `candidates.jsonl`.
    """
    rows: list[dict[str, Any]] = []
    kept: list[Verdict] = []
    counts |= dict.fromkeys(("harmful", "refused", "unknown", *Taken.REASONS), 0)
    place = 0
    for chunk in survey.chunks():
        verdicts = {v.response_id: v for v in scanned[place : place + len(chunk)]}
        place += len(chunk)
        for id_, logged in chunk:
            verdict = verdicts[f"{id_:016x}"]
            safe = settings.safe if logged.safe is None else logged.safe
            counts["harmful"] += bool(verdict.harmful)
            counts["refused"] += bool(verdict.refused)
            if finding(verdict, safe, settings.unsure) is None:
                refused = finding(verdict, True, settings.unsure)
                counts["unknown"] += refused is not None and logged.safe is None
                continue
            prompt, answer = logged.prompt, logged.answer
            if settings.redactor is not None:
                prompt, answer = settings.redactor(prompt, answer)
            if why := taken.why(logged.prompt, prompt):
                counts[why] += 1
                continue
            kept.append(verdict)
            rows.append(
                {
                    "text": prompt_as_data(prompt),
                    "response": reply_as_data(answer),
                    "language": logged.language,
                    "source": MARK + logged.source,
                    "safe": safe,
                    "times": survey.times[id_],
                }
            )
    return rows, kept
