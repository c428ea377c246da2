"""LoRA's linear layers, each as one function of autograd, where small operations take the time.

In bfloat16 on a CPU, a training step of a small model spends less than half of its time on matrix
products. PEFT's layer converts its input to float32, automatic mixed precision converts it back,
and the scale and the sum are read and written once more; backward, all of this comes again. One
function does the same with the products alone (`benchmarks/lora_linear.py`).
"""

from __future__ import annotations

import functools
from typing import Any


def train_in_one(model: Any) -> None:
    """Let plain LoRA layers of a PEFT model run as one function, if they train in bfloat16.

    A layer with more than that keeps PEFT's forward pass: dropout, DoRA and other variants, a
    quantized base, several active adapters. Weights, gradients and what is saved stay PEFT's.

    Args:
        model: a PEFT model, whose adapter is in float32 and whose base is not trained.
    """
    for module in model.modules():
        if _is_plain(module):
            module.forward = functools.partial(_forward, module)


def _is_plain(layer: Any) -> bool:
    """Return whether a module is LoRA on a linear layer that is not trained, and nothing more."""
    import torch
    from peft.tuners.lora import Linear

    if type(layer) is not Linear:
        return False
    base = layer.base_layer
    return (
        type(base) is torch.nn.Linear
        and not any(weight.requires_grad for weight in base.parameters())
        and not layer.lora_variant
        and not any(layer.lora_bias.values())
        and all(isinstance(drop, torch.nn.Identity) for drop in layer.lora_dropout.values())
    )


def _forward(layer: Any, x: Any, *args: Any, **options: Any) -> Any:
    """Run a LoRA layer: as one function, or as PEFT does if its adapter is off or it must."""
    import torch

    weight = layer.base_layer.weight
    ours = (
        torch.is_grad_enabled()
        and x.dtype == weight.dtype == torch.bfloat16
        and len(layer.active_adapters) == 1
        and not (args or options or layer.merged or layer.disable_adapters)
    )
    if not ours:
        return type(layer).forward(layer, x, *args, **options)
    (name,) = layer.active_adapters
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    return _function().apply(x, weight, layer.base_layer.bias, down, up, layer.scaling[name])


@functools.cache
def _function() -> Any:
    import torch

    class LoraLinear(torch.autograd.Function):
        """x W' + bias + scale (x A') B', with gradients for x, A and B (arXiv 2106.09685)."""

        @staticmethod
        def forward(
            context: Any, x: Any, weight: Any, bias: Any, down: Any, up: Any, scale: float
        ) -> Any:
            """Return the layer's output.

            Args:
                context: of autograd.
                x: [..., inputs], bfloat16.
                weight: W, [outputs, inputs], bfloat16.
                bias: [outputs], or None.
                down: A, [rank, inputs], float32.
                up: B, [outputs, rank], float32.
                scale: alpha / rank.
            """
            rows = x.flatten(0, -2)
            down, up = down.to(x.dtype), up.to(x.dtype)
            inner = rows @ down.t()
            out = torch.nn.functional.linear(rows, weight, bias).addmm_(inner, up.t(), alpha=scale)
            context.save_for_backward(rows, inner, weight, down, up)
            context.scale, context.shape = scale, x.shape
            return out.unflatten(0, x.shape[:-1])

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(context: Any, gradient: Any) -> tuple[Any, ...]:
            """Return the gradients: of x in bfloat16, of A and B in float32."""
            rows, inner, weight, down, up = context.saved_tensors
            gradient = gradient.flatten(0, -2)
            within, scale = gradient @ up, context.scale
            to_up = (gradient.t() @ inner).float().mul_(scale)
            to_down = (within.t() @ rows).float().mul_(scale)
            to_x = None
            if context.needs_input_grad[0]:
                to_x = (gradient @ weight).addmm_(within, down, alpha=scale).view(context.shape)
            return to_x, None, None, to_down, to_up, None

    return LoraLinear
