"""Loading a model and its tokenizer: from the embedded model's cache, a folder, or a hub."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import os
import warnings
from collections.abc import Collection, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, get_args

from setbacks.errors import InputError
from setbacks.messages import transcript
from setbacks.models.embedded import MODELS, resolve
from setbacks.models.hardware import device, dtype

if TYPE_CHECKING:
    from setbacks.messages import Request
    from setbacks.recipe import Engine, Recipe

log = logging.getLogger(__name__)


def load_tokenizer(spec: Engine) -> Any:
    """Load the tokenizer of a model.

    Raises:
        InputError: the model does not exist or could not be downloaded.
    """
    from transformers import AutoTokenizer

    tokenizer = _pretrained(AutoTokenizer, spec)
    size = getattr(load_config(spec).get_text_config(), "vocab_size", None)
    if size and (tokenizer.pad_token_id or 0) >= size:
        # A padding token was added without an embedding. Padding is masked, so any token that the
        # model has will do.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def load_config(spec: Engine) -> Any:
    """Load the configuration of a model.

    Raises:
        InputError: the model does not exist or could not be downloaded.
    """
    from transformers import AutoConfig

    return _pretrained(AutoConfig, spec)


def load_model(spec: Engine) -> Any:
    """Load a causal language model onto its device, in its dtype.

    Raises:
        InputError: the model does not exist or could not be downloaded; it does not generate text,
            or weights are missing.
    """
    place = device(spec)
    return _whole(spec, dtype=dtype(spec, place)).to(place)


def check_model(spec: Engine) -> None:
    """Check that a model can be loaded and has all its weights, without reading them.

    Raises:
        InputError: as `load_model`.
    """
    if _can_check(spec):
        _whole(spec, device_map="meta")


def context(config: Any) -> int | None:
    """Return the context length of a model in tokens; None if its configuration does not state it.

    RoPE of the kind "yarn" extends the positions that a model was first trained on. The kind
    "dynamic" does too, but is not counted: beyond them, answers depend on earlier requests.
    """
    config = config.get_text_config()
    names = ("max_position_embeddings", "max_seq_len", "model_max_length")
    limits = [getattr(config, name, None) for name in names]
    for rope in ropes(config):
        if rope.get("rope_type") == "yarn":
            limits.append(int(rope["original_max_position_embeddings"] * rope.get("factor", 1)))
    return max((limit for limit in limits if limit), default=None)


def check_length(
    model: str, request: Request, tokens: int, limit: int | None, more: int = 1
) -> None:
    """Check that a request, and an answer that follows, fit into a model's context.

    Args:
        model: its name.
        request: the request.
        tokens: the number of its tokens.
        limit: the length of the context; None if it is not known.
        more: the number of tokens that are to follow.

    Raises:
        InputError: they do not fit.
    """
    if limit is not None and tokens + more > limit:
        words = " ".join(transcript(request.prompt).split())
        shown = words if len(words) <= 120 else f"{words[:80]} ... {words[-40:]}"
        raise InputError(
            f'model "{model}": a prompt of {tokens:,} tokens does not fit into its context of '
            f'{limit:,} tokens with room for an answer; shorten or remove it ("{shown}")'
        )


def parameters(model: Any) -> Collection[str]:
    """Return the parameter names of a model's `forward`."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT hides it
    return inspect.signature(type(base).forward).parameters


def ropes(config: Any) -> list[dict[str, Any]]:
    """Return the settings of a model's RoPE; a model may have several, by kind of layer."""
    settings = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return [rope for rope in (settings, *settings.values()) if isinstance(rope, dict)]


def skeleton(spec: Engine, *, scores: bool = False) -> Any:
    """Build a model without its weights: it has all its modules and takes no memory.

    Args:
        spec: the model.
        scores: whether to add the head of a reward model.

    Raises:
        InputError: the model does not exist, or its configuration is inconsistent.
    """
    import torch

    config, numbers = load_config(spec), dtype(spec, device(spec))
    auto = _scoring_class(spec, config) if scores else _language_model_class(spec, config)
    if hasattr(config, "quantization_config"):  # it describes how weights are stored
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
            f'model "{spec.model}" cannot be built: {type(error).__name__}: {reason} (is its '
            "config.json complete?)"
        ) from error


