"""LoRA's layers as one function compute what PEFT's do, and keep PEFT's wherever they cannot."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from setbacks.training.lora_linear import train_in_one

SIZES = st.integers(1, 40)


def lora(inputs=24, outputs=40, bias=True, rank=4, alpha=8, **more):
    """A layer with a LoRA adapter whose weights are all other than 0."""
    base = torch.nn.Sequential(torch.nn.Linear(inputs, outputs, bias=bias)).bfloat16()
    config = LoraConfig(target_modules=["0"], r=rank, lora_alpha=alpha, **more)
    model = get_peft_model(base, config)
    torch.nn.init.normal_(model.get_submodule("base_model.model.0.lora_B.default").weight)
    return model


def learned(model, x):
    """Return a layer's output, and the gradients of its input and its adapter."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
    out.float().square().mean().backward()
    slopes = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return out.detach(), x.grad, slopes


def assert_same(one, other):
    """Both are within bfloat16's rounding of products, as a share of the largest entry."""
    assert one.dtype == other.dtype and one.shape == other.shape
    scale = other.float().abs().max().clamp(min=1e-6)
    torch.testing.assert_close(one.float() / scale, other.float() / scale, rtol=0, atol=0.03)


def is_ours(model, x):
    """Whether the function is a step of the graph that leads to the output."""
    steps, names = [model(x).grad_fn], set()
    while steps:
        if step := steps.pop():
            names.add(step.name())
            steps += [before for before, _ in step.next_functions]
    return any("LoraLinear" in name for name in names)


@settings(deadline=None, max_examples=40)
@given(SIZES, SIZES, st.integers(1, 8), SIZES, st.booleans(), st.sampled_from([1, 8, 32]))
def test_output_and_gradients_are_those_of_peft(inputs, outputs, rank, length, bias, alpha):
    torch.manual_seed(0)
    model = lora(inputs, outputs, bias, rank, alpha)
    x = torch.randn(3, length, inputs, dtype=torch.bfloat16)
    expected, to_x, slopes = learned(model, x)
    train_in_one(model)
    assert is_ours(model, x)
    ours, our_to_x, our_slopes = learned(model, x)
    assert_same(ours, expected)
    assert_same(our_to_x, to_x)
    assert list(our_slopes) == list(slopes) and len(slopes) == 2
    for name, slope in our_slopes.items():
        assert_same(slope, slopes[name])


def trains_its_base(model):
    model.get_submodule("base_model.model.0.base_layer").weight.requires_grad_()


@pytest.mark.parametrize(
    ("more", "change"),
    [
        ({"lora_dropout": 0.5}, None),
        ({"use_dora": True}, None),
        ({"lora_bias": True}, None),
        ({}, trains_its_base),
        ({}, lambda model: model.float()),
    ],
    ids=["dropout", "dora", "bias of the adapter", "trained base", "float32"],
)
def test_what_is_more_than_products_stays_with_peft(more, change):
    model = lora(**more)
    if change:
        change(model)
    train_in_one(model)
    x = torch.randn(2, 5, 24, dtype=next(model.parameters()).dtype)
    torch.manual_seed(1)
    ours = model(x)
    for module in model.modules():
        vars(module).pop("forward", None)
    torch.manual_seed(1)
    torch.testing.assert_close(ours, model(x))
    assert not is_ours(model, x)


def test_an_adapter_that_is_off_merged_or_another_answers_as_peft_has_it():
    model = lora()
    model.add_adapter("other", LoraConfig(target_modules=["0"], r=2))
    plain = copy.deepcopy(model)
    train_in_one(model)
    x = torch.randn(2, 5, 24, dtype=torch.bfloat16)
    with model.disable_adapter(), plain.disable_adapter():
        torch.testing.assert_close(model(x), plain(x))
    for both in (model, plain):
        both.set_adapter("other")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(model(x), plain(x))
    for both in (model, plain):
        both.base_model.set_adapter(["default", "other"])
    torch.testing.assert_close(model(x), plain(x))
    for both in (model, plain):
        both.set_adapter("default")
        both.merge_adapter()
    torch.testing.assert_close(model(x), plain(x))


def test_a_copy_of_a_model_has_its_layers():
    model = lora()
    train_in_one(model)
    twin = copy.deepcopy(model)
    torch.nn.init.zeros_(twin.get_submodule("base_model.model.0.lora_B.default").weight)
    x = torch.randn(2, 5, 24, dtype=torch.bfloat16)
    with twin.disable_adapter():
        base = twin(x)
    torch.testing.assert_close(twin(x), base)
    assert not torch.equal(model(x), base)
