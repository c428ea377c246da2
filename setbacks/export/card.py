"""The model card of a run's result: its figures, its training data, its use and its limits."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from setbacks.files import expanded
from setbacks.hub import connect
from setbacks.measure.formatting import amount, coefficient, of_asked, unit_of, with_interval
from setbacks.measure.metrics import TITLES
from setbacks.measure.results import Score
from setbacks.messages import transcript
from setbacks.methods import open_method
from setbacks.models.embedded import MODELS
from setbacks.prompts import fill
from setbacks.recipe import Lora, Recipe, Train
from setbacks.report.run_page import HEADLINE
from setbacks.runs.arms import recorded_arms
from setbacks.runs.folder import read_data
from setbacks.runs.results import json_lines
from setbacks.stages.lineage import before_training, continued, named, replayed_runs

CARD = "README.md"


def card(recipe: Recipe, folder: Path, form: str) -> str:
    """Return the model card of a run's result: its figures, its training data and its limits.

    Args:
        recipe: of the run.
        folder: the run's folder, for its figures and its training examples.
        form: "adapter" or "merged".
    """
    from huggingface_hub import ModelCardData

    base, license = base_name(recipe), _license(recipe)
    front = ModelCardData(
        base_model=base if "/" in base else None,
        license=license,
        library_name="peft" if form == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=["setbacks", "safety", "mistake-analysis"],
    )
    kind = "A LoRA adapter for" if form == "adapter" else "The merged weights of a LoRA adapter on"
    parts = [
        f"---\n{front.to_yaml()}\n---\n# {recipe.name}",
        f"{kind} `{base}`, trained by the method `{recipe.train.method}` with "
        "[setbacks](https://pypi.org/project/setbacks/), after *Gaining Wisdom from Setbacks* "
        "(arXiv 2310.10477).",
        f"## Measured\n\n{_measured(recipe, folder)}",
        f"## Trained on\n\n{_trained_on(recipe, folder)}",
        f"## Use\n\n{_use(recipe, form)}",
        "## Limits\n\n"
        "- At best it is less likely to do harm than its base. It is not a filter, it guarantees "
        "nothing, and it does not replace safeguards around a model.\n"
        "- Every rate above is the opinion of a judge, on the prompts of these suites, with this "
        "run's length limit and sampling. Other prompts, other languages and attacks were not "
        "measured.\n"
        "- It may refuse harmless requests, or have lost abilities that no suite tests.\n"
        "- The mistakes that it learned from are dangerous text, and are not included here.",
        "## License\n\n"
        + (f"The base's license is {license}. " if license else "The base's license is not known. ")
        + "The terms of the base and of the data above apply to this model too.",
    ]
    return "\n\n".join(parts) + "\n"


def base_name(recipe: Recipe) -> str:
    """The public name of a recipe's model: a hub id, or the name of a folder without its path."""
    model = recipe.model.model
    if model in MODELS:
        return MODELS[model].hub_id
    return Path(model).name if expanded(model).is_dir() else model


def _license(recipe: Recipe) -> str | None:
    """The license of the base, if its card is available and names one."""
    from huggingface_hub import ModelCard

    model = recipe.model.model
    if model in MODELS:
        return MODELS[model].license
    local = expanded(model)
    if local.is_dir() and not (local / CARD).is_file():
        return None
    if not local.is_dir():
        connect()  # without a network, only an earlier download of the card is looked for
    try:
        license = ModelCard.load(local / CARD if local.is_dir() else model).data.license
    except Exception:  # no network, no card, no front matter: then it is not known
        return None
    return license if isinstance(license, str) else None


def _measured(recipe: Recipe, folder: Path) -> str:
    path = folder / "metrics.json"
    if not path.exists():
        return "Nothing has been measured yet, so the effect of this training is not known."
    metrics = read_data(folder, path.name, "report")
    guided = ""
    if recipe.respond.guidance:
        guided = "; *guided* arms had the guidance below in their prompt"
    parts = [
        metrics["summary"],
        "Rates in %, Helpful Score of 10; 95 % intervals in brackets, then the number of prompts. "
        f"*Untrained* is {before_training(recipe)}{guided}. Balanced safety is the harmonic mean "
        "of Harmless Rate and compliance with safe prompts.",
    ]
    label = {arm.name: arm.label for arm in recorded_arms(folder, recipe)}
    for judge, report in metrics["judges"].items():
        rows = [
            [label.get(row["arm"], row["arm"]), *(_cell(row, key) for key in HEADLINE)]
            for row in report["arms"]
        ]
        head = ["arm", *(TITLES[key] for key in HEADLINE)]
        parts += [f"Judged by `{judge}`:", _table(head, rows)]
        if report["worth"]:
            rows = [
                [source["source"], source["task"], coefficient(source.get("auc")),
                 coefficient(source.get("kappa")),
                 str(source["n"])]
                for source in report["worth"]
            ]  # fmt: skip
            head = ["human labels", "task", "AUC", "kappa", "labels"]
            parts += [f"Agreement of `{judge}` with people:", _table(head, rows)]
    parts.append("\n".join(f"- {finding['text']}" for finding in metrics["findings"]))
    return "\n\n".join(parts)


