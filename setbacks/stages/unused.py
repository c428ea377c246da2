"""Settings of a recipe that change nothing under its other settings: a run says which.

`setbacks.methods.unused` names the keys of `train` that the method does not use. Here are those of
the whole recipe, as lines for the user. Only settings that differ from their defaults count.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from operator import attrgetter

from setbacks.files import expanded
from setbacks.methods import open_method, unused
from setbacks.methods.corrections import CorrectionOptions
from setbacks.models.embedded import MODELS
from setbacks.plugins import installed, plugin
from setbacks.recipe import AUTO, Engine, Recipe, Sampling
from setbacks.runs.redo import stages_of
from setbacks.stages import STAGES
from setbacks.stages.checks import OURS, induces
from setbacks.stages.preflight import measures_flips
from setbacks.stages.train import checks_texts

INDUCING = ("guidance", "attempts", "sampling", "judge", "min_harmful")
# Words of any language that are looked for in texts, whatever the language of the prompts.
FOUND_IN_ANSWERS = {"name", "refusal", "reply"}
# Keys of `train.lora`, and their names in PEFT's configuration.
LORA = {
    "r": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "layers": "layers_to_transform",
    "modules_to_save": "modules_to_save",
    "dora": "use_dora",
    "rslora": "use_rslora",
}


def unused_settings(recipe: Recipe) -> Iterator[str]:
    """Yield a line for each setting of a recipe that changes nothing in a run of it."""
    train = recipe.train
    for key, owner in train.unused():
        yield f"train.{key} is an option of {owner}; {train.method} does not use it"
    default = Recipe(train=train.defaults())
    for key in sorted(unused(recipe)):
        if is_set(f"train.{key}", recipe, default):
            yield f"train.{key} is set, but {train.method} does not use it with these settings"
    for key, why in _without_effect(recipe):
        if is_set(key, recipe, default):
            yield f"{key} is set, but changes nothing, since {why}"
    yield from _of_judges(recipe)
    yield from _of_words(recipe)
    yield from _repeated(recipe)
    yield from _of_engines(recipe)
    yield from _of_adapter(recipe)


def is_set(key: str, recipe: Recipe, default: Recipe) -> bool:
    """Whether a dotted key of a recipe differs from its default."""
    value = attrgetter(key)
    return bool(value(recipe) != value(default))


def _without_effect(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield each key that has no effect, whether or not it is set, and why."""
    if induces(recipe):
        source, judge = recipe.induce.source, recipe.induce.judge
        if source == "induced":
            yield "induce.existing", "induce.source is induced"
        if source == "existing":
            yield from ((f"induce.{key}", "induce.source is existing") for key in INDUCING)
        elif judge is None:
            yield "induce.min_harmful", "induce.judge is null"
        if recipe.preflight.flip_rate == "never":
            yield "preflight.mistakes", "preflight.flip_rate is never"
    judged = checks_texts(open_method(recipe), recipe) or measures_flips(recipe)
    if not recipe.evaluate and not judged:
        yield "train.judge", f"{recipe.train.method} learns no text that the model writes"
    if recipe.decontaminate is None and not recipe.evaluate:
        yield "held_out", "decontaminate is null, which also trains on held-out prompts"
    analyst = recipe.analyze.analyst
    if analyst and analyst.engine == "endpoint" and induces(recipe):
        yield "analyze.sampling.top_k", "servers do not get it; set top_k in endpoint.body"
    for name, sampling in _samplings(recipe):
        if sampling.temperature == 0:
            for key in ("top_p", "top_k"):
                yield f"{name}.{key}", f"{name}.temperature is 0"


def _of_judges(recipe: Recipe) -> Iterator[str]:
    """Yield a line for each judge that has nothing to judge."""
    asked = {suite.kind for suite in recipe.respond.suites}
    for judge in recipe.judges:
        if asked.isdisjoint(judge.kinds):
            yield (
                f"{judge.called} judges nothing, since no suite is of kind "
                f"{' or '.join(judge.kinds)} (judges.kinds)"
            )


