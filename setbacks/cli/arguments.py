"""From the words of a command line to a recipe, a mapping of fields, and a folder."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from setbacks.data.source import USUAL
from setbacks.errors import InputError, nearest
from setbacks.files import expanded
from setbacks.models.adapters import named_base
from setbacks.models.embedded import MODELS
from setbacks.recipe import DOTTED, LONGEST_NAME, Recipe, name_problem, parse_overrides
from setbacks.records import Kind
from setbacks.runs.arms import choose_arm, planned_arms
from setbacks.runs.folder import Run
from setbacks.runs.redo import is_inside
from setbacks.text import quoted

# How names of answers begin or end, unlike those of models.
_BEGINS = ("hub:", "preset:", "builtin:")
_ENDS = (".json", ".jsonl", ".csv", ".parquet")
# Keys of a recipe that an evaluation does not use; `train` only for posterior decoding.
_OF_TRAINING = (
    *("instructions", "decontaminate", "held_out", "induce", "analyze", "preflight"),
    *("train", "evaluate", "compare", "loop", "jobs", "study"),
)


def load_recipe(
    path: str | None, overrides: Sequence[str] | None, options: Sequence[str] = ()
) -> Recipe:
    """Load a recipe; without a file, its place may hold the first override.

    Args:
        path: the word in the place of the recipe.
        overrides: ``key.path=value`` strings.
        options: overrides that a command's options stand for; they win.

    Raises:
        InputError: see `Recipe.load`; or a key without a value stands for the recipe.
    """
    words = list(overrides or [])
    if path is not None and not Path(path).exists():
        if "=" in path:
            words, path = [path, *words], None
        elif path.partition(".")[0] in Recipe.model_fields:
            raise InputError(f"{path}: to set this key, write {path}=VALUE")
    return Recipe.load(path, [*words, *options])


def of_methods(recipe: Recipe, names: str) -> Recipe:
    """Return a recipe that compares only some of its arms, or other methods.

    Args:
        recipe: the recipe.
        names: names of arms in the recipe's comparison, or of methods, separated by commas.

    Raises:
        InputError: a name stands twice, or there is none.
    """
    data = recipe.model_dump(mode="json")
    arms = {arm.called: arm.model_dump(mode="json") for arm in recipe.compare.methods}
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    data["compare"]["methods"] = [arms.get(name, name) for name in chosen]
    return Recipe.parse(data, "--methods")


def run_or_recipe(
    word: str, overrides: Sequence[str] | None, out: Path | None
) -> tuple[Path, Recipe | None]:
    """Return the run folder of a stage's command, and the recipe if the command names one.

    Args:
        word: a run folder, a recipe, or an override of the quickstart.
        overrides: ``key.path=value`` strings.
        out: the folder of a recipe's run; None for the default.

    Raises:
        InputError: a run folder comes with overrides or another folder; or see `load_recipe`.
    """
    path = expanded(word)
    if path.is_file() or (not path.exists() and ("=" in word or path.suffix in (".yaml", ".yml"))):
        recipe = load_recipe(word, overrides)
        return out or default_folder(recipe), recipe
    if overrides:
        command = shlex.join(["setbacks", "run", str(path / "recipe.yaml"), *overrides])
        raise InputError(
            f"{word}: a run keeps its recipe; to redo stages with other values, use `{command} "
            f"--out {quoted(word)} --from STAGE`"
        )
    if out:
        raise InputError(f"{word}: --out goes with a recipe; a run stays in its folder")
    return Path(word), None


def judge_recipe(judge: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return a recipe for one judge, which is the last in it.

    Args:
        judge: its name.
        overrides: ``key.path=value`` strings of the judge, such as engine.model=DIR; `language`,
            `policy` and `seed` are the recipe's. The judges that a vote is `of` come before it, and
            their keys follow their names: of=[probe,llm] llm.engine.model=DIR.

    Raises:
        InputError: an unknown key or a bad value.
    """
    options = parse_overrides(overrides) if overrides else {}
    outer = {key: options.pop(key) for key in ("language", "seed", "policy") if key in options}
    # It judges what it is given, so the kinds that it would choose do not matter.
    members = options.get("of")
    specs = [
        {"judge": name} | (options.pop(name) if isinstance(options.get(name), dict) else {})
        for name in (members if isinstance(members, list) else [])
        if isinstance(name, str)
    ]
    specs = [spec | {"kinds": ["harmful"]} for spec in (*specs, {"judge": judge} | options)]
    return Recipe.parse(outer | {"judges": specs}, "the command line").rebased(Path.cwd())


def field_mapping(fields: str | None) -> dict[str, str]:
    """Return our field -> theirs, of OURS=THEIRS,...

    Raises:
        InputError: a field is unknown.
    """
    pairs = [pair.partition("=") for pair in fields.split(",")] if fields else []
    mapping = {ours.strip(): theirs.strip() for ours, _, theirs in pairs}
    if unknown := [ours for ours in mapping if ours not in USUAL]:
        raise InputError(
            f'--fields: unknown field "{unknown[0]}".{nearest(unknown[0], USUAL)} Available: '
            f"{', '.join(USUAL)}"
        )
    return mapping