def load_base(recipe: Recipe) -> Any:
    """Load the model that an adapter is trained on, in 4 bits if the recipe asks for it.

    QLoRA (arXiv 2305.14314): the base model's weights are stored as 4-bit NormalFloat, and computed
    in the model's number format.

    Raises:
        InputError: the model does not exist, or cannot be loaded in 4 bits here.
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
    """Turn off the loss that balances experts in a model without any, such as dense Granite 4.

    TRL asks for it wherever the configuration has the field, and the model fails.
    """
    config = model.config.get_text_config()
    if getattr(config, "num_local_experts", None) == 0:
        config.router_aux_loss_coef = 0.0
    return model


def check_quantize(recipe: Recipe) -> None:
    """Check that this machine can train on 4-bit weights, if the recipe asks for it.

    Raises:
        InputError: it cannot.
    """
    if recipe.train.quantize is None:
        return
    if not device(recipe.model).startswith("cuda"):
        raise InputError("train.quantize: 4bit needs a CUDA GPU; remove the option")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "train.quantize: 4bit needs bitsandbytes: pip install 'setbacks[quantize]'"
        )


def load_reward_model(spec: Engine, tokenizer: Any) -> Any:
    """Load a model with a new head that gives a sequence one score.

    The head starts from random weights; the adapter's file holds the trained ones.

    Args:
        spec: the model.
        tokenizer: the model's; the head ignores its padding token.

    Raises:
        InputError: the model does not exist, or cannot have such a head.
    """
    place = device(spec)
    model = _scoring(spec, dtype=dtype(spec, place))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model.to(place)


def check_reward_model(spec: Engine) -> None:
    """Check that a model can have a head that scores, without reading weights.

    Raises:
        InputError: as `load_reward_model`.
    """
    if _can_check(spec):
        _scoring(spec, device_map="meta")


def _can_check(spec: Engine) -> bool:
    """Return whether a model can be checked without its weights, and needs to be.

    A quantized model needs its device; the embedded models are known to be complete.
    """
    if spec.model in MODELS:
        return False
    return getattr(load_config(spec), "quantization_config", None) is None


def no_memory(model: str, what: str) -> InputError:
    """Return the error for a lack of memory."""
    return InputError(
        f'model "{model}": not enough memory {what}; use a smaller model or dtype, a larger '
        "device, or a server (engine: endpoint); progress is saved"
    )


@cache
def _warn_of_code(model: str) -> None:
    """Warn once that a model's own code is run."""
    log.warning("%s: runs Python code that comes with the model (trust_remote_code: true)", model)


def _whole(spec: Engine, **options: Any) -> Any:
    """Load a model that generates text, with all parts of its checkpoint.

    Raises:
        InputError: it does not generate text, or some of its weights are missing.
    """
    config = load_config(spec)
    auto = _language_model_class(spec, config)
    model, info = _pretrained(auto, spec, config=config, **_WEIGHTS, **options)
    missing, left_out = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing:
        raise InputError(
            f'model "{spec.model}": its checkpoint{_saved_as(config)} lacks {_count(missing)} of '
            f"{type(model).__name__}, which would be random; save the complete language model "
            "again, or name another model"
        )
    if left_out:
        _warn_of_left_out(spec.model, _count(left_out), type(model).__name__)
    return model


