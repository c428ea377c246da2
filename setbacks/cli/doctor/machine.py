"""What this machine can run, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec

from packaging.requirements import Requirement

from setbacks.cli.doctor import Check
from setbacks.data.sources import builtin_sets
from setbacks.files import NoHome
from setbacks.models.hardware import fast_bfloat16
from setbacks.plugins import load_all
from setbacks.runs.environment import cores

# Libraries that are listed even if they are fine, and extras that no user needs.
NAMED = {"torch", "transformers", "trl", "peft", "accelerate", "datasets", "gguf"}
DEVELOPERS = {"test", "dev", "docs"}


def examine() -> list[Check]:
    """Check Python, libraries, hardware, disk and the embedded model; change nothing."""
    return [*_libraries(), *_hardware(), *_model(), *_optional()]


def _libraries() -> Iterator[Check]:
    yield Check("python", sys.version_info >= (3, 11), platform.python_version())
    for requirement in _requirements():
        wrong = problem(requirement)
        if wrong or requirement.name in NAMED:
            status = wrong or metadata.version(requirement.name)
            yield Check(requirement.name, not wrong, status)


def _requirements(extra: str = "") -> list[Requirement]:
    """The requirements of the installed package, or of one of its extras."""
    requirements = map(Requirement, metadata.requires("setbacks") or [])
    return [
        r for r in requirements if (r.marker.evaluate({"extra": extra}) if r.marker else not extra)
    ]


def problem(requirement: Requirement) -> str:
    """Why a requirement is not met; empty if it is."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"not installed: pip install {requirement.name}"
    if requirement.specifier.contains(version, prereleases=True):
        return ""
    return f"{version} is installed: pip install '{requirement.name}{requirement.specifier}'"


def _hardware() -> Iterator[Check]:
    yield Check("cores", True, str(cores()))
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
    fast = fast_bfloat16()
    yield Check(
        "bfloat16 on the CPU",
        fast,
        "faster than float32" if fast else "slow or emulated; float32 is used",
        needed=False,
    )
    free = shutil.disk_usage(".").free / 2**30
    yield Check("disk here", free > 2, f"{free:.0f} GiB free; a small run takes under 1")


def _model() -> Iterator[Check]:
    from setbacks.models import embedded

    try:
        embedded.cache()
    except NoHome as error:
        yield Check("embedded models", False, str(error), needed=False)
        return
    for alias, model in embedded.MODELS.items():
        ready = embedded.ready(alias)
        fetched = f"fetched ({model.fetched_mb} MB) by the first run that names it"
        status = f"ready in {embedded.cache()}" if ready else fetched
        yield Check(alias, ready, status, needed=False)


def _optional() -> Iterator[Check]:
    for extra in metadata.metadata("setbacks").get_all("Provides-Extra") or []:
        if extra in DEVELOPERS:
            continue
        lacking = [f"{r.name}{r.specifier}" for r in _requirements(extra) if problem(r)]
        status = f"lacks {', '.join(lacking)}: pip install 'setbacks[{extra}]'"
        yield Check(f"extra {extra}", not lacking, status if lacking else "ready", needed=False)
    vllm = find_spec("vllm") is not None  # no extra installs it
    yield Check(
        "vllm", vllm, "ready" if vllm else "not installed: see docs/engines.md", needed=False
    )
    for group in ("methods", "judges", "engines", "studies"):
        usable, broken = load_all(group)
        yield Check(group, True, ", ".join(usable))
        for problem_of_part in broken.values():
            yield Check(group, False, problem_of_part, needed=False)
    yield Check("sets", True, ", ".join(sorted(builtin_sets())))
    token = "set" if os.environ.get("HF_TOKEN") else "HF_TOKEN not set; gated models need it"
    yield Check("hub token", token == "set", token, needed=False)