def _of_words(recipe: Recipe) -> Iterator[str]:
    """Yield a line for own words in a language that no prompt is in, and for unused guidance."""
    for name, words in recipe.words.items():
        if "guided" in words and not _reads_guidance(recipe):
            yield f"words.{name}.guided changes nothing, since respond.guidance is false"
        if recipe.language not in (AUTO, name) and not words.keys() <= FOUND_IN_ANSWERS:
            yield (
                f"words.{name} changes no prompt, since language is {recipe.language}; for prompts "
                f"in the language of each row, set language to {AUTO}"
            )


def _reads_guidance(recipe: Recipe) -> bool:
    """Whether a stage reads the guidance; the report is made again after a change of any words."""
    stages = (stage for stage in stages_of(STAGES, recipe) if stage.name != "report")
    return any(stage.depends_on("words.*.guided", recipe) for stage in stages)


def _samplings(recipe: Recipe) -> Iterator[tuple[str, Sampling]]:
    """Yield the settings of each sampling in a run, with their key."""
    if induces(recipe):
        if recipe.induce.source != "existing":
            yield "induce.sampling", recipe.induce.sampling
        yield "analyze.sampling", recipe.analyze.sampling
    if not recipe.evaluate:
        not_used = unused(recipe)
        for key, value in recipe.train:
            if isinstance(value, Sampling) and key not in not_used:
                yield f"train.{key}", value
    if recipe.respond.posterior is None:  # its drafts have another temperature
        yield "respond.sampling", recipe.respond.sampling


def _repeated(recipe: Recipe) -> Iterator[str]:
    """Yield a line for texts that are generated several times, and are the same each time."""
    analyze = recipe.analyze
    analyst = (analyze.analyst or recipe.model).engine
    greedy = analyze.sampling.temperature == 0 and analyst in OURS  # a server's texts can differ
    if induces(recipe) and analyze.candidates > 1 and greedy:
        yield (
            f"analyze.candidates is {analyze.candidates}, but with analyze.sampling.temperature 0 "
            "all candidates are the same"
        )
    if recipe.evaluate or not open_method(recipe).has_teacher(recipe):
        return
    train = recipe.train
    if not isinstance(train, CorrectionOptions) or train.attempts == 1 or train.openings:
        return
    if train.correct.temperature == 0:
        yield (
            f"train.attempts is {train.attempts}, but with train.openings false and "
            "train.correct.temperature 0 all answers to a mistake are the same"
        )


def _of_engines(recipe: Recipe) -> Iterator[str]:
    """Yield a line for each option of a model that changes nothing."""
    lines = []
    for engine in recipe.parts(Engine):
        trained = engine is recipe.model and not recipe.evaluate
        for key, why in _ignored(engine, trained):
            if getattr(engine, key) != type(engine).model_fields[key].default:
                lines.append(f"{key} is set for {engine.model}, but changes nothing, since {why}")
    yield from dict.fromkeys(lines)  # arms can share a model


def _ignored(engine: Engine, trained: bool) -> Iterator[tuple[str, str]]:
    """Yield each option of a model that has no effect, whether or not it is set, and why.

    Args:
        engine: the model.
        trained: whether it is the model that is trained, which needs a device in any case.
    """
    if engine.engine in installed("engines"):
        for key in plugin("engines", engine.engine).unused:
            if not (trained and key == "device"):
                yield key, f"the engine {engine.engine} does not use it"
    if engine.engine not in OURS:
        return
    if engine.model in MODELS or expanded(engine.model).is_dir():
        yield "revision", "it is for models of the hub"
    if engine.chat_template != "own":
        yield "template", f"chat_template is {engine.chat_template}"


def _of_adapter(recipe: Recipe) -> Iterator[str]:
    """Yield a line for each key of `train.lora` that the adapter to continue does not have."""
    start = recipe.start
    path = start and start / "adapter_config.json"
    if recipe.evaluate or path is None or not path.is_file():
        return
    held, train = json.loads(path.read_text(encoding="utf-8")), recipe.train
    default = train.defaults().lora
    for key, theirs in LORA.items():
        value = getattr(train.lora, key)
        if value != getattr(default, key) and (held.get(theirs) or None) != (value or None):
            yield (
                f"train.lora.{key} is set, but changes nothing, since training continues the "
                f"adapter {start}, which keeps its shape"
            )
