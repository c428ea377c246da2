"""`setbacks export`: a run's adapter, merged model, training examples or Inspect logs, in a folder.

`FORMATS` has a function for each format, which fills a new folder. A format for others contains
only the files that its function names: mistakes, answers and training examples stay in the run. A
format of `PRIVATE` holds them, so only the owner can read its folder.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from setbacks.errors import InputError, nearest
from setbacks.export.card import CARD, base_name, card
from setbacks.files import appearing
from setbacks.messages import as_data, with_system
from setbacks.models.adapters import merged as merge
from setbacks.models.chat_template import stop_tokens
from setbacks.models.embedded import resolve
from setbacks.models.loading import load_model, load_tokenizer
from setbacks.notices import notice
from setbacks.prompts import Words
from setbacks.recipe import Recipe
from setbacks.records import Example
from setbacks.runs.folder import Run, read_data
from setbacks.runs.journal import is_torn
from setbacks.text import quoted


def export(folder: Path, to: Path, form: str = "adapter") -> Path:
    """Write a run's result into a new folder, which appears complete or not at all.

    Args:
        folder: the run's folder; it is only read.
        to: the new folder.
        form: one of `FORMATS`.

    Raises:
        InputError: there is no run or nothing to export in it, no such format, or `to` exists;
            or a library that the format needs is not installed.
        SetbacksError: it cannot be written.
    """
    if form not in FORMATS:
        raise InputError(
            f'unknown format "{form}".{nearest(form, FORMATS)} Available: {", ".join(FORMATS)}'
        )
    run = Run(folder)
    if os.path.lexists(to):
        raise InputError(f"{to}: already exists, and nothing is overwritten; name another folder")
    for pattern in PRIVATE.get(form, ()):
        _check_whole(run.path, pattern)
    with appearing(to, private=form in PRIVATE) as place:
        FORMATS[form](run, place)
    return to


def _adapter(run: Run, place: Path) -> None:
    """PEFT's files as they are; a base on this machine goes by its name, without its path."""
    source = _trained(run)
    for weights in source.glob("*.safetensors"):
        shutil.copyfile(weights, place / weights.name)
    config = read_data(run.path, "adapter/adapter_config.json", "train")
    config["base_model_name_or_path"] = base_name(run.recipe)
    text = json.dumps(config, indent=1) + "\n"
    (place / "adapter_config.json").write_text(text, encoding="utf-8")
    (place / CARD).write_text(card(run.recipe, run.path, "adapter"), encoding="utf-8")


def _merged(run: Run, place: Path) -> None:
    """The whole model, as transformers saves one, in the format of the base's own weights."""
    recipe, source = run.recipe, _trained(run)
    tokenizer = load_tokenizer(recipe.model)
    spec = recipe.model.model_copy(update={"device": "cpu", "dtype": _dtype(recipe)})
    model = merge(load_model(spec), source)
    # Turns end elsewhere as they do here, and a base model gets the template of its prompts.
    model.generation_config.eos_token_id = sorted(stop_tokens(model, tokenizer, spec.chat_template))
    model.generation_config._from_model_config = False  # else `generate` may build a new one
    if spec.chat_template == "alpaca":
        tokenizer.chat_template = _alpaca(recipe.words_for())
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    _copy_processors(recipe, place)
    (place / CARD).write_text(card(recipe, run.path, "merged"), encoding="utf-8")


def _copy_processors(recipe: Recipe, place: Path) -> None:
    """Copy the settings that prepare images, videos and sound, if the base takes any."""
    from transformers.utils import (
        FEATURE_EXTRACTOR_NAME,
        PROCESSOR_NAME,
        VIDEO_PROCESSOR_NAME,
        cached_file,
    )

    for name in (FEATURE_EXTRACTOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME):
        path = cached_file(
            resolve(recipe.model.model),
            name,
            revision=recipe.model.revision,
            _raise_exceptions_for_missing_entries=False,
        )
        if path is not None:
            shutil.copyfile(path, place / name)