def default_folder(recipe: Recipe, ending: str = "") -> Path:
    """Return the folder of a run without --out: inside `runs`, whatever the recipe's name."""
    shown = "".join(c if c.isprintable() and c not in "/\\" else "-" for c in recipe.name)
    name = shown.encode("utf-8", "replace")[:200].decode("utf-8", "ignore").lstrip(".")
    return Path("runs") / ((name or "run") + ending)


# Evaluations: a word names an arm, as MODEL, NAME=MODEL or NAME=ANSWERS, or overrides the recipe.


def evaluation(
    words: Sequence[str],
    suites: Sequence[str] = (),
    judges: Sequence[str] = (),
    fields: Mapping[str, str] | None = None,
) -> Recipe:
    """Return the recipe of an evaluation: an ordinary recipe that trains nothing.

    Args:
        words: arms and overrides, in any order. The first arm is the baseline.
        suites: names of built-in suites, KIND=SOURCE, or recipes that have suites; empty for all
            built-in ones.
        judges: names; empty for the recipe's.
        fields: our field -> theirs, in files of answers; without any, in those of suites.

    Raises:
        InputError: a word is neither an arm nor an override, there is no arm, or the recipe is
            invalid.
    """
    keys = [word for word in words if _is_override(word)]
    base = next((word for word in keys if word.startswith(("model=", "model.model="))), None)
    arms = [_arm(word, dict(fields or {}), base) for word in words if word not in keys]
    if not arms:
        raise InputError(
            "nothing to evaluate: name a model (smollm2-135m, a folder, a PEFT adapter, a hub id) "
            "or NAME=answers.jsonl"
        )
    recipe = Recipe.load(None, ["name=evaluation", *keys])
    _check_used(keys, recipe)
    data = recipe.model_dump(mode="json")
    data["evaluate"] = [
        arm | {"model": data["model"] | arm["model"]} if "model" in arm else arm for arm in arms
    ]
    own = {source["source"]: source for arm in arms for source in arm.get("answers", ())}
    if suites:
        data["respond"]["suites"] = _suites(suites, own, {} if own else dict(fields or {}))
    if fields and not own and not any("=" in suite for suite in suites):
        raise InputError("--fields names fields of files, and none is given; remove it")
    if judges:
        data["judges"] = list(judges)
    return Recipe.parse(data, "the command line").rebased(Path.cwd())


def _check_used(overrides: Sequence[str], recipe: Recipe) -> None:
    """Refuse overrides that would change nothing in an evaluation.

    Raises:
        InputError: there is one.
    """
    for word in overrides:
        if is_inside(word.partition("=")[0], "adapter"):
            raise InputError(f"{word}: name the adapter's folder as a model instead")
    by_posterior = recipe.respond.posterior is not None
    unused = [key for key in _OF_TRAINING if key != "train" or not by_posterior]
    refuse_unused(overrides, unused, "an evaluation")


def refuse_unused(overrides: Sequence[str], unused: Sequence[str], what: str) -> None:
    """Refuse overrides that would change nothing.

    Args:
        overrides: ``key.path=value`` strings.
        unused: dotted keys of a recipe; those inside them count, too.
        what: does not use them, such as "an evaluation".

    Raises:
        InputError: there is one.
    """
    for word in overrides:
        key = word.partition("=")[0]
        if any(is_inside(key, own) for own in unused):
            raise InputError(f"{word}: {what} does not use {key}; remove it")


def replayed(
    models: str, words: Sequence[str], judge: str | None = None
) -> tuple[list[str], Recipe]:
    """Return the logs that a command names, and the evaluation of the models that replay them.

    Args:
        models: as `evaluation` takes them, separated by commas. The first is the baseline.
        words: logs and ``key.path=value`` overrides, in any order.
        judge: its name; None for the recipe's.

    Raises:
        InputError: no log is named, or a model is a file of answers; also as `evaluation`.
    """
    keys = [word for word in words if _is_override(word)]
    logs = [word for word in words if word not in keys]
    if not logs:
        raise InputError("nothing to replay: name a log, such as chats.jsonl")
    arms = [word.strip() for word in models.split(",") if word.strip()]
    recipe = evaluation([*arms, *keys], judges=[judge] if judge else ())
    if answers := [arm.name for arm in recipe.evaluate if arm.answers]:
        raise InputError(f"--models {answers[0]}: a file of answers; name a model that can answer")
    return logs, recipe


def is_assignment(word: str) -> bool:
    """Return whether a word has the form KEY=VALUE, and is not the name of a file."""
    return "=" in word and not Path(word).exists()


def _is_override(word: str) -> bool:
    """Whether a word sets a key of the recipe, or looks like a misspelled key.

    Raises:
        InputError: it could also be an arm that has the name of a key.
    """
    if not is_assignment(word):
        return False
    key, _, value = word.partition("=")
    first = re.split(r"[.[]", key)[0]
    if key in Recipe.model_fields and _is_answers(value):
        raise InputError(f'{word}: "{key}" is a key of the recipe; rename the arm')
    if first in Recipe.model_fields:
        return True
    looks_like_a_key = first != key and re.fullmatch("[a-z_]+", first)
    return bool(looks_like_a_key and nearest(first, Recipe.model_fields))


