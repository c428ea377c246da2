"""Posterior: does training raise p(T | Y, X) of right analyses above that of wrong ones?

The paper's Bayesian claim (arXiv 2310.10477, section 3.3) is that analyses teach the model
p(T | Y, X). It is measured on responses whose analyses were kept out of training: the likelihood of
each one's analysis, and of the same analysis with the verdict turned round, before, during and
after. Both rise as the model learns how analyses are worded; the gap between them is the verdict.
A model that comes to call all things harmful gains on mistakes and loses as much on benign
responses, so both are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from setbacks.errors import InputError
from setbacks.measure.formatting import FINE_CHANGE, with_interval
from setbacks.measure.metrics import ALPHA
from setbacks.measure.statistics import Difference, holm, mean, paired_difference
from setbacks.methods import example, open_method
from setbacks.methods.mistake_analysis import own_analyses
from setbacks.prompts import prompts
from setbacks.recipe import Recipe, Section
from setbacks.records import Analysis, Example
from setbacks.report.page import Findings, Picture, Table
from setbacks.report.plots import curves
from setbacks.runs.folder import Run, RunFolder
from setbacks.runs.progress import Show
from setbacks.runs.session import Session
from setbacks.studies import Study, at_least
from setbacks.studies.likelihood import read
from setbacks.studies.variants import each, variant

FEWEST = 6  # held-out analyses of each kind: below, an interval says nothing
READ = ("right", "flipped", "gap", "growth")
KINDS = {"analysis": "mistakes", "contrast": "benign responses"}


class Posterior(Study):
    """Measure whether training makes right analyses likelier than wrong ones."""

    title = "posterior"
    question = "Does training teach p(T | Y, X): are right analyses likelier than wrong ones?"

    class Options(Section):
        """Options of `setbacks study posterior`."""

        held_out: float = Field(
            0.3, gt=0, lt=1, description="Share of the analyses to hold out of training."
        )
        snapshots: int = Field(4, ge=1, description="Number of measurements during training.")

    def check(self, recipe: Recipe, options: Options) -> None:
        """Check the recipe, and that its method learns analyses."""
        super().check(recipe, options)
        if not open_method(recipe).learns_analyses:
            raise InputError(
                f"train.method: {recipe.train.method} learns no analyses, which this study holds "
                "out; use mistake_analysis"
            )

    def run(self, recipe: Recipe, options: Options, folder: Path, show: Show | None) -> Findings:
        """Train on a part of the analyses, and follow how likely the others become.

        Raises:
            InputError: there are too few analyses to hold some out.
        """
        whole = variant(recipe, "analyses", {})
        ((_, path),) = each(folder, [whole], "analyze", show)
        right = _right(recipe, Run(path).records("analyses.jsonl", Analysis))
        kept = {kind: round((1 - options.held_out) * len(rows)) for kind, rows in right.items()}
        for kind, rows in right.items():
            what = (
                f"held-out analyses of {KINDS[kind]} (of {len(rows)}; study.held_out is the share)"
            )
            at_least(len(rows) - kept[kind], FEWEST, what)
        most = recipe.train.most_analyses
        number = kept["analysis"] if most is None else min(most, kept["analysis"])
        overrides = {
            "train.most_analyses": number,
            "train.mix.contrast": min(recipe.train.mix.contrast, kept["contrast"] / max(number, 1)),
            "train.snapshots": options.snapshots,
        }
        lenders = [(whole, path)]
        ((_, path),) = each(
            folder, [variant(recipe, "held_out", overrides)], "train", show, lenders
        )
        with RunFolder(path) as opened, Session(opened, show) as run:
            trained = {p for e in run.records("training.jsonl", Example) for p in e.parents}
            held = [e for rows in right.values() for e in rows if not trained & {*e.parents}]
            pairs = [(e, wrong) for e in held if (wrong := flipped(e, recipe.language))]
            for kind, name in KINDS.items():
                number = sum(e.kind == kind for e, _ in pairs)
                at_least(number, FEWEST, f"held-out analyses of {name} that name their verdict")
            states: dict[str, Path | None] = {"0": None}
            states |= {str(int(p.name)): p for p in sorted((run.path / "snapshots").glob("[0-9]*"))}
            found = read(run, states, [e for pair in pairs for e in pair])
        measured = [
            {"kind": name, **row}
            for kind, name in KINDS.items()
            for row in _rows(found, [e.kind == kind for e, _ in pairs])
        ]
        last = {row["kind"]: row for row in measured}
        note = "95 % intervals over responses. Growth is paired with the same responses at step 0."
        return Findings(
            title=f"{recipe.name}: {self.title}",
            question=self.question,
            answer=[describe_growth({name: row["growth"] for name, row in last.items()})],
            tables=[
                Table(
                    f"Log-likelihood of held-out analyses of {name}, nats a token",
                    ["Step", "right", "verdict flipped", "gap", "growth of the gap"],
                    [
                        [
                            str(row["step"]),
                            *(with_interval(row[key], FINE_CHANGE) for key in READ),
                        ]
                        for row in measured
                        if row["kind"] == name
                    ],
                    f"{last[name]['right'].n} responses. {note}",
                )
                for name in KINDS.values()
            ],
            pictures=[
                Picture(
                    "The gap over training",
                    _drawn(measured, ("gap",), "p0", "Right minus flipped, nats a token"),
                    "Above 0 the right verdict is the likelier one.",
                ),
                Picture(
                    "Both over training",
                    _drawn(measured, ("right", "flipped"), "p1", "Log-likelihood, nats a token"),
                ),
            ],
            method=[
                f"{len(held)} responses were kept out of training, {len(held) - len(pairs)} of "
                "them left out here since their analysis does not name its verdict. A flipped "
                "analysis is the right one with the words for harmful and harmless exchanged: "
                "its reasons stay, so the gap is that of the verdict. The question is training's "
                "own.",
            ],
            data={"rows": measured, "held_out": len(held), "pairs": len(pairs)},
        )


def _right(recipe: Recipe, analyses: Sequence[Analysis]) -> dict[str, list[Example]]:
    """The right analysis of every response, by kind, whatever the recipe would train on."""
    quality = "unfiltered" if recipe.train.analyses == "unfiltered" else "filtered"
    update = {"analyses": quality, "most_analyses": None}
    all_of_them = recipe.model_copy(update={"train": recipe.train.model_copy(update=update)})
    return dict(zip(KINDS, own_analyses(all_of_them, analyses), strict=True))


def flipped(right: Example, language: str) -> Example | None:
    """Return an analysis with its verdict turned round; None where it names none.

    Every word for harmful becomes the one for harmless, and the other way round.
    """
    words = [word.rstrip(".。").lower() for word in prompts(language)["verdict"].values()]
    other = dict(zip(words, reversed(words), strict=True))

    def swap(match: re.Match[str]) -> str:
        word = other[match[0].lower()]
        return word.capitalize() if match[0][0].isupper() else word

    text, number = re.subn("|".join(words), swap, right.completion, flags=re.IGNORECASE)
    made = example(f"{right.kind}-flipped", right.prompt[0].content, text, list(right.parents))
    return made if number else None


def _rows(found: Mapping[str, Sequence[float]], chosen: Sequence[bool]) -> list[dict[str, Any]]:
    """What was measured at each step, over the chosen pairs."""
    rows, first = [], None
    for state, values in found.items():
        right = [v for v, ours in zip(values[0::2], chosen, strict=True) if ours]
        wrong = [v for v, ours in zip(values[1::2], chosen, strict=True) if ours]
        gap = [r - w for r, w in zip(right, wrong, strict=True)]
        first = first or gap
        rows.append(
            {
                "step": int(state),
                "right": mean(right),
                "flipped": mean(wrong),
                "gap": mean(gap),
                "growth": paired_difference(gap, first),
            }
        )
    return rows


def describe_growth(growth: Mapping[str, Difference]) -> str:
    """Say whether the gap grew beyond noise on mistakes and on benign responses (Holm)."""
    corrected = holm([1.0 if d.p is None else d.p for d in growth.values()])
    signs = [
        0 if p >= ALPHA else 1 if (d.value or 0) > 0 else -1
        for d, p in zip(growth.values(), corrected, strict=True)
    ]
    words = {1: "grew beyond noise", 0: "did not move beyond noise", -1: "shrank beyond noise"}
    each_one = "; ".join(
        f"on {name} it {words[sign]} ({with_interval(d, FINE_CHANGE)} nats a token, n {d.n})"
        for (name, d), sign in zip(growth.items(), signs, strict=True)
    )
    verdict = (
        "The model learnt to tell one from the other."
        if all(sign == 1 for sign in signs)
        else "Gained on one kind and lost on the other, it leans to one verdict and does not tell."
        if {1, -1} <= {*signs}
        else "So it is not shown that training taught p(T | Y, X)."
    )
    return (
        "The gap between right and flipped analyses, held out, p corrected for two tests: "
        f"{each_one}. {verdict}"
    )


def _drawn(rows: Sequence[Mapping[str, Any]], keys: Sequence[str], name: str, up: str) -> str:
    series = {
        f"{key}, {kind}": [(row["step"], row[key]) for row in rows if row["kind"] == kind]
        for kind in KINDS.values()
        for key in keys
    }
    return curves(series, name, "Training step", up)
