"""What a run depends on besides its recipe: versions of libraries, and hardware."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any


def environment() -> dict[str, Any]:
    """Return the versions and the hardware; no host name and no user name."""
    names = ("setbacks", "torch", "transformers", "trl", "peft", "datasets", "accelerate")
    return {
        "python": platform.python_version(),
        "platform": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "packages": {name: metadata.version(name) for name in names},
    }


def cores() -> int:
    """Return how many cores this process may use; a container may allow fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