def _language_model_class(spec: Engine, config: Any) -> Any:
    """Return transformers' automatic class for a model that generates text, with all its parts.

    A model with vision or audio has a class for the complete model and often one for its text part
    only, which would drop the rest: the first is used, unless the checkpoint was saved as the
    second.

    Raises:
        InputError: it is an encoder-decoder, or has another kind of head, or no class is known.
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
            f'model "{spec.model}": transformers {transformers.__version__} cannot '
            f'generate text with models of type "{config.model_type}"; name a language model'
        )
    _check_head(spec, config, named)
    as_saved = [auto for auto in known if named in _names(_classes(auto, config))]
    return as_saved[0] if as_saved else known[0 if text is config else -1]


def _classes(auto: Any, config: Any) -> tuple[Any, ...]:
    """Return the classes that an automatic class has for a configuration, if any."""
    if type(config) not in auto._model_mapping:
        return ()
    classes = auto._model_mapping[type(config)]
    return classes if isinstance(classes, tuple) else (classes,)


def _names(classes: Iterable[Any]) -> list[str]:
    return [kind.__name__ for kind in classes]


def _check_head(spec: Engine, config: Any, named: str | None) -> None:
    """Reject a checkpoint that was saved with a head that does not generate text.

    One without any head is accepted: if its embeddings are tied, nothing is missing.
    """
    import transformers

    writes = getattr(getattr(transformers, named or "", None), "can_generate", lambda: True)
    if writes() or named in _names(_classes(transformers.AutoModel, config)):
        return
    raise InputError(
        f'model "{spec.model}": was saved as {named}, which does not generate text; name a '
        "causal language model"
    )


def _scoring_class(spec: Engine, config: Any) -> Any:
    """Return a class of a model with a head that gives a sequence one score; `config` is changed.

    If transformers has no such class for a model, its generic head is put on the model's body.
    """
    import transformers
    from transformers.modeling_layers import GenericForSequenceClassification

    config.num_labels = 1
    auto: Any = transformers.AutoModelForSequenceClassification
    if _classes(auto, config):
        return auto
    writes = _classes(_language_model_class(spec, config), config)[0]
    family = next(
        kind for kind in writes.__mro__[1:] if issubclass(kind, transformers.PreTrainedModel)
    )
    body = {"base_model_prefix": family.base_model_prefix or "model"}
    return type("Scoring", (GenericForSequenceClassification, family), body)


def _scoring(spec: Engine, **options: Any) -> Any:
    """Load a model with a new head that gives a sequence one score.

    Raises:
        InputError: the model cannot have such a head, or weights other than the head's are missing.
    """
    config = load_config(spec)
    auto = _scoring_class(spec, config)
    model, info = _pretrained(auto, spec, config=config, **_WEIGHTS, **options)
    body = model.base_model
    missing = any(key.startswith(model.base_model_prefix) for key in info["missing_keys"])
    # The head reads the body's last states, and passes on a cache of the usual kind.
    fits = not body.can_generate() and "past_key_values" in parameters(body) and _has_cache(body)
    if missing or not fits:
        raise InputError(
            f'model "{spec.model}": {config.model_type} cannot become a reward model; choose '
            "another train.method"
        )
    return model


def _has_cache(body: Any) -> bool:
    """Return whether a model's output can hold a cache of the usual kind, as far as is known."""
    from transformers.utils import ModelOutput

    returned = inspect.signature(type(body).forward).return_annotation
    kinds = [kind for kind in get_args(returned) or (returned,) if inspect.isclass(kind)]
    outputs = [kind for kind in kinds if issubclass(kind, ModelOutput)]
    return not outputs or any(hasattr(kind, "past_key_values") for kind in outputs)


# All weights from safetensors, and a report of those that do not fit.
_WEIGHTS = {"use_safetensors": True, "output_loading_info": True}


def _count(keys: list[str]) -> str:
    more = f" and {len(keys) - 1} more weights" if len(keys) > 1 else ""
    return f"{keys[0]}{more}"


def _saved_as(config: Any) -> str:
    named = next(iter(config.architectures or ()), None)
    return f" (saved as {named})" if named else ""


@cache
def _warn_of_left_out(model: str, what: str, kind: str) -> None:
    """Warn once that a checkpoint has weights that its class does not use."""
    log.warning('model "%s": ignored %s, which %s does not use', model, what, kind)


def _pretrained(auto: Any, spec: Engine, **options: Any) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers.utils.logging import disable_progress_bar

    name = resolve(spec.model, spec.revision)
    if spec.trust_remote_code:
        _warn_of_code(spec.model)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    disable_progress_bar()
    # PEFT still uses a name that transformers has renamed; the user cannot change that.
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
            f'model "{spec.model}" cannot be loaded: {reason[:300]} (use a hub id, a local folder '
            "with config.json and *.safetensors, or smollm2-135m)"
        ) from error
