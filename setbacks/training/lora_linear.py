"""LoRA's linear layers, each as one function of autograd, where small operations take the time.

On a CPU, a training step of a small model spends much of its time outside of matrix products.
PEFT's layer reads and writes the scale and the sum once more; in bfloat16, it converts its input to
float32, and automatic mixed precision converts it back; backward, all of this comes again. One
function gives the same, up to rounding, with little more than the products
(`benchmarks/lora_linear.py`).
"""

from __future__ import annotations

import functools
from typing import Any


def fuse_lora(model: Any) -> None:
    """Let LoRA's linear layers run as one function on a CPU.

    What more than LoRA's products needs keeps PEFT's forward pass: dropout, DoRA and other
    variants, a bias of the adapter, a trained or quantized base, several active adapters. Weights,
    gradients and what is saved stay PEFT's. The modules inside a layer are not called, so their
    hooks do not run.

    Args:
        model: a PEFT model.
    """
    import torch
    from peft.tuners.lora import Linear

    for module in model.modules():
        layer: Any = module
        if type(layer) is Linear and type(layer.base_layer) is torch.nn.Linear:
            vars(layer)["forward"] = functools.partial(_forward, layer)


def _forward(layer: Any, x: Any, *args: Any, **options: Any) -> Any:
    """Run a layer as one function, or as PEFT does.

    Passes with and without gradients go the same way: DPO and RLOO compare their probabilities.
    """
    import torch

    mixed = torch.is_autocast_enabled("cpu")
    products = torch.get_autocast_dtype("cpu") if mixed else torch.float32
    if args or options or x.dtype != products or not _is_plain(layer, products):
        return type(layer).forward(layer, x, *args, **options)
    (name,) = layer.active_adapters
    base, down, up = layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight
    rows = x.reshape(-1, x.shape[-1])
    out = _lora_linear().apply(rows, base.weight, base.bias, down, up, layer.scaling[name])
    return out.view(*x.shape[:-1], out.shape[-1])


def _is_plain(layer: Any, products: Any) -> bool:
    """Return whether one active adapter adds its products to a frozen layer, no more.

    Args:
        layer: of PEFT.
        products: the type in which they are computed.
    """
    import torch

    if layer.merged or layer.disable_adapters or len(layer.active_adapters) != 1:
        return False
    (name,) = layer.active_adapters
    return (
        name in layer.lora_A
        and name not in layer.lora_variant
        and not layer.lora_bias[name]
        and isinstance(layer.lora_dropout[name], torch.nn.Identity)
        and layer.base_layer.weight.dtype == products
        and not any(weight.requires_grad for weight in layer.base_layer.parameters())
    )


@functools.cache
def _lora_linear() -> Any:
    import torch

    class LoraLinear(torch.autograd.Function):
        """x W' + bias + scale (x A') B', with gradients for x, A and B (arXiv 2106.09685)."""

        @staticmethod
        def forward(
            context: Any, x: Any, weight: Any, bias: Any, down: Any, up: Any, scale: float
        ) -> Any:
            """Return the layer's output, [rows, outputs].

            Args:
                context: of autograd.
                x: [rows, inputs], in the type of the products.
                weight: W, [outputs, inputs], the same.
                bias: [outputs], or None.
                down: A, [rank, inputs], float32.
                up: B, [outputs, rank], float32.
                scale: of the adapter.
            """
            down, up = down.to(x.dtype), up.to(x.dtype)
            inner = x @ down.t()
            context.save_for_backward(x, inner, weight, down, up)
            context.scale = scale
            return torch.nn.functional.linear(x, weight, bias).addmm_(inner, up.t(), alpha=scale)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(context: Any, gradient: Any) -> tuple[Any, ...]:
            """Return the gradients: of x in its type, of A and B in float32."""
            x, inner, weight, down, up = context.saved_tensors
            within, scale = gradient @ up, context.scale
            to_up = (gradient.t() @ inner).float().mul_(scale)
            to_down = (within.t() @ x).float().mul_(scale)
            to_x = None
            if context.needs_input_grad[0]:
                to_x = (gradient @ weight).addmm_(within, down, alpha=scale)
            return to_x, None, None, to_down, to_up, None

    return LoraLinear