def _trl(run: Run, place: Path) -> None:
    """The training examples as messages, for other trainers: see TRL's dataset formats.

    Examples whose beginning is given are left out: the format would have that beginning, a mistake,
    learned.

    Source: https://huggingface.co/docs/trl/dataset_formats (conversational).
    """
    rows: dict[str, list[dict[str, Any]]] = {"train.jsonl": [], "preferences.jsonl": []}
    examples = run.records("training.jsonl", Example)
    learned = [example for example in examples if example.given is None]
    if left_out := len(examples) - len(learned):
        notice(
            f"{place}: left out {left_out} of {len(examples)} examples that go on from the "
            "beginning of a mistake (train.recovery): this format would have the beginning "
            "learned, too"
        )
    for example in learned:
        prompt = as_data(tuple(with_system(example.prompt, run.recipe.model.system)))
        thought = {"reasoning_content": example.thought} if example.thought else {}
        reply = {"role": "assistant", "content": example.completion} | thought
        if example.rejected is None:
            rows["train.jsonl"].append({"prompt": prompt, "completion": [reply]})
        else:
            bad = [{"role": "assistant", "content": example.rejected}]
            rows["preferences.jsonl"].append({"prompt": prompt, "chosen": [reply], "rejected": bad})
    if not any(rows.values()):
        train = f"setbacks train {quoted(run.path)}"
        raise InputError(f"{run.path}: no training examples yet; first `{train}`")
    for name, lines in rows.items():
        if lines:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (place / name).write_text(text, encoding="utf-8", errors="replace")


def _inspect(run: Run, place: Path) -> None:
    """Inspect's logs of every arm's answers, with the verdicts of every judge."""
    try:
        import inspect_ai  # noqa: F401  else our package of that name fails with a less clear error
    except ImportError as error:
        raise InputError(
            f"--format inspect needs {error.name}: pip install 'setbacks[inspect]'"
        ) from None
    from setbacks.inspect_ai.logs import write

    write(run, place)


FORMATS: dict[str, Callable[[Run, Path], None]] = {
    "adapter": _adapter,
    "merged": _merged,
    "trl": _trl,
    "inspect": _inspect,
}
PRIVATE = {  # formats that hold records of a run, and the files of these records
    "trl": ("training.jsonl",),
    "inspect": ("responses/*.jsonl", "verdicts/*.jsonl", "thoughts/*.jsonl"),
}


def _trained(run: Run) -> Path:
    from safetensors import SafetensorError, safe_open

    folder, adapter = run.path, run.path / "adapter"
    if run.recipe.evaluate:
        raise InputError(f"{folder}: an evaluation; it trains nothing, so there is no adapter")
    if not adapter.is_dir():
        raise InputError(f"{folder}: no adapter yet; first `setbacks train {quoted(folder)}`")
    again = f"train it again with `setbacks train {quoted(folder)} --from train`"
    files = [*adapter.glob("*.safetensors")]
    if not files:
        raise InputError(f"{adapter}: no weights (*.safetensors); {again}")
    for weights in files:
        try:
            with safe_open(weights, "numpy"):
                pass  # reads the table of contents, and compares it with the size of the file
        except (OSError, SafetensorError) as error:
            raise InputError(f"{weights}: damaged ({error}); {again}") from None
    return adapter


def _check_whole(folder: Path, pattern: str) -> None:
    """Check that no record in some files of a run is cut.

    Raises:
        InputError: the last line of a file has no end.
    """
    for path in sorted(folder.glob(pattern)):
        if is_torn(path):
            raise InputError(
                f"{path}: its last line is incomplete: another process is writing to it, or it was "
                f"cut; `setbacks report {quoted(folder)}` completes the run"
            )


def _dtype(recipe: Recipe) -> str:
    """The recipe's number format; by default, that of the base's weights."""
    if recipe.model.dtype != "auto":
        return recipe.model.dtype
    from transformers import AutoConfig

    spec = recipe.model
    config = AutoConfig.from_pretrained(
        resolve(spec.model, spec.revision),
        revision=spec.revision,
        trust_remote_code=spec.trust_remote_code,
    )
    kept = str(getattr(config, "dtype", None)).removeprefix("torch.")
    return kept if kept in ("float32", "bfloat16", "float16") else "float32"


def _alpaca(words: Words) -> str:
    """The Alpaca prompt as a chat template, with room for one instruction."""
    before, after = words["alpaca"].split("{instruction}")
    return (
        "{% if messages | length != 1 or messages[0]['role'] != 'user' %}"
        "{{ raise_exception('this model takes one instruction and nothing else') }}{% endif %}"
        f"{{{{ bos_token or '' }}}}{{{{ {json.dumps(before)} }}}}"
        f"{{{{ messages[0]['content'] }}}}{{{{ {json.dumps(after)} }}}}"
    )
