"""Loading a model and its tokenizer: from the embedded model's cache, a folder, or a hub."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

from setbacks.embedded import resolve
from setbacks.errors import InputError

if TYPE_CHECKING:
    import torch

    from setbacks.recipe import Engine, Recipe

log = logging.getLogger(__name__)


def load_tokenizer(spec: Engine) -> Any:
    """Load the tokenizer of a model.

    Raises:
        InputError: there is no such model, or it cannot be had.
    """
    from transformers import AutoTokenizer

    return _pretrained(AutoTokenizer, spec)


def load_model(spec: Engine) -> Any:
    """Load a causal language model onto its device, in its dtype.

    Raises:
        InputError: there is no such model, or it cannot be had.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    place = device(spec)
    model = _pretrained(AutoModelForCausalLM, spec, dtype=dtype(spec, place), use_safetensors=True)
    return model.to(place)


def skeleton(spec: Engine, auto: str = "AutoModelForCausalLM") -> Any:
    """Make a model without its weights, from its config alone; it costs no memory.

    Args:
        spec: the model.
        auto: which of transformers' classes makes it.

    Raises:
        InputError: there is no such model, or not of this class.
    """
    import torch
    import transformers

    head = {} if auto == "AutoModelForCausalLM" else {"num_labels": 1}
    config = _pretrained(transformers.AutoConfig, spec, **head)
    numbers = dtype(spec, device(spec))
    try:
        with torch.device("meta"):
            return getattr(transformers, auto).from_config(
                config, dtype=numbers, trust_remote_code=spec.trust_remote_code
            )
    except Exception as error:  # a config can break its class anywhere
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f'model "{spec.model}": transformers makes no {auto} of {type(config).__name__}: '
            f"{reason}"
        ) from error


def load_base(recipe: Recipe) -> Any:
    """Load the model that an adapter is trained on, in 4 bits if the recipe says so.

    QLoRA (arXiv 2305.14314): the base's weights rest as NormalFloat of 4 bits, and are computed in
    the model's number format.

    Raises:
        InputError: there is no such model, or it cannot be had in 4 bits here.
    """
    if recipe.train.quantize is None:
        return load_model(recipe.model)
    check_quantize(recipe)
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    place = device(recipe.model)
    numbers = dtype(recipe.model, place)
    model = _pretrained(
        AutoModelForCausalLM,
        recipe.model,
        dtype=numbers,
        use_safetensors=True,
        device_map={"": place},
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=numbers,
        ),
    )
    return prepare_model_for_kbit_training(
        model, use_gradient_checkpointing=recipe.train.gradient_checkpointing
    )


def check_quantize(recipe: Recipe) -> None:
    """Look whether this machine can train on weights of 4 bits, if the recipe asks for it.

    Raises:
        InputError: it cannot.
    """
    if recipe.train.quantize is None:
        return
    if not device(recipe.model).startswith("cuda"):
        raise InputError("train.quantize: 4bit needs a CUDA GPU; leave it out")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "train.quantize: 4bit needs bitsandbytes: pip install 'setbacks[quantize]'"
        )


def load_reward_model(spec: Engine, tokenizer: Any) -> Any:
    """Load a model with a head that gives a sequence one score, from a seed of its own.

    The head's first weights are drawn anew; its adapter's file holds what they became.

    Args:
        spec: the model.
        tokenizer: whose padding the head looks past.

    Raises:
        InputError: there is no such model, or it cannot be had.
    """
    from transformers import AutoModelForSequenceClassification

    place = device(spec)
    model = _pretrained(
        AutoModelForSequenceClassification,
        spec,
        dtype=dtype(spec, place),
        use_safetensors=True,
        num_labels=1,
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.to(place)


def no_memory(model: str, what: str) -> InputError:
    """Say in one line that memory ran out."""
    return InputError(
        f'model "{model}": not enough memory {what}; use a smaller model or dtype, a larger '
        "device, or a server (engine: endpoint); what was done is kept"
    )


def device(spec: Engine) -> str:
    """Return where a model runs: what the recipe says, or the best there is.

    Raises:
        InputError: the recipe names a device that is not there.
    """
    import torch

    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if spec.device == "auto":
        return next((name for name, there in has.items() if there), "cpu")
    kind = spec.device.partition(":")[0]
    if kind != "cpu" and not has.get(kind, False):
        raise InputError(
            f'model.device: no "{spec.device}" on this machine; use auto or cpu '
            "(`setbacks doctor` lists what there is)"
        )
    return spec.device


def dtype(spec: Engine, place: str) -> torch.dtype:
    """Return the number format of a model's weights.

    `auto` is bfloat16 where matrix products in it are native (CUDA from Ampere on; CPUs with
    AVX512-BF16 or AMX), since it is emulated, and slow, elsewhere.
    """
    import torch

    if spec.dtype != "auto":
        named: torch.dtype = getattr(torch, spec.dtype)
        return named
    if place.startswith("cuda"):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = place == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


@cache
def _say_that_code_runs(model: str) -> None:
    """Say once, where the user sees it, that a model's own code is run."""
    log.warning("%s: Python code that comes with it is run (trust_remote_code: true)", model)


def _pretrained(auto: Any, spec: Engine, **options: Any) -> Any:
    from safetensors import SafetensorError

    name = resolve(spec.model)
    if spec.trust_remote_code:
        _say_that_code_runs(spec.model)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    # peft still uses a name that transformers has renamed; the user can do nothing about it.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return auto.from_pretrained(
            name, revision=spec.revision, trust_remote_code=spec.trust_remote_code, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f'model "{spec.model}" cannot be loaded: {reason[:300]} (a hub id, a local folder with '
            "config.json and *.safetensors, or smollm2-135m)"
        ) from error
