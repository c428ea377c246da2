"""Posterior: does training raise p(T | Y, X) of right analyses above that of wrong ones?

The paper's Bayesian claim (arXiv 2310.10477, section 3.3) is that analyses teach the model
p(T | Y, X). It is measured on responses whose analyses were kept out of training: the likelihood of
each one's analysis, and of the same analysis with the opposite verdict, before, during and
after. Both rise as the model learns how analyses are worded; the gap between them is the verdict.
A model that comes to call all things harmful gains on mistakes and loses as much on benign
responses, so both are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

from pydantic import Field

from setbacks.errors import InputError
from setbacks.measure.formatting import FINE_CHANGE, with_interval
from setbacks.measure.metrics import ALPHA
from setbacks.measure.statistics import Difference, holm, mean, paired_difference
from setbacks.methods import example, open_method
from setbacks.methods.mistake_analysis import own_analyses
from setbacks.prompts import Words
from setbacks.recipe import Recipe, Section
from setbacks.records import Analysis, Example
from setbacks.report.page import Findings, Picture, Table
from setbacks.report.plots import curves
from setbacks.runs.folder import Run, RunFolder
from setbacks.runs.progress import Show
from setbacks.runs.session import Session
from setbacks.stages.train import of_categories
from setbacks.studies import Study, at_least
from setbacks.studies.likelihood import read
from setbacks.studies.variants import each, variant

FEWEST = 6  # held-out analyses of each kind: below, an interval says nothing
MEASURES = ("right", "flipped", "gap", "growth")
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
        part = variant(recipe, "held_out", _held_out_overrides(recipe, options, right))
        ((_, trained),) = each(folder, [part], "train", show, [(whole, path)])
        with RunFolder(trained) as opened, Session(opened, show) as run:
            held_out = _held_out(run, right)
            pairs = _pairs(held_out, recipe.spoken_words())
            likelihoods = read(run, _states(run), [e for pair in pairs for e in pair])
        rows = [
            {"kind": name, **row}
            for kind, name in KINDS.items()
            for row in _rows(likelihoods, [right.kind == kind for right, _ in pairs])
        ]
        growth = {row["kind"]: row["growth"] for row in rows}  # the last step's
        return Findings(
            title=f"{recipe.name}: {self.title}",
            question=self.question,
            answer=[describe_growth(growth)],
            tables=[_table(name, rows) for name in KINDS.values()],
            pictures=_pictures(rows),
            method=[
                f"{len(held_out)} responses were kept out of training, "
                f"{len(held_out) - len(pairs)} of "
                "them left out here since their analysis does not name its verdict. A flipped "
                "analysis is the right one with the words for harmful and harmless exchanged: "
                "its reasons stay, so the gap is that of the verdict. The question is training's "
                "own.",
            ],
            data={"rows": rows, "held_out": len(held_out), "pairs": len(pairs)},
        )


# -- held-out analyses ------------------------------------------------------------------------


def _right(recipe: Recipe, analyses: Sequence[Analysis]) -> dict[str, list[Example]]:
    """The right analysis of every response, by kind, of the categories that are trained on.

    Shuffled analyses count as they were, and no limit on their number applies.
    """
    if recipe.train.categories is not None:
        analyses = of_categories(analyses, recipe.train.categories)
    quality = "unfiltered" if recipe.train.analyses == "unfiltered" else "filtered"
    update = {"analyses": quality, "most_analyses": None}
    all_of_them = recipe.model_copy(update={"train": recipe.train.model_copy(update=update)})
    own = own_analyses(all_of_them, analyses)
    return {"analysis": own.harmful, "contrast": own.contrast}


def _held_out_overrides(
    recipe: Recipe, options: Posterior.Options, right: Mapping[str, Sequence[Example]]
) -> dict[str, Any]:
    """What to change in the recipe so that training leaves a share of the analyses out.

    Raises:
        InputError: too few are left out.
    """
    kept = {kind: round((1 - options.held_out) * len(rows)) for kind, rows in right.items()}
    for kind, rows in right.items():
        what = f"held-out analyses of {KINDS[kind]} (of {len(rows)}; study.held_out is the share)"
        at_least(len(rows) - kept[kind], FEWEST, what)
    most = recipe.train.most_analyses
    number = kept["analysis"] if most is None else min(most, kept["analysis"])
    return {
        "train.most_analyses": number,
        "train.mix.contrast": min(recipe.train.mix.contrast, kept["contrast"] / max(number, 1)),
        "train.snapshots": options.snapshots,
    }


def _held_out(run: Session, right: Mapping[str, Sequence[Example]]) -> list[Example]:
    """The right analyses that the run did not train on."""
    trained = {p for e in run.records("training.jsonl", Example) for p in e.parents}
    return [e for rows in right.values() for e in rows if not trained & {*e.parents}]


def _pairs(held_out: Sequence[Example], words: Sequence[Words]) -> list[tuple[Example, Example]]:
    """Each right analysis with its flipped one, where it names its verdict.

    Raises:
        InputError: too few do.
    """
    pairs = [(right, wrong) for right in held_out if (wrong := flipped(right, words))]
    for kind, name in KINDS.items():
        number = sum(right.kind == kind for right, _ in pairs)
        at_least(number, FEWEST, f"held-out analyses of {name} that name their verdict")
    return pairs


def flipped(right: Example, words: Sequence[Words]) -> Example | None:
    """Return an analysis with the opposite verdict; None if it names no verdict.

    Every word for harmful becomes the one for harmless, and vice versa.
    """
    other: dict[str, str] = {}
    for one in words:
        pair = [word.rstrip(".。।").lower() for word in one["verdict"].values()]
        other |= dict(zip(pair, reversed(pair), strict=True))

    def swap(match: re.Match[str]) -> str:
        word = other[match[0].lower()]
        return word.capitalize() if match[0][0].isupper() else word

    text, number = re.subn(
        "|".join(map(re.escape, other)), swap, right.completion, flags=re.IGNORECASE
    )
    if not number:
        return None
    return example(f"{right.kind}-flipped", right.instruction, text, list(right.parents))


# -- measurements -----------------------------------------------------------------------------


def _states(run: Session) -> dict[str, Path | None]:
    """The adapters to measure, by training step; step 0 is the model that training continues."""
    snapshots = sorted((run.path / "snapshots").glob("[0-9]*"))
    return {"0": run.recipe.start} | {str(int(path.name)): path for path in snapshots}


def _rows(
    likelihoods: Mapping[str, Sequence[float]], chosen: Sequence[bool]
) -> list[dict[str, Any]]:
    """Summarize the likelihoods of the chosen pairs at each step.

    Args:
        likelihoods: by step; right and flipped analyses alternate.
        chosen: whether to include each pair.
    """
    rows, first = [], None
    for state, values in likelihoods.items():
        right = list(compress(values[0::2], chosen))
        wrong = list(compress(values[1::2], chosen))
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


# -- words, tables and pictures ---------------------------------------------------------------


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
        "The model learned to tell one from the other."
        if all(sign == 1 for sign in signs)
        else "Gained on one kind and lost on the other, it leans to one verdict and does not tell."
        if {1, -1} <= {*signs}
        else "So it is not shown that training taught p(T | Y, X)."
    )
    return (
        "The gap between right and flipped analyses, held out, p corrected for two tests: "
        f"{each_one}. {verdict}"
    )


def _table(name: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    own = [row for row in rows if row["kind"] == name]
    return Table(
        f"Log-likelihood of held-out analyses of {name}, nats a token",
        ["Step", "right", "verdict flipped", "gap", "growth of the gap"],
        [
            [str(row["step"]), *(with_interval(row[key], FINE_CHANGE) for key in MEASURES)]
            for row in own
        ],
        f"{own[-1]['right'].n} responses. 95 % intervals over responses. Growth is paired with "
        "the same responses at step 0.",
    )


def _pictures(rows: Sequence[Mapping[str, Any]]) -> list[Picture]:
    return [
        Picture(
            "The gap over training",
            _curves(rows, ("gap",), "p0", "Right minus flipped, nats a token"),
            "Above 0 the right verdict is the likelier one.",
        ),
        Picture(
            "Both over training",
            _curves(rows, ("right", "flipped"), "p1", "Log-likelihood, nats a token"),
        ),
    ]


def _curves(rows: Sequence[Mapping[str, Any]], keys: Sequence[str], name: str, axis: str) -> str:
    series = {
        f"{key}, {kind}": [(row["step"], row[key]) for row in rows if row["kind"] == kind]
        for kind in KINDS.values()
        for key in keys
    }
    return curves(series, name, "Training step", axis)
