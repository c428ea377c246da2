"""Adapters: check that one fits a model, attach it to the model, or merge it into the weights."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from setbacks.errors import InputError
from setbacks.files import expanded
from setbacks.models.embedded import ALIAS, HUB_ID


def named_base(config: Path) -> str | None:
    """Return the base model that an `adapter_config.json` names; None if it names none."""
    try:
        base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return base if isinstance(base, str) and base else None


def check_adapter(adapter: Path | str, model: str) -> None:
    """Check that a folder has an adapter of a model, as far as names can show.

    Raises:
        InputError: it has none, only pickled weights, or one of another model on the hub.
    """
    adapter = expanded(adapter)
    config = adapter / "adapter_config.json"
    if not config.is_file() or not (adapter / "adapter_model.safetensors").is_file():
        raise InputError(
            f"{adapter}: not an adapter (adapter_config.json and adapter_model.safetensors); name "
            "the folder that PEFT saved it in"
        )
    try:
        base = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{config}: not a JSON object; save the adapter again") from error
    names = [str(base), HUB_ID if model == ALIAS else model]
    # Folders can be moved and renamed: only hub names are comparable.
    on_hub = all(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", n) and not Path(n).exists() for n in names)
    if on_hub and names[0].lower() != names[1].lower():
        raise InputError(
            f"{adapter}: an adapter for {names[0]}, not for {names[1]}; if the weights are the "
            f"same, set base_model_name_or_path in its adapter_config.json to {names[1]}"
        )


def check_tokenizer(adapter: Path, tokenizer: Any) -> None:
    """Check that the tokenizer saved with an adapter, if any, is the model's.

    Additional tokens are accepted: trainers add one for padding.

    Raises:
        InputError: a token has another id, or none.
    """
    from tokenizers import Tokenizer

    path = adapter / "tokenizer.json"
    if not path.is_file():
        return
    try:
        saved = Tokenizer.from_file(str(path)).get_vocab()
    except Exception as error:  # the library raises no narrower type
        raise InputError(f"{path}: not a tokenizer ({str(error)[:200]}); save it again") from error
    vocabulary = tokenizer.get_vocab()
    if other := sum(saved.get(token) != number for token, number in vocabulary.items()):
        raise InputError(
            f"{adapter}: was trained with another tokenizer ({other:,} of {len(vocabulary):,} "
            "tokens of the model have another id there, or none); use the model that it was "
            "trained on"
        )


def ignore_peft_warnings() -> None:
    """Hide warnings of PEFT that a user cannot act on.

    It uses a name that transformers has renamed, and warns of tied weights, which `merged` unties,
    and of settings that it changes itself, for experts and for GPT-2's layers.
    """
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
    warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
    warnings.filterwarnings("ignore", r"The following (rank|alpha)_pattern keys", RuntimeWarning)
    warnings.filterwarnings("ignore", "fan_in_fan_out is set to", UserWarning)


def attached(model: Any, adapter: Path, trainable: bool = False) -> Any:
    """Return a model with a PEFT adapter beside its weights; the model itself is changed.

    Args:
        model: a causal language model, without an adapter.
        adapter: a PEFT folder.
        trainable: whether the adapter is to be trained further.

    Raises:
        InputError: the adapter was made for another model, or changes no weights.
    """
    from peft import PeftConfig, PeftModel
    from safetensors import SafetensorError

    ignore_peft_warnings()
    try:
        if hasattr(model, "peft_config"):
            raise ValueError("the model is itself an adapter")
        config = PeftConfig.from_pretrained(str(adapter))
        if config.is_prompt_learning:
            raise ValueError(f"{config.peft_type.value} changes the prompt, not the weights")
        config.inference_mode = not trainable
        peft_model = PeftModel(model, config)
        mapping = getattr(model, "_checkpoint_conversion_mapping", None)
        keys = peft_model.load_adapter(
            str(adapter), "default", is_trainable=trainable, key_mapping=mapping
        )
        if unfit := [*keys.missing_keys, *keys.unexpected_keys]:
            # PEFT would continue with the layers that do fit.
            raise ValueError(f"{len(unfit)} tensors do not fit, such as {unfit[0]}")
    except (OSError, TypeError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{adapter}: not an adapter for this model ({reason}); name a PEFT folder that was "
            "trained on it"
        ) from error
    return peft_model


def attach_frozen(peft_model: Any, adapter: Path, name: str) -> None:
    """Attach a second adapter, which has been checked and is not trained; the first stays active.

    Args:
        peft_model: a PEFT model.
        adapter: a PEFT folder.
        name: name of the second adapter in the model, and of its folder in checkpoints.
    """
    mapping = getattr(peft_model.get_base_model(), "_checkpoint_conversion_mapping", None)
    peft_model.load_adapter(str(adapter), name, is_trainable=False, key_mapping=mapping)


def merged(model: Any, adapter: Path) -> Any:
    """Return a model with a PEFT adapter merged into its weights; the model itself is changed.

    Sums are computed in float32, one layer at a time, and rounded once to the model's format; PEFT
    rounds the product and then the sum. A layer that shares its weights with another (tied
    embeddings) gets separate weights, as with an attached adapter.

    Raises:
        InputError: the adapter was made for another model, or cannot be merged into this one.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    if getattr(model, "is_quantized", False):
        raise InputError(
            f"{adapter}: cannot be merged into quantized weights; load it in full precision"
        )
    peft_model = attached(model, adapter)
    for layer in [m for m in peft_model.modules() if isinstance(m, BaseTunerLayer)]:
        base = layer.get_base_layer()
        weights = list(base.named_parameters(recurse=False))
        for name, weight in weights:
            wide = weight.detach().to(torch.float32, copy=True)
            setattr(base, name, torch.nn.Parameter(wide, requires_grad=False))
        try:
            layer.merge(safe_merge=True)
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{adapter}: cannot be merged ({reason})") from error
        for name, weight in weights:
            narrow = getattr(base, name).detach().to(weight.dtype)
            setattr(base, name, torch.nn.Parameter(narrow, requires_grad=False))
    whole = peft_model.unload()
    if getattr(whole.config, "tie_word_embeddings", False):
        ends = (whole.get_input_embeddings(), whole.get_output_embeddings())
        whole.config.tie_word_embeddings = (
            ends[0].weight is ends[1].weight
        )  # correct when it is saved
    return whole


