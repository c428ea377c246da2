"""Where a model runs, and in which number format."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from setbacks.errors import InputError

if TYPE_CHECKING:
    import torch

    from setbacks.recipe import Engine


def device(spec: Engine) -> str:
    """Return the device of a model: the recipe's, or the best one available.

    Raises:
        InputError: the recipe names a device that is not available.
    """
    import torch

    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if spec.device == "auto":
        return next((name for name, there in has.items() if there), "cpu")
    kind = spec.device.partition(":")[0]
    if kind != "cpu" and not has.get(kind, False):
        raise InputError(
            f'model.device: this machine has no "{spec.device}"; use auto or cpu '
            "(`setbacks doctor` lists the devices)"
        )
    return spec.device


def dtype(spec: Engine, place: str) -> torch.dtype:
    """Return the number format of a model's weights.

    `auto` is bfloat16 where the hardware multiplies matrices faster in it than in float32: CUDA
    from Ampere on, and the CPUs of `fast_bfloat16`. Elsewhere it is emulated or slow.
    """
    import torch

    if spec.dtype != "auto":
        named: torch.dtype = getattr(torch, spec.dtype)
        return named
    if place.startswith("cuda"):
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = place == "cpu" and fast_bfloat16()
    return torch.bfloat16 if fast else torch.float32


@cache
def fast_bfloat16() -> bool:
    """Return whether the CPU multiplies matrices faster in bfloat16 than in float32.

    AMX does, and by its documentation AMD's AVX512-BF16, which was not measured. Intel's
    AVX512-BF16 takes almost twice the time of float32 (`benchmarks/dtype.py`). Most of Intel's CPUs
    with it have AMX, too, but some virtual machines hide that.
    """
    import torch

    if torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and "GenuineIntel" not in _processor()


def _processor() -> str:
    """Return a description of the processor, with its vendor's name."""
    linux = Path("/proc/cpuinfo")
    return linux.read_text(encoding="utf-8") if linux.exists() else platform.processor()