def _is_answers(value: str) -> bool:
    """Whether a word names answers rather than a model."""
    return value.startswith(_BEGINS) or value.lower().removesuffix(".gz").endswith(_ENDS)


def _arm(word: str, fields: dict[str, str], base: str | None) -> dict[str, Any]:
    """Return the arm that a word names, as in a recipe; `base` overrides an adapter's model."""
    name, _, value = word.partition("=") if is_assignment(word) else ("", "", word)
    if name and (problem := name_problem(name, DOTTED)):
        raise InputError(f"{word}: {problem}")
    if _is_answers(value):
        return {"name": name or _name(value), "answers": [{"source": value, "fields": fields}]}
    if not value:
        hint = nearest(name, Recipe.model_fields)
        raise InputError(f"{word}: no model or file after the equals sign.{hint}")
    if value.endswith((".yaml", ".yml")):
        raise InputError(f"{value}: a recipe, not a model; to answer its suites: --suite {value}")
    if run := _run(value):
        return _arm_of_run(*run, name)
    config = expanded(value) / "adapter_config.json"
    if config.is_file():
        model = {} if base else {"model": adapter_base(config)}
        return {"name": name or _name(value), "model": model, "adapter": value}
    return {"name": name or _name(value), "model": {"model": value}}


def _run(value: str) -> tuple[Path, str] | None:
    """Return the run folder and the name of the arm that RUN or RUN:ARM names, if it is one."""
    for path, arm in ((value, ""), value.rpartition(":")[::2]):
        if path and (expanded(path) / "recipe.yaml").is_file():
            return expanded(path), arm
    return None


def _arm_of_run(path: Path, arm: str, name: str) -> dict[str, Any]:
    """Return an arm of a run as an arm of an evaluation; by default, the one that it trained.

    Raises:
        InputError: the arm does not exist, or it answers with guidance.
    """
    run = Run(path)
    unguided = [one for one in planned_arms(run.recipe) if one.way == "unguided"]
    chosen = choose_arm(path, unguided, arm, trained=True, among=" without guidance")
    name = name or (chosen.name if arm else _name(str(path)))
    if run.recipe.evaluate:
        spec = next(one for one in run.recipe.evaluate if one.name == chosen.name)
        if spec.model is None:
            raise InputError(f"{path}: {chosen.name} has answers, and no model to answer more")
        model, adapter = spec.model, spec.adapter and Path(spec.adapter)
    else:
        model = run.recipe.model
        adapter = run.path / "adapter" if chosen.trained else run.recipe.current
    data: dict[str, Any] = {
        "name": name,
        "model": {"model": model.model} | model.model_dump(mode="json", exclude_defaults=True),
    }
    return data if adapter is None else data | {"adapter": str(adapter)}


def _name(value: str) -> str:
    """Return a name for an arm: that of its file or folder, or of the run of an adapter."""
    path = Path(value)
    last = path.absolute().parent.name if path.name == "adapter" else path.name
    for ending in (".gz", *_ENDS):
        last = last.removesuffix(ending)
    return re.sub(r"[^A-Za-z0-9_-]+", "-", last).strip("-")[:LONGEST_NAME] or "model"


def adapter_base(config: Path) -> str:
    """Return the model that a PEFT adapter was trained on.

    Args:
        config: its `adapter_config.json`.

    Raises:
        InputError: the file does not name it.
    """
    base = named_base(config)
    if base is None:
        raise InputError(f"{config}: does not name the adapter's base model; add model.model=BASE")
    return next((alias for alias, model in MODELS.items() if model.hub_id == base), base)


def _suites(
    words: Sequence[str], answers: Mapping[str, dict[str, Any]], fields: dict[str, str]
) -> list[dict[str, Any]]:
    """Return suites as in a recipe; a file of answers is read with the same fields again.

    Args:
        words: as `evaluation` takes them.
        answers: sources of the arms that are files, by name.
        fields: our field -> theirs, in other files.
    """
    builtin = {suite.name: suite for suite in Recipe().respond.suites}
    kinds = get_args(Kind)
    suites: list[dict[str, Any]] = []
    for word in words:
        kind, equals, source = word.partition("=")
        if word in builtin:
            suites.append(builtin[word].model_dump(mode="json"))
        elif word.endswith((".yaml", ".yml")):
            suites += [suite.model_dump(mode="json") for suite in Recipe.load(word).respond.suites]
        elif equals and kind in kinds:
            before = sum(suite["kind"] == kind for suite in suites)
            name = f"{kind}-{before + 1}" if before else kind
            sources = [answers.get(source, {"source": source, "fields": fields})]
            suites.append({"name": name, "kind": kind, "sources": sources})
        else:
            raise InputError(
                f'unknown suite "{word}".{nearest(kind, [*builtin, *kinds])} Use one of '
                f"{', '.join(builtin)}, a recipe that has suites, or KIND=SOURCE, where KIND is "
                f"one of {', '.join(kinds)}"
            )
    return suites
