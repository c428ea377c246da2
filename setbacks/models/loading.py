"""Loading a model and its tokenizer: from the embedded model's cache, a folder, or a hub."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import os
import warnings
from collections.abc import Collection, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from setbacks.errors import InputError
from setbacks.models.embedded import MODELS, resolve

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

    tokenizer = _pretrained(AutoTokenizer, spec)
    known = getattr(load_config(spec).get_text_config(), "vocab_size", None)
    if known and (tokenizer.pad_token_id or 0) >= known:
        # A token that was added for padding, and no embedding for it. Padding is masked, so that
        # any token will do that the model knows.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def load_config(spec: Engine) -> Any:
    """Load the configuration of a model.

    Raises:
        InputError: there is no such model, or it cannot be had.
    """
    from transformers import AutoConfig

    return _pretrained(AutoConfig, spec)


def load_model(spec: Engine) -> Any:
    """Load a causal language model onto its device, in its dtype.

    Raises:
        InputError: there is no such model, or it cannot be had; it does not write text, or weights
            are missing.
    """
    place = device(spec)
    return _whole(spec, dtype=dtype(spec, place)).to(place)


def check_model(spec: Engine) -> None:
    """Look whether a model can be loaded and has all its weights; none of them is read.

    Raises:
        InputError: as `load_model`.
    """
    if _can_be_looked_at(spec):
        _whole(spec, device_map="meta")


def context(config: Any) -> int | None:
    """Return the most tokens that a text may have for a model; None if its configuration is silent.

    RoPE of the kind "yarn" goes beyond the positions that a model was first trained on. The kind
    "dynamic" does too, but not here: beyond them, answers depend on what was asked before.
    """
    config = config.get_text_config()
    names = ("max_position_embeddings", "max_seq_len", "model_max_length")
    limits = [getattr(config, name, None) for name in names]
    for rope in ropes(config):
        if rope.get("rope_type") == "yarn":
            limits.append(int(rope["original_max_position_embeddings"] * rope.get("factor", 1)))
    return max((limit for limit in limits if limit), default=None)


def parameters(model: Any) -> Collection[str]:
    """Return the names of what a model's `forward` takes."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT hides it
    return inspect.signature(type(base).forward).parameters


def ropes(config: Any) -> list[dict[str, Any]]:
    """Return the settings of a model's RoPE; a model may have several, for kinds of layers."""
    told = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return [rope for rope in (told, *told.values()) if isinstance(rope, dict)]


def skeleton(spec: Engine, *, scores: bool = False) -> Any:
    """Lay a model out without its weights: it has all its modules, and takes no memory.

    Args:
        spec: the model.
        scores: with the head of a reward model.

    Raises:
        InputError: there is no such model, or its configuration does not hold together.
    """
    import torch

    config, numbers = load_config(spec), dtype(spec, device(spec))
    auto = _class_that_scores(spec, config) if scores else _class_that_writes(spec, config)
    if hasattr(config, "quantization_config"):  # of how weights rest, and not of what there is
        del config.quantization_config
    try:
        with torch.device("meta"):
            if hasattr(auto, "from_config"):
                code = {"trust_remote_code": spec.trust_remote_code}
                return auto.from_config(config, dtype=numbers, **code)
            return auto._from_config(config, dtype=numbers)
    except Exception as error:  # a configuration can break its class anywhere
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f'model "{spec.model}" cannot be laid out: {type(error).__name__}: {reason} (is its '
            "config.json whole?)"
        ) from error


def load_base(recipe: Recipe) -> Any:
    """Load the model that an adapter is trained on, in 4 bits if the recipe says so.

    QLoRA (arXiv 2305.14314): the base's weights rest as NormalFloat of 4 bits, and are computed in
    the model's number format.

    Raises:
        InputError: there is no such model, or it cannot be had in 4 bits here.
    """
    if recipe.train.quantize is None:
        return _without_empty_routers(load_model(recipe.model))
    check_quantize(recipe)
    from peft import prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    place = device(recipe.model)
    numbers = dtype(recipe.model, place)
    model = _whole(
        recipe.model,
        dtype=numbers,
        device_map={"": place},
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=numbers,
        ),
    )
    return prepare_model_for_kbit_training(
        _without_empty_routers(model),
        use_gradient_checkpointing=recipe.train.gradient_checkpointing,
    )