# The first number in a module's name is that of its layer, as in PEFT.
_LAYER = re.compile(r".+?\.(?P<number>\d+)\.(?P<inside>.+)")


def layer_number(module: str) -> int | None:
    """Return the number of the layer that a module belongs to, if any."""
    match = _LAYER.match(module)
    return int(match["number"]) if match else None


def inside(module: str) -> str:
    """Return a module's name within its layer."""
    match = _LAYER.match(module)
    return match["inside"] if match else module


def owner(parameter: str) -> str:
    """Return the name of the module that a parameter belongs to."""
    return parameter.rpartition(".")[0]


def inside_of(parameter: str) -> str:
    """Return a parameter's name within its layer."""
    return f"{inside(owner(parameter))}.{parameter.rpartition('.')[2]}"


class Coverage(NamedTuple):
    """What an adapter trains: modules and parameters by name, and their number."""

    modules: list[str]
    parameters: list[str]
    whole: list[str]  # trained and saved in full
    trained: int
    total: int

    def __str__(self) -> str:
        parts = []
        if self.modules:
            kinds = sorted(set(map(inside, self.modules)))
            parts.append(f"{len(self.modules)} modules ({', '.join(kinds)})")
        if self.parameters:
            kinds = sorted(set(map(inside_of, self.parameters)))
            parts.append(f"{len(self.parameters)} parameters ({', '.join(kinds)})")
        parts += [f"{', '.join(self.whole)} in full"] if self.whole else []
        return (
            f"{' and '.join(parts)}; {self.trained:,} of {self.total:,} parameters "
            f"({self.trained / self.total:.2%})"
        )


def coverage(peft_model: Any) -> Coverage:
    """Return what the adapter of a PEFT model trains."""
    from peft.utils import ModulesToSaveWrapper

    trained, total = peft_model.get_nb_trainable_parameters()
    return Coverage(
        modules=list(peft_model.base_model.targeted_module_names),
        parameters=list(peft_model.base_model.targeted_parameter_names),
        whole=[
            name.removeprefix("base_model.model.")
            for name, module in peft_model.named_modules()
            if isinstance(module, ModulesToSaveWrapper)
        ],
        trained=trained,
        total=total,
    )


def untouched(peft_model: Any) -> list[str]:
    """Return the kinds of modules whose adapters have learned nothing, if others have.

    LoRA starts from a product of zero, which the first gradient changes. A module that the model
    does not use, or whose weights it reads without calling it, gets no gradient.
    """
    from peft.tuners.lora import LoraLayer

    changed: dict[str, bool] = {}
    for name, layer in peft_model.named_modules():
        if isinstance(layer, LoraLayer) and "default" in layer.lora_B:
            kind = inside(name.removeprefix("base_model.model."))
            weights: Any = layer.lora_B["default"].weight
            changed[kind] = changed.get(kind, False) or bool(weights.any())
    return sorted(kind for kind in changed if not changed[kind]) if any(changed.values()) else []
