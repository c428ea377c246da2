"""What this machine can run, and what is missing."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import textwrap
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from typing import NamedTuple

from setbacks.plugins import installed
from setbacks.sources import builtin_sets

# What each extra brings, by the names that are imported.
EXTRAS = {
    "endpoint": ("openai", "tenacity"),
    "ray": ("ray",),
    "vllm": ("vllm",),
    "review": ("fastapi", "uvicorn", "sqlalchemy", "krippendorff", "multipart"),
    "inspect": ("inspect_ai",),
}


class Check(NamedTuple):
    """One thing looked at; `needed` where nothing runs without it."""

    name: str
    ok: bool
    found: str
    needed: bool = True


def examine() -> list[Check]:
    """Look at Python, libraries, hardware, disk and the embedded model; change nothing."""
    return [*_libraries(), *_hardware(), *_model(), *_optional()]


def show(checks: list[Check], as_json: bool = False) -> None:
    """Print the checks as a table, or as JSON."""
    if as_json:
        print(json.dumps([check._asdict() for check in checks], indent=1))
        return
    for check in checks:
        mark = "ok " if check.ok else ("MISSING" if check.needed else "-  ")
        head = f"{mark:<8}{check.name:<22}"
        print(textwrap.fill(check.found, 100, initial_indent=head, subsequent_indent=" " * 30))


def _libraries() -> Iterator[Check]:
    yield Check("python", sys.version_info >= (3, 11), platform.python_version())
    for name in ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "gguf"):
        try:
            yield Check(name, True, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Check(name, False, f"not installed: pip install {name}")


def _hardware() -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check("cores", True, str(cores))
    try:
        import torch
    except ImportError:
        return
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        gigabytes = torch.cuda.get_device_properties(0).total_memory / 2**30
        yield Check("gpu", True, f"{name}, {gigabytes:.0f} GiB", needed=False)
    else:
        yield Check("gpu", False, "none; everything runs on the CPU", needed=False)
    native = torch.cpu._is_avx512_bf16_supported()
    yield Check(
        "bfloat16 on the CPU",
        native,
        "native" if native else "not native; float32 is used",
        needed=False,
    )
    free = shutil.disk_usage(".").free / 2**30
    yield Check("disk here", free > 2, f"{free:.0f} GiB free; a small run takes under 1")


def _model() -> Iterator[Check]:
    from setbacks import embedded

    for alias, model in embedded.MODELS.items():
        ready = embedded.ready(alias)
        fetched = f"fetched ({model.fetched_mb} MB) by the first run that names it"
        found = f"ready in {embedded.cache()}" if ready else fetched
        yield Check(alias, ready, found, needed=False)


def _optional() -> Iterator[Check]:
    for extra, libraries in EXTRAS.items():
        lacking = [name for name in libraries if find_spec(name) is None]
        package = "vllm" if extra == "vllm" else f"setbacks[{extra}]"  # no extra brings vllm
        found = f"{', '.join(lacking)} not installed: pip install '{package}'"
        yield Check(f"extra {extra}", not lacking, found if lacking else "ready", needed=False)
    for group in ("methods", "judges", "engines", "studies"):
        yield Check(group, True, ", ".join(sorted(installed(group))))
    yield Check("sets", True, ", ".join(sorted(builtin_sets())))
    token = "set" if os.environ.get("HF_TOKEN") else "HF_TOKEN not set; gated models need it"
    yield Check("hub token", token == "set", token, needed=False)
