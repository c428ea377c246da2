"""Ablation: what each part of the method does, one factor at a time.

The first variant is the recipe as it is; each other one differs from it in one thing: where the
mistakes come from, who analyses, the training prompt, contrast analyses, the helpful mix, the place
of the verdict (arXiv 2310.10477, section 4.3); for mistake distillation, also whether the teacher
sees an analysis, and the right one, and the safe answers of the data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from setbacks.errors import InputError, nearest
from setbacks.methods import examples_of, open_method, unused
from setbacks.recipe import Recipe, Section
from setbacks.recipe.parts import Seeds, unique
from setbacks.report.page import Findings
from setbacks.runs.progress import Show
from setbacks.studies import Study, against_first
from setbacks.studies.variants import seeded, variant


def factors(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Return what each factor changes in a recipe: values by dotted key.

    The first two need `induce.existing`, `self_analysis` an analyst, and each one a method that
    uses what it changes.
    """
    return {
        "existing_mistakes": {"induce.source": "existing"},
        "both_mistakes": {"induce.source": "both"},
        "self_analysis": {"analyze.analyst": None},
        "no_analyses": {"train.context": "guidance"},
        "shuffled_analyses": {"train.analyses": "shuffled"},
        "no_safe_answers": {"train.safe": []},
        "guided_training": {"train.question": "guided"},
        "no_contrast": {"train.mix.contrast": 0.0},
        "no_helpful": {"train.mix.helpful": 0.0},
        "helpful_twice": {"train.mix.helpful": 2 * recipe.train.mix.helpful},
        "verdict_first": {"train.verdict": "first"},
        "verdict_weighted": {"train.verdict": "first", "train.verdict_weight": 5.0},
    }


class Ablation(Study):
    """Measure what each part of the method does, one factor at a time."""

    title = "ablation"
    question = "What does each part of the method do?"

    class Options(Section):
        """Options of `setbacks study ablation`."""

        factors: Annotated[list[str] | None, unique()] = Field(
            None,
            description="Factors to vary; null: all that the method uses and the recipe has data "
            "for.",
            min_length=1,
        )
        seeds: Seeds = Field(1, description="Trainings of each variant, with different seeds.")

    def check(self, recipe: Recipe, options: Options) -> None:
        """Check the recipe, and whether it has the data for each factor."""
        super().check(recipe, options)
        _chosen(recipe, options)

    def run(self, recipe: Recipe, options: Options, folder: Path, show: Show | None) -> Findings:
        """Train and measure the recipe, and every variant of it."""
        changed: dict[str, dict[str, Any]] = {"as_it_is": {}}
        known = factors(recipe)
        changed |= {name: known[name] for name in _chosen(recipe, options)}
        variants = seeded(recipe, changed, options.seeds)
        return against_first(self, recipe, folder, variants, show, "One factor at a time")


def _chosen(recipe: Recipe, options: Ablation.Options) -> list[str]:
    """Return the factors to vary.

    Raises:
        InputError: a factor is not known, lacks its data, or changes nothing.
    """
    if options.factors is None:
        if chosen := applicable(recipe):
            return chosen
        raise InputError(
            f"train.method: no factor changes anything for {recipe.train.method} with this recipe; "
            "use mistake_distillation, or another method that learns from mistakes"
        )
    known = factors(recipe)
    for name in options.factors:
        if name not in known:
            hint = nearest(name, known) or f" Available: {', '.join(known)}"
            raise InputError(f'study.factors: no "{name}".{hint}')
        if problem := _problem(recipe, name):
            raise InputError(f"study.factors: {name} {problem}")
    return options.factors


def applicable(recipe: Recipe) -> list[str]:
    """Return the factors that change something, and that a recipe has the data for."""
    return [name for name in factors(recipe) if not _problem(recipe, name)]


def _problem(recipe: Recipe, factor: str) -> str:
    """Return why a factor cannot be varied; empty if it can."""
    if factor in ("existing_mistakes", "both_mistakes") and not recipe.induce.existing:
        return "needs data in induce.existing; name it, or leave this out"
    if factor == "self_analysis" and recipe.analyze.analyst is None:
        return "needs analyze.analyst; name it, or leave this out"
    method, changes = recipe.train.method, factors(recipe)[factor]
    try:
        changed = variant(recipe, factor, changes).recipe
        examples_of(open_method(changed), changed, ())
    except InputError:
        return f"leaves {method} without the data that it needs; leave this out"
    if changed == variant(recipe, factor, {}).recipe:
        return "changes nothing, since the recipe has these values already; leave this out"
    if factor == "self_analysis" and getattr(changed.train, "context", None) == "guidance":
        return (
            "varies analyze.analyst, but train.context=guidance shows no analysis; leave this out"
        )
    for key in changes:
        section, _, option = key.partition(".")
        if section in ("induce", "analyze") and not open_method(changed).uses_mistakes:
            return f"varies {key}, but {method} learns from no mistakes; leave this out"
        has_it = option.partition(".")[0] in type(recipe.train).model_fields
        if section == "train" and (option in unused(changed) or not has_it):
            return f"varies {key}, which {method} does not use; leave this out"
    return ""
