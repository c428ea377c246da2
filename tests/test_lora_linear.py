"""LoRA's layers as one function compute what PEFT's do, and keep PEFT's wherever they cannot."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers.pytorch_utils import Conv1D

from setbacks.training.lora_linear import fuse_lora

SIZES = st.integers(1, 40)


def lora(base=None, **config):
    """A layer in bfloat16 with a LoRA adapter whose weights are all other than 0."""
    base = torch.nn.Sequential(base or torch.nn.Linear(24, 40)).bfloat16()
    model = get_peft_model(base, LoraConfig(target_modules=["0"], **{"r": 4, **config}))
    grow(model)
    return model


def grow(model, name="default"):
    torch.nn.init.normal_(model.get_submodule(f"base_model.model.0.lora_B.{name}").weight)


def inputs(*shape):
    return torch.randn(*shape, dtype=torch.bfloat16)


def mixed():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def learned(model, x):
    """Return a layer's output, and the gradients of its input and its adapter."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    with mixed():
        out = model(x)
    out.float().square().mean().backward()
    slopes = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return out.detach(), x.grad, slopes


def assert_same(one, other, size=None):
    """Both differ by bfloat16's rounding at most, as a share of the largest entry.

    What is rounded are sums of products. Where these may cancel, their `size` counts.
    """
    assert one.dtype == other.dtype and one.shape == other.shape
    if one.numel():
        scale, near = (other, 0.03) if size is None else (size, 0.02)
        scale = scale.float().abs().max().clamp(min=1e-6)
        torch.testing.assert_close(one.float() / scale, other.float() / scale, rtol=0, atol=near)


