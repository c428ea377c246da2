"""The number format that `auto` means follows what the processor is fast in."""

import pytest
import torch

from setbacks.models import hardware
from setbacks.recipe import Engine

INTEL = "vendor_id : GenuineIntel"
AMD = "vendor_id : AuthenticAMD"


@pytest.fixture
def processor(monkeypatch):
    def set_(vendor, **has):
        monkeypatch.setattr(hardware, "_processor", lambda: vendor)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: "amx" in has)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: "avx512" in has)
        hardware.fast_bfloat16.cache_clear()

    yield set_
    hardware.fast_bfloat16.cache_clear()


@pytest.mark.parametrize(
    ("vendor", "has", "format_"),
    [
        (INTEL, ["amx", "avx512"], torch.bfloat16),
        (INTEL, ["avx512"], torch.float32),
        (AMD, ["avx512"], torch.bfloat16),
        (AMD, [], torch.float32),
    ],
)
def test_auto_is_the_faster_format(processor, vendor, has, format_):
    processor(vendor, **dict.fromkeys(has, True))
    assert hardware.dtype(Engine(device="cpu"), "cpu") == format_
    assert hardware.dtype(Engine(device="cpu", dtype="bfloat16"), "cpu") == torch.bfloat16


def test_this_machines_processor_is_described():
    assert len(hardware._processor()) > 5