def _without_empty_routers(model: Any) -> Any:
    """Have no loss that balances experts where there are none, as in the dense ones of Granite 4.

    TRL asks for it wherever the configuration could have it, and the model fails.
    """
    config = model.config.get_text_config()
    if getattr(config, "num_local_experts", None) == 0:
        config.router_aux_loss_coef = 0.0
    return model


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
        InputError: there is no such model, or it cannot be had with such a head.
    """
    place = device(spec)
    model = _scoring(spec, dtype=dtype(spec, place))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model.to(place)


def check_reward_model(spec: Engine) -> None:
    """Look whether a model can be had with a head that scores; no weights are read.

    Raises:
        InputError: as `load_reward_model`.
    """
    if _can_be_looked_at(spec):
        _scoring(spec, device_map="meta")


def _can_be_looked_at(spec: Engine) -> bool:
    """Whether a model can be laid out without its weights, and whether there is need to.

    One that is quantized asks for its device; those embedded are whole.
    """
    if spec.model in MODELS:
        return False
    return getattr(load_config(spec), "quantization_config", None) is None


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


def _whole(spec: Engine, **options: Any) -> Any:
    """Load a model that writes text, with all that its checkpoint has.

    Raises:
        InputError: it writes none, or some of its weights are missing.
    """
    config = load_config(spec)
    auto = _class_that_writes(spec, config)
    model, found = _pretrained(auto, spec, config=config, **_WEIGHTS, **options)
    missing, left_out = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if missing:
        raise InputError(
            f'model "{spec.model}": its checkpoint{_saved_as(config)} lacks {_count(missing)} of '
            f"{type(model).__name__}, which would be random; save the whole language model again, "
            "or name another"
        )
    if left_out:
        _say_what_is_left_out(spec.model, _count(left_out), type(model).__name__)
    return model


def _class_that_writes(spec: Engine, config: Any) -> Any:
    """Return transformers' automatic class for a model that writes text, with all its parts.

    A model that sees or hears has a class for the whole and often one for its text alone, which
    would drop the rest: the whole is taken, unless the checkpoint itself was saved as text alone.

    Raises:
        InputError: it is an encoder with a decoder, or has another kind of head, or none is known.
    """
    import transformers

    text = config.get_text_config()
    named = next(iter(config.architectures or ()), None)
    if config.is_encoder_decoder or text.is_encoder_decoder:
        raise InputError(
            f'model "{spec.model}": {named or config.model_type} is an encoder-decoder; name a '
            "decoder-only language model"
        )
    autos = (transformers.AutoModelForCausalLM, transformers.AutoModelForMultimodalLM)
    theirs = getattr(config, "auto_map", None) or {} if spec.trust_remote_code else {}
    known = [auto for auto in autos if _classes(auto, config) or auto.__name__ in theirs]
    if not known:
        raise InputError(
            f'model "{spec.model}": transformers {transformers.__version__} has no class that '
            f'writes text for models of type "{config.model_type}"; name a language model'
        )
    _check_head(spec, config, named)
    as_saved = [auto for auto in known if named in _names(_classes(auto, config))]
    return as_saved[0] if as_saved else known[0 if text is config else -1]


def _classes(auto: Any, config: Any) -> tuple[Any, ...]:
    """The classes that an automatic class has for a configuration; none if it is not known."""
    if type(config) not in auto._model_mapping:
        return ()
    found = auto._model_mapping[type(config)]
    return found if isinstance(found, tuple) else (found,)


def _names(classes: Iterable[Any]) -> list[str]:
    return [one.__name__ for one in classes]


def _check_head(spec: Engine, config: Any, named: str | None) -> None:
    """Refuse a checkpoint that was saved with a head that does not write text.

    One without any head is let pass: where its embeddings are tied, nothing is missing.
    """
    import transformers

    writes = getattr(getattr(transformers, named or "", None), "can_generate", lambda: True)
    if writes() or named in _names(_classes(transformers.AutoModel, config)):
        return
    raise InputError(
        f'model "{spec.model}": was saved as {named}, which writes no text; name a causal language '
        "model"
    )


def _class_that_scores(spec: Engine, config: Any) -> Any:
    """Return a class of a model whose head gives a sequence one score; `config` is changed to it.

    Where transformers has no such class for a model, its general one is put on the model's body.
    """
    import transformers
    from transformers.modeling_layers import GenericForSequenceClassification

    config.num_labels = 1
    auto: Any = transformers.AutoModelForSequenceClassification
    if _classes(auto, config):
        return auto
    writes = _classes(_class_that_writes(spec, config), config)[0]
    family = next(
        one for one in writes.__mro__[1:] if issubclass(one, transformers.PreTrainedModel)
    )
    body = {"base_model_prefix": family.base_model_prefix or "model"}
    return type("Scoring", (GenericForSequenceClassification, family), body)


def _scoring(spec: Engine, **options: Any) -> Any:
    """Load a model with a new head that gives a sequence one score.

    Raises:
        InputError: the model cannot be had so, or weights are missing besides the head's.
    """
    config = load_config(spec)
    auto = _class_that_scores(spec, config)
    model, found = _pretrained(auto, spec, config=config, **_WEIGHTS, **options)
    body = model.base_model
    missing = any(key.startswith(model.base_model_prefix) for key in found["missing_keys"])
    # The head reads the body's last states, and hands on a cache of the usual kind.
    fits = not body.can_generate() and "past_key_values" in parameters(body)
    if missing or not fits:
        raise InputError(
            f'model "{spec.model}": no reward model can be made of {config.model_type}; choose '
            "another train.method"
        )
    return model


# All weights from safetensors, and a word on those that do not fit.
_WEIGHTS = {"use_safetensors": True, "output_loading_info": True}


def _count(keys: list[str]) -> str:
    more = f" and {len(keys) - 1} more weights" if len(keys) > 1 else ""
    return f"{keys[0]}{more}"


def _saved_as(config: Any) -> str:
    named = next(iter(config.architectures or ()), None)
    return f" (saved as {named})" if named else ""


@cache
def _say_what_is_left_out(model: str, what: str, kind: str) -> None:
    """Say once that a checkpoint has weights for which its class has no place."""
    log.warning('model "%s": %s of its checkpoint are no part of %s: left out', model, what, kind)


def _pretrained(auto: Any, spec: Engine, **options: Any) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers.utils.logging import disable_progress_bar

    name = resolve(spec.model, spec.revision)
    if spec.trust_remote_code:
        _say_that_code_runs(spec.model)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    disable_progress_bar()
    # peft still uses a name that transformers has renamed; the user can do nothing about it.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return auto.from_pretrained(
            name, revision=spec.revision, trust_remote_code=spec.trust_remote_code, **options
        )
    except (
        OSError,
        ImportError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RuntimeError,
        SafetensorError,
        StrictDataclassError,
    ) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f'model "{spec.model}" cannot be loaded: {reason[:300]} (a hub id, a local folder with '
            "config.json and *.safetensors, or smollm2-135m)"
        ) from error
