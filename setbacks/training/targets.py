"""The modules that a new adapter covers, found on the model's skeleton before any work.

A skeleton has all the modules of a model and none of its weights, so a lookup takes a second for
any size. PEFT puts the adapter on the skeleton, so the result is the one of training.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from setbacks.errors import InputError, nearest
from setbacks.models.adapters import (
    Coverage,
    attached,
    check_adapter,
    coverage,
    inside,
    inside_of,
    layer_number,
    owner,
)
from setbacks.models.loading import skeleton

if TYPE_CHECKING:
    from setbacks.recipe import Lora, Recipe

NOTABLE = 0.01  # share of the layers' weights without an adapter that causes a warning


class Targets(NamedTuple):
    """An adapter's PEFT configuration, its coverage, and what `all-linear` leaves out."""

    config: Any
    coverage: Coverage
    left_out: str  # a sentence, or empty


def look_up(recipe: Recipe, task: str = "CAUSAL_LM") -> Targets:
    """Find the modules of the recipe's new adapter.

    Args:
        recipe: sets the model and the adapter.
        task: PEFT's name of the task: "CAUSAL_LM", or "SEQ_CLS" for a reward model.

    Raises:
        InputError: the model does not exist; a name matches nothing, or modules that cannot have
            an adapter; or PEFT rejects the adapter.
    """
    lora = recipe.train.lora
    parts = _parts(skeleton(recipe.model, scores=task == "SEQ_CLS"))
    if task == "CAUSAL_LM":  # names need not match the head of a reward model
        _check_names(lora, parts)
    refused: list[str] = []
    try:
        covered = _tried(parts.model, _config(lora, parts, task))
    except ValueError as error:
        _check_plain(lora, parts, task)
        refused = _refused(lora, parts, task) if _all_linear(lora) else []
        if not refused:
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"train.lora: this adapter does not fit {parts.kind}: {reason}"
            ) from error
        covered = _tried(parts.model, _config(lora, parts, task, refused))
    _check_head(covered, parts)
    _check_restrictions(lora, parts, covered)
    left_out = _left_out(lora, parts, covered, refused) if _all_linear(lora) else ""
    return Targets(_config(lora, parts, task, refused), covered, left_out)