def without_signs(model):
    """A copy in which terms add up instead of canceling: it gives the size of their sums."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for weight in copied.parameters():
            weight.abs_()
    return copied


def is_fused(model, x):
    """Whether the function is a step of the graph that leads to the output."""
    with mixed():
        steps, names = [model(x).grad_fn], set()
    while steps:
        if step := steps.pop():
            names.add(step.name())
            steps += [before for before, _ in step.next_functions]
    return any("LoraLinear" in name for name in names)


@settings(deadline=None, max_examples=60)
@given(
    inputs_=SIZES,
    outputs=SIZES,
    rank=st.integers(1, 8),
    alpha=st.sampled_from([1, 8, 32]),
    bias=st.booleans(),
    rslora=st.booleans(),
    shape=st.lists(st.integers(0, 7), max_size=3),
)
def test_output_and_gradients_are_those_of_peft(inputs_, outputs, rank, alpha, bias, rslora, shape):
    torch.manual_seed(0)
    base = torch.nn.Linear(inputs_, outputs, bias=bias)
    model = lora(base, r=rank, lora_alpha=alpha, use_rslora=rslora)
    x = inputs(*shape, inputs_)
    expected, to_x, slopes = learned(model, x)
    size, size_of_to_x, sizes = learned(without_signs(model), x.abs())
    fuse_lora(model)
    assert is_fused(model, x)
    ours, our_to_x, our_slopes = learned(model, x)
    assert_same(ours, expected, size)
    assert_same(our_to_x, to_x, size_of_to_x)
    assert list(our_slopes) == list(slopes) and len(slopes) == 2
    for name, slope in our_slopes.items():
        assert_same(slope, slopes[name], sizes[name])


def test_a_model_in_float32_computes_the_same_in_float32():
    torch.manual_seed(0)
    model, x = lora().float(), torch.randn(3, 7, 24, requires_grad=True)
    plain = copy.deepcopy(model)
    fuse_lora(model)
    results = []
    for each in (model, plain):
        x.grad = None
        out = each(x)
        out.square().mean().backward()
        results.append([out, x.grad, *(p.grad for p in each.parameters() if p.requires_grad)])
    assert "LoraLinear" in model(x).grad_fn.next_functions[0][0].name()
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_pass_without_gradients_gives_the_very_same():
    model = lora()
    fuse_lora(model)
    x = inputs(3, 7, 24)
    with mixed():
        one = model(x)
        with torch.no_grad():
            assert torch.equal(model(x), one)


def test_an_output_can_be_changed_in_place():
    model, x = lora(), inputs(3, 7, 24)
    plain = copy.deepcopy(model)
    fuse_lora(model)
    results = []
    for each in (model, plain):
        with mixed():
            out = each(x).mul_(2)  # clamping would turn a difference of rounding into one of slope
        out.float().sum().backward()
        results.append([p.grad for p in each.parameters() if p.requires_grad])
    for ours, theirs in zip(*results, strict=True):
        assert_same(ours, theirs)


def trains_its_base(model):
    model.get_submodule("base_model.model.0.base_layer").weight.requires_grad_()


@pytest.mark.parametrize(
    ("base", "config", "change"),
    [
        (None, {"lora_dropout": 0.5}, None),
        (None, {"use_dora": True}, None),
        (None, {"lora_bias": True}, None),
        (Conv1D(40, 24), {"fan_in_fan_out": True}, None),
        (None, {}, trains_its_base),
        (None, {}, lambda model: model.float()),
    ],
    ids=["dropout", "dora", "bias of the adapter", "transposed", "trained base", "float32"],
)
def test_what_is_more_than_products_stays_with_peft(base, config, change):
    model = lora(base, **config)
    if change:
        change(model)
    plain = copy.deepcopy(model)
    fuse_lora(model)
    x = torch.randn(2, 5, 24, dtype=next(model.parameters()).dtype)
    outputs = []
    for each in (model, plain):
        torch.manual_seed(1)
        with mixed():
            outputs.append(each(x))
    assert torch.equal(*outputs)
    assert not is_fused(model, x)


def test_adapters_that_come_later_are_seen_as_they_are():
    model, x = lora(), inputs(2, 5, 24)
    fuse_lora(model)
    plain = LoraConfig(target_modules=["0"], r=2)
    dora = LoraConfig(target_modules=["0"], r=2, use_dora=True)
    for name, config in (("plain", plain), ("dora", dora)):
        model.add_adapter(name, config)
        grow(model, name)
    unfused = copy.deepcopy(model)
    for module in unfused.modules():
        vars(module).pop("forward", None)
    for active, fused in (("default", True), ("plain", True), ("dora", False)):
        for each in (model, unfused):
            each.set_adapter(active)
        assert is_fused(model, x) == fused
        assert_same(learned(model, x)[0], learned(unfused, x)[0])
    for each in (model, unfused):
        each.base_model.set_adapter(["default", "plain"])
    assert torch.equal(learned(model, x)[0], learned(unfused, x)[0])
    with mixed():  # an adapter for each row
        names = ["plain", "default"]
        one, other = (each.eval()(x, adapter_names=names) for each in (model, unfused))
    assert torch.equal(one, other)


def test_an_adapter_that_is_off_or_merged_answers_as_peft_has_it():
    model, x = lora(), inputs(2, 5, 24)
    plain = copy.deepcopy(model)
    fuse_lora(model)
    with mixed():
        with model.disable_adapter(), plain.disable_adapter():
            assert torch.equal(model(x), plain(x))
        for each in (model, plain):
            each.merge_adapter()
        assert torch.equal(model(x), plain(x))


def test_outside_mixed_precision_the_adapter_computes_in_float32():
    model, x = lora(), inputs(2, 5, 24)
    plain = copy.deepcopy(model)
    fuse_lora(model)
    assert torch.equal(model(x), plain(x))


def test_a_copy_of_a_model_has_its_layers():
    model, x = lora(), inputs(2, 5, 24)
    fuse_lora(model)
    twin = copy.deepcopy(model)
    torch.nn.init.zeros_(twin.get_submodule("base_model.model.0.lora_B.default").weight)
    with mixed():
        with twin.disable_adapter():
            base = twin(x)
        assert torch.equal(twin(x), base)
        assert not torch.equal(model(x), base)