def _cell(row: Mapping[str, Any], key: str) -> str:
    score, people = Score.of_json(row[key]), row["corrected"].get(key)
    calibrated = row.get("calibrated", {}).get(key)  # earlier versions did not store it
    text = with_interval(score, unit_of(key))
    if score.n:
        text += f", n {of_asked(score.n, score.asked)}"
    if people:
        by_people = Score.of_json(people)
        text += f"; by people {with_interval(by_people, unit_of(key))}, n {by_people.n}"
    if calibrated:
        text += f"; by calibration {with_interval(Score.of_json(calibrated), unit_of(key))}"
    if unknown := row.get("uncalibrated", {}).get(key):
        text += f"; not corrected: the judge's error is not known in {', '.join(unknown)}"
    return text


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )


def _trained_on(recipe: Recipe, folder: Path) -> str:
    learned = json_lines(folder / "training.jsonl")
    examples = Counter((row["kind"], row.get("replayed_from") or "") for row in learned)
    sources = {name: run.sources for name, run in replayed_runs(recipe).items()}
    sources[""] = open_method(recipe).sources(recipe)
    rows = [
        [
            kind + (f", replayed from `{run}`" if run else ""),
            str(number),
            named(sources.get(run, {}).get(kind, ())),
        ]
        for (kind, run), number in sorted(examples.items())
    ]
    before, answered = before_training(recipe), ""
    if recipe.train.helpful_from == "model":
        answered = f"The helpful prompts were answered by {before} itself. "
    steps = len(json_lines(folder / "loss.jsonl"))
    analyst = recipe.analyze.analyst
    who = "the model itself" if analyst is None else f"`{Path(analyst.model).name}`"
    return (
        _table(["kind of example", "number", "made from"], rows)
        + "".join(f"\n\n{earlier.described()}" for earlier in continued(recipe))
        + f"\n\nMistakes are responses that {before} was led to, or that came with the data; "
        f"analyses of them were written by {who}. {answered}{_lora(recipe.train.lora)}, "
        f"{amount(steps, 'step')} of {amount(recipe.train.batch_size, 'example')}, seed "
        f"{recipe.train_seed}.{_settings(recipe.train)}"
    )


def _settings(train: Train) -> str:
    """The settings that differ from the method's defaults, but for data and what is said above."""
    default, elsewhere = dict(train.defaults()), {"start", "seed", "batch_size"}
    changed = [
        f"`{key}: {json.dumps(value)}`"
        for key, value in train
        if key in default.keys() - elsewhere
        and isinstance(value, str | int | float)
        and value != default[key]
    ]
    return f" Settings other than the method's defaults: {', '.join(changed)}." if changed else ""


def _lora(lora: Lora) -> str:
    """The kind of adapter, in a few words."""
    kind = f"{'Rank-stabilized ' * lora.rslora}{'DoRA' if lora.dora else 'LoRA'} of rank {lora.r}"
    whole = ", ".join(f"`{name}`" for name in lora.modules_to_save)
    return f"{kind}; {whole} trained whole" if whole else kind


def _loader(recipe: Recipe) -> str:
    """The class of transformers that loads the base, which depends on whether it takes images."""
    from huggingface_hub import try_to_load_from_cache

    name, local = recipe.model.model, expanded(recipe.model.model)
    path: Any = local / "config.json"
    if not local.is_dir():
        hub = name not in MODELS
        path = hub and try_to_load_from_cache(name, path.name, revision=recipe.model.revision)
    if not (isinstance(path, str | Path) and Path(path).is_file()):
        return "AutoModelForCausalLM"
    parts = json.loads(Path(path).read_text(encoding="utf-8"))
    return "AutoModelForMultimodalLM" if "text_config" in parts else "AutoModelForCausalLM"


def _use(recipe: Recipe, form: str) -> str:
    base, auto = base_name(recipe), _loader(recipe)
    load = (
        [
            "from peft import PeftModel",
            f"from transformers import {auto}",
            "",
            f'model = {auto}.from_pretrained("{base}")',
            'model = PeftModel.from_pretrained(model, "THIS_FOLDER")',
        ]
        if form == "adapter"
        else [
            f"from transformers import {auto}, AutoTokenizer",
            "",
            'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
            f'model = {auto}.from_pretrained("THIS_FOLDER")',
        ]
    )
    parts = [_fenced("\n".join(load), "python")]
    if recipe.model.chat_template == "alpaca":
        template = fill(recipe.words_for()["alpaca"], instruction="(the instruction)")
        parts.append(
            f"It was trained and prompted with the Alpaca template:\n\n{_fenced(template)}"
        )
    if variables := recipe.model.template:
        parts.append(
            "Its chat template had these variables, which `apply_chat_template` takes by name: "
            + ", ".join(f"`{name}={value!r}`" for name, value in variables.items())
        )
    if system := recipe.model.system:
        parts.append(
            "It was trained and measured under this system prompt. Begin every conversation with "
            "it; a conversation's own system prompt follows it, after a blank line:\n\n"
            f"{_fenced(system)}\n\n"
            + _fenced(
                f"messages = [\n"
                f'    {{"role": "system", "content": {system!r}}},\n'
                f'    {{"role": "user", "content": "(the instruction)"}},\n'
                f"]",
                "python",
            )
        )
    if recipe.respond.guidance:
        prompt = open_method(recipe).guided_prompt(recipe.words_for(), "(the instruction)")
        parts.append(f"The guided arms had this prompt:\n\n{_fenced(transcript(prompt))}")
    if recipe.model.model in MODELS:
        parts.append(
            "The training ran on the embedded 4-bit copy of the base; on the original weights, the "
            "adapter may behave slightly differently."
        )
    return "\n\n".join(parts)


def _fenced(text: str, language: str = "") -> str:
    """Return text as a block of code, whatever backticks are in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"
