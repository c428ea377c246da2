"""Training in several processes: `accelerate launch`, or `torchrun`, `-m setbacks train RUN`.

The first process is an ordinary run: only it opens the folder, generates, logs and writes. The
others wait until it has written the examples, and train along. Each step is the same as in one
process: `train.batch_size` counts the examples of all processes together.
"""

from __future__ import annotations

import os
from datetime import timedelta

from setbacks.errors import InputError
from setbacks.recipe import Train

# The others wait while the first one generates mistakes and analyses, which may take days.
PATIENCE = timedelta(days=30)


def rank() -> int:
    """Return the number of this process; 0 is the first, or the only one."""
    return int(os.environ.get("RANK", 0)) if count() > 1 else 0


def count() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def share(train: Train) -> int:
    """Return the number of examples per step for each process.

    Raises:
        InputError: a step cannot be divided evenly.
    """
    if train.batch_size % count():
        raise InputError(
            f"train.batch_size: {train.batch_size} examples cannot be divided evenly among "
            f"{count()} processes; make it a multiple of {count()}"
        )
    return train.batch_size // count()


def shard() -> bool:
    """Return whether the processes share one model, and each of them has only a part of it."""
    names = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes") for name in names)


def meet() -> None:
    """Wait until every process gets here; do nothing if there is only one."""
    if count() > 1:
        from accelerate import PartialState

        on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
        PartialState(cpu=on_cpu, timeout=PATIENCE).wait_for_everyone()


def part() -> None:
    """End the connections of this process to the others, if there are any.

    A process that ends with open connections can abort: their threads still run. After an error,
    do not call this: the others may be in the middle of a step.

    Source: PyTorch, `torch.distributed`, "Shutdown".
    """
    if count() > 1:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