def look_up_start(recipe: Recipe, start: Path) -> Coverage:
    """Find the modules of the adapter that training continues.

    Args:
        recipe: sets the model.
        start: the adapter's folder.

    Raises:
        InputError: the model or adapter does not exist, does not fit, or cannot be trained.
    """
    check_adapter(start, recipe.model.model)
    parts = _parts(skeleton(recipe.model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about weights without a place
        covered = coverage(attached(copy.deepcopy(parts.model), start, trainable=True))
    _check_head(covered, parts)
    return covered


def check_served(recipe: Recipe) -> None:
    """Check that the engine can run the recipe's new adapter.

    The local engine merges an adapter into the weights. vLLM keeps it separate, and does not
    support every kind.

    Raises:
        InputError: it cannot.
    """
    engine = recipe.model.runs_in
    lora = recipe.train.lora
    for key in ("dora", "modules_to_save"):
        if engine == "vllm" and getattr(lora, key):
            raise InputError(
                f"train.lora.{key}: vLLM does not support it; remove it, or set model.engine=local"
            )


class _Parts(NamedTuple):
    """The parts of the language model in a skeleton, by whether an adapter fits them."""

    model: Any
    kind: str
    towers: list[str]  # encoders of images or sound: no text passes through them
    modules: dict[str, Any]
    parameters: dict[str, Any]
    head: Any
    linear: list[str]
    odd: list[str]  # linear by class, but no adapter fits them
    fit: list[str]  # modules that an adapter fits
    bare: list[str]  # matrices outside such modules, such as fused experts


def _parts(model: Any) -> _Parts:
    from torch.nn import Conv1d, Conv2d, Embedding, Linear
    from transformers.pytorch_utils import Conv1D

    towers = _towers(model)
    modules = {n: m for n, m in model.named_modules() if n and not _within(n, towers)}
    parameters = {n: p for n, p in model.named_parameters() if not _within(n, towers)}
    linear = [n for n, m in modules.items() if isinstance(m, Linear | Conv1D)]
    kinds = {type(modules[name]): modules[name] for name in linear}
    odd = {kind for kind, example in kinds.items() if not _takes_lora(example)}
    known = Linear | Conv1D | Embedding | Conv1d | Conv2d
    return _Parts(
        model=model,
        kind=type(model).__name__,
        towers=towers,
        modules=modules,
        parameters=parameters,
        head=model.get_output_embeddings(),
        linear=linear,
        odd=[name for name in linear if type(modules[name]) in odd],
        fit=[
            name
            for name, module in modules.items()
            if isinstance(module, Linear | Conv1D | Embedding) and type(module) not in odd
        ],
        bare=[
            name
            for name, parameter in parameters.items()
            if parameter.dim() > 1
            and "bias" not in _last(name)
            and not isinstance(modules.get(owner(name)), known)
        ],
    )


def _towers(model: Any) -> list[str]:
    """Return the modules beside the language model, in a model that also reads images or sound."""
    inner = model.get_decoder()
    if model.config.get_text_config() is model.config or inner is model:
        return []
    path = next(name for name, module in model.named_modules() if module is inner).split(".")
    beside = []
    for depth, own in enumerate(path):
        above = ".".join(path[:depth])
        for name, module in model.get_submodule(above).named_children():
            if name != own and (above or any(True for _ in module.children())):  # no heads
                beside.append(f"{above}.{name}".lstrip("."))
    return beside


def _takes_lora(module: Any) -> bool:
    """Return whether a linear module works with an adapter; some routers do not."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    holder = torch.nn.ModuleDict({"inner": copy.deepcopy(module)})
    width = getattr(module, "in_features", module.weight.shape[0])  # Conv1D lacks this attribute
    row = torch.empty(1, 1, width, dtype=module.weight.dtype, device="meta")
    config = LoraConfig(r=1, target_modules=["inner"])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inject_adapter_in_model(config, holder, low_cpu_mem_usage=True)
        return isinstance(holder["inner"](row), torch.Tensor)
    except Exception:  # whatever its forward raises, an adapter does not fit
        return False


def _config(lora: Lora, parts: _Parts, task: str, refused: Sequence[str] = ()) -> Any:
    """Return the PEFT configuration, without modules that no adapter fits."""
    from peft import LoraConfig

    lora = lora.model_copy(deep=True)  # PEFT changes the lists that it gets
    targets, parameters = lora.targets, lora.target_parameters
    if lora.layers is not None:
        parameters = [
            name
            for name in parts.parameters
            if _is_any(name, parameters) and _in_layers(owner(name), lora.layers)
        ]
        if _all_linear(lora):  # PEFT only restricts lists of names
            targets = sorted({inside(n) for n in parts.linear if _in_layers(n, lora.layers)})
    left_out = [*lora.exclude, *_shortest(parts.odd, parts.modules), *refused, *parts.towers]
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        target_parameters=parameters or None,
        exclude_modules=_pattern(left_out) if left_out else None,
        layers_to_transform=lora.layers,
        modules_to_save=lora.modules_to_save or None,
        use_dora=lora.dora,
        use_rslora=lora.rslora,
        task_type=task,
    )


def _shortest(names: Collection[str], every: Iterable[str]) -> list[str]:
    """Return the last parts of names if they are unique to them, otherwise full names."""
    others = {_last(name) for name in every if name not in names}
    return sorted({name if _last(name) in others else _last(name) for name in names})


def _tried(model: Any, config: Any) -> Coverage:
    """Let PEFT put an adapter on a copy of the skeleton; return its coverage."""
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tried = get_peft_model(copy.deepcopy(model), config, low_cpu_mem_usage=True)
        # Names are converted like those of the model's checkpoint, some of them wrongly.
        saved = get_peft_model_state_dict(tried)
        loaded: Any = set_peft_model_state_dict(tried, saved, low_cpu_mem_usage=True)
    if lost := [name for name in loaded.missing_keys if ".lora_" in name]:
        raise ValueError(f"PEFT cannot load {len(lost)} of its saved tensors, such as {lost[0]}")
    return coverage(tried)


def _refused(lora: Lora, parts: _Parts, task: str) -> list[str]:
    """Find the kinds of linear modules that PEFT rejects in this architecture, one by one."""
    body = [name for name in parts.linear if parts.modules[name] is not parts.head]
    ends = sorted({_last(name) for name in body if name not in parts.odd})
    refused = []
    for end in ends:
        try:
            _tried(parts.model, _config(lora, parts, task, [e for e in ends if e != end]))
        except ValueError:
            refused.append(end)
    return refused if len(refused) < len(ends) else []


# Names -------------------------------------------------------------------------------------------


def _check_names(lora: Lora, parts: _Parts) -> None:
    """Reject names that match nothing, and modules that no adapter fits."""
    _check_known("exclude", lora.exclude, parts)
    _check_known("modules_to_save", lora.modules_to_save, parts)
    _check_known("target_parameters", lora.target_parameters, parts)
    if isinstance(lora.targets, list):
        names = [name for name in lora.targets if not _renamed(name, parts)]
        _check_known("targets", names, parts)
        for name in names:
            _check_target(name, lora, parts)
    elif not _all_linear(lora):
        _check_pattern(lora.targets, parts)
    numbers = {number for name in parts.linear if (number := layer_number(name)) is not None}
    if beyond := sorted({*(lora.layers or [])} - numbers):
        raise InputError(
            f"train.lora.layers: {parts.kind} has no layer {beyond[0]}; its last is "
            f"{max(numbers, default='not numbered')}"
        )


def _check_known(key: str, names: Sequence[str], parts: _Parts) -> None:
    """Reject names that are not in the model, and suggest similar ones."""
    of_parameters = key == "target_parameters"
    known = [*(parts.parameters if of_parameters else parts.modules)]
    missing = [name for name in names if not any(_is(full, name) for full in known)]
    if not missing:
        return
    near = nearest(missing[0], {*map(inside_of if of_parameters else inside, known)})
    near = near or nearest(missing[0], {*map(_last, known)})
    fits = {
        "targets": f" An adapter fits {_list(map(_last, parts.fit))}",
        "target_parameters": f" An adapter fits {_list(map(inside_of, parts.bare))}",
    }.get(key, "")
    experts = [full for full in parts.bare if key == "targets" and _is_any(full, missing)]
    if experts:
        fits += f"; {_list(map(inside_of, experts))} belong in train.lora.target_parameters"
    raise InputError(
        f"train.lora.{key}: {parts.kind} has no {'parameter' if of_parameters else 'module'} "
        f"{' and no '.join(missing)}.{near}{fits}"
    )


def _check_target(name: str, lora: Lora, parts: _Parts) -> None:
    matches = [full for full in parts.modules if _is(full, name)]
    if not {*parts.fit} & {*matches}:
        raise InputError(
            f"train.lora.targets: {name} is {type(parts.modules[matches[0]]).__name__} in "
            f"{parts.kind}, which no adapter fits; use {_list(map(_last, parts.fit))}, "
            f"or train it in full with train.lora.modules_to_save=[{name}]"
        )
    elsewhere = (*lora.exclude, *lora.modules_to_save)
    if not [n for n in matches if not _under(n, elsewhere) and _in_layers(n, lora.layers)]:
        raise InputError(
            f"train.lora.targets: exclude, modules_to_save and layers remove all modules of {name}"
        )


def _check_pattern(pattern: str, parts: _Parts) -> None:
    try:
        matches = any(re.fullmatch(pattern, name) for name in parts.modules)
    except re.error as error:
        raise InputError(f'train.lora.targets: "{pattern}" is not a pattern ({error})') from error
    if not matches:
        raise InputError(
            f'train.lora.targets: "{pattern}" does not match the full name of a module in '
            f"{parts.kind}; write [{pattern}] for modules of that name. "
            f"An adapter fits {_list(map(_last, parts.fit))}"
        )


def _check_head(covered: Coverage, parts: _Parts) -> None:
    """Reject an adapter on the head: TRL computes losses from its weights, without calling it."""
    for name in covered.modules:
        if parts.modules[name] is parts.head:
            raise InputError(
                f"train.lora: the head, {name}, cannot have an adapter, since losses are computed "
                f"from its weights; train it in full: train.lora.modules_to_save=[{name}]"
            )


def _check_restrictions(lora: Lora, parts: _Parts, covered: Coverage) -> None:
    """Reject `exclude` and `layers` if PEFT adapts experts despite them."""
    for name in covered.parameters:
        inner = _in_layers(owner(name), lora.layers)
        if not inner or _under(owner(name), lora.exclude):
            raise InputError(
                f"train.lora.{'exclude' if inner else 'layers'}: PEFT adapts {inside_of(name)} of "
                f"{parts.kind} despite it; remove it, or list the modules for the adapter in "
                "train.lora.targets"
            )


def _check_plain(lora: Lora, parts: _Parts, task: str) -> None:
    """Reject dropout and DoRA if PEFT fails because of them: parameters support neither."""
    plain = lora.model_copy(update={"dora": False, "dropout": 0.0})
    if plain == lora:
        return
    try:
        parameters = _tried(parts.model, _config(plain, parts, task)).parameters
    except ValueError:
        return
    raise InputError(
        f"train.lora.{'dora' if lora.dora else 'dropout'}: does not work with adapters of "
        f"parameters in {parts.kind} ({_list(map(inside_of, parameters))}); remove it, or list "
        "only modules in train.lora.targets"
    )


def _renamed(name: str, parts: _Parts) -> bool:
    """Return whether a target is an older name of a parameter, which PEFT translates."""
    from peft import LoraConfig, NoMatchingPeftModuleError

    if any(_is(full, name) for full in parts.modules):
        return False
    try:
        _tried(parts.model, LoraConfig(target_modules=[name]))
    except NoMatchingPeftModuleError:
        return False
    except ValueError:  # PEFT knows it, but rejects it alone
        return True
    return True


def _list(names: Iterable[str], most: int = 12) -> str:
    every = sorted({*names})
    return (", ".join(every[:most]) or "nothing") + (", ..." if len(every) > most else "")


def _is(full: str, name: str) -> bool:
    """Return whether a name is a module's full name or its end, as PEFT compares them."""
    return full == name or full.endswith(f".{name}")


def _pattern(names: Iterable[str]) -> str:
    """Return a pattern of modules of these names and everything inside them."""
    return rf"(.*\.)?({'|'.join(map(re.escape, sorted({*names})))})(\..*)?"


def _under(full: str, names: Collection[str]) -> bool:
    return bool(names) and re.fullmatch(_pattern(names), full) is not None


def _is_any(full: str, names: Iterable[str]) -> bool:
    return any(_is(full, name) for name in names)


def _within(name: str, roots: Iterable[str]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _in_layers(name: str, layers: Sequence[int] | None) -> bool:
    return layers is None or layer_number(name) in layers


def _all_linear(lora: Lora) -> bool:
    return isinstance(lora.targets, str) and lora.targets.lower() == "all-linear"


# What all-linear leaves out ----------------------------------------------------------------------


def _left_out(lora: Lora, parts: _Parts, covered: Coverage, refused: Sequence[str]) -> str:
    """Return which weights `all-linear` does not cover, if they are more than a few."""
    weights = [f"{name}.weight" for name in parts.linear if parts.modules[name] is not parts.head]
    weights += [n for n in parts.bare if min(parts.parameters[n].shape[-2:]) > lora.r]
    every = {name: parts.parameters[name].numel() for name in weights}
    reached = (*covered.modules, *covered.whole)
    left: Counter[str] = Counter()
    never: set[str] = set()
    for name, size in every.items():
        module = owner(name)
        chosen = _in_layers(module, lora.layers) and not _under(module, lora.exclude)
        if chosen and name not in covered.parameters and not _within(module, reached):
            left[inside_of(name)] += size
            if module in parts.odd or _is_any(module, refused):
                never.add(inside_of(name))
    total = sum(every.values())
    notable = [name for name in sorted(left) if left[name] / total >= NOTABLE]
    if not notable:
        return ""
    sentence = (
        f"train.lora.targets: all-linear leaves out {left.total() / total:.0%} of the weights in "
        f"the layers of {parts.kind} ({_list(notable)})"
    )
    if nameable := [name for name in notable if name not in never]:
        return f"{sentence}; to adapt them, set train.lora.target_parameters=[{','.join(nameable)}]"
    return f"{sentence}: PEFT cannot adapt them"
