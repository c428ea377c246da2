"""The cluster engine: another engine in many processes at once, on Ray.

The work list is cut into the same batches as in one process; groups of them are sent out and come
back in order, so a journal gets the same bytes. While one group is written, the workers have the
next ones. A worker that dies is restarted and gets its batch again: a batch is stored only when it
is complete.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from setbacks.engines import Engine, by_length, open_engine
from setbacks.engines.vllm import VLLMOptions
from setbacks.errors import InputError, SetbacksError
from setbacks.prompts import Words
from setbacks.recipe import Engine as Spec
from setbacks.recipe import Section
from setbacks.records import Completion, Request
from setbacks.signals import kept

if TYPE_CHECKING:
    import numpy as np

    from setbacks.recipe import Sampling

SHARE = 4  # batches per worker in one group: few wait for the last one
DEEP = 2  # batches that a worker holds: the next one is always there
DEATHS = 3  # retries of a batch whose worker died; then the batch is at fault


class Settings(Section):
    """Workers on a Ray cluster."""

    workers: int | None = Field(
        None,
        ge=1,
        description="Number of workers, each with a whole model; null: one per GPU, or one per "
        "machine without GPUs.",
    )
    engine: Literal["local", "vllm"] = Field("local", description="Engine in each worker.")


class ClusterOptions(VLLMOptions):
    """A model in each of many workers."""

    ray: Settings | None = Field(None, description="The workers; null: all defaults.")

    @property
    def runs_in(self) -> str:
        """The engine inside each worker."""
        return (self.ray or Settings()).engine

    @model_validator(mode="after")
    def _vllm_inside(self) -> Self:
        if self.vllm is not None and (self.ray is None or self.ray.engine != "vllm"):
            raise ValueError("the section vllm needs ray.engine: vllm")
        return self


class Cluster(Engine):
    """Workers on a Ray cluster, each with a complete model.

    It joins the cluster of RAY_ADDRESS, or one that runs on this machine; otherwise it starts one
    here for the lifetime of the process. The model and adapters must have the same path on each
    machine.

    Args:
        spec: the model, and in `spec.ray` the workers.
        words: those of the Alpaca template, for models without a chat template. None for English.
    """

    Options = ClusterOptions
    ahead = 1  # workers have the next batches while this process writes one
    shows_probabilities = True  # if the engine inside does; otherwise that one raises the error

    def __init__(self, spec: ClusterOptions, words: Words | None = None) -> None:
        self.settings = spec.ray or Settings()
        inside = spec.model_dump(exclude={"ray"}) | {"engine": self.settings.engine}
        self.inner = Spec.model_validate(inside)
        self._tensor_parallel = spec.vllm.tensor_parallel if spec.vllm else 1
        self.words = words
        self.name = spec.model
        self._sent = 0  # batches so far
        self._back: dict[int, Any] = {}  # results that were not collected yet

    @classmethod
    def check(cls, spec: Spec) -> None:
        """Check that Ray is installed.

        Raises:
            InputError: it is not.
        """
        if find_spec("ray") is None:
            raise InputError('engine: ray needs ray: pip install "setbacks[ray]"')

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Cut the whole work list into groups, each of them some batches of one process."""
        return by_length([request.size for request in requests], self.inner.batch_size * self._wide)

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, adapter: Path | None = None
    ) -> list[Completion]:
        """Generate one planned group; see `start`."""
        return self.start(requests, sampling, adapter)()

    def start(
        self, requests: Sequence[Request], sampling: Sampling, adapter: Path | None = None
    ) -> Callable[[], list[Completion]]:
        """Send out one planned group; return a function that waits for its completions.

        Args:
            requests: a group of the plan.
            sampling: how tokens are drawn.
            adapter: a PEFT folder that every worker can read, or None for the base model.

        Raises:
            InputError: there is no room for the workers. The returned function raises it for an
                error of a worker, and SetbacksError if the workers of a batch died repeatedly.
        """
        numbers = self._send("generate", requests, sampling, adapter and adapter.absolute())
        return lambda: [completion for batch in self._wait(numbers) for completion in batch]

    def choose(
        self, requests: Sequence[Request], options: Sequence[str], adapter: Path | None = None
    ) -> np.ndarray:
        """Return the probability that each answer begins with each option (`Engine.choose`)."""
        import numpy as np

        numbers = self._send("choose", requests, options, adapter and adapter.absolute())
        return np.concatenate(self._wait(numbers))

    def _send(self, what: str, requests: Sequence[Request], *arguments: Any) -> range:
        """Send each batch of a group to a free worker; return the numbers of the batches."""
        size, first = self.inner.batch_size, self._sent
        for start in range(0, len(requests), size):
            self._pool.submit(
                lambda worker, job: worker.do.remote(*job),
                (self._sent, what, requests[start : start + size], *arguments),
            )
            self._sent += 1
        return range(first, self._sent)

    def _wait(self, numbers: range) -> list[Any]:
        """Wait for the results of these batches, in order."""
        import ray

        try:
            while not self._back.keys() >= {*numbers}:
                number, result = self._pool.get_next_unordered()
                self._back[number] = result
        except ray.exceptions.RayError as error:
            self._forget()
            raise SetbacksError(
                f"{self.name}: workers on the cluster died {DEATHS + 1} times on one batch "
                f"({_first_line(error)}); progress is saved: find the cause (for memory, use a "
                "smaller batch_size or fewer ray.workers), then run the same command to resume"
            ) from error
        results = [self._back.pop(number) for number in numbers]
        for result in results:
            if isinstance(result, Exception):
                self._forget()
                raise result
        return results

    def _forget(self) -> None:
        """Stop waiting for batches that were sent out."""
        del self._pool
        self._back.clear()

    @cached_property
    def _pool(self) -> Any:
        """Ray's pool, which gives the next batch to a worker that has room for one."""
        from ray.util import ActorPool

        return ActorPool(self._workers * DEEP)

    @property
    def _wide(self) -> int:
        """Batches in a group."""
        return self._number * SHARE

    @cached_property
    def _number(self) -> int:
        """The number of workers: by the recipe, or one per GPU, or one per machine without GPUs.

        Raises:
            InputError: there is no cluster at the address, or it is too small.
        """
        import ray

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # the first one is raised
        try:
            with kept():  # Ray would install handlers that abort the process with a trace
                ray.init(
                    ignore_reinit_error=True,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(
                f"engine: ray: cannot join or start a cluster ({_first_line(error)}); check "
                "RAY_ADDRESS"
            ) from error
        here = ray.cluster_resources()
        self._gpus = self._tensor_parallel
        if here.get("GPU", 0) < self._gpus or self.inner.device == "cpu":
            self._gpus = 0
        room = int(here["GPU"] // self._gpus if self._gpus else here.get("CPU", 0))
        machines = sum(node["Alive"] for node in ray.nodes())
        number = self.settings.workers or (room if self._gpus else machines)
        if number > room:
            raise InputError(
                f"ray.workers: {number}, but the cluster has room for {room} "
                f"({'GPUs' if self._gpus else 'CPU cores'}); ask for fewer, or add machines"
            )
        self._cores = 1 if self._gpus else max(1, int(here["CPU"]) // number)
        return number

    @cached_property
    def _workers(self) -> list[Any]:
        """The workers; they end with this engine."""
        import ray

        number = self._number
        worker = ray.remote(Worker).options(
            num_cpus=self._cores,
            num_gpus=self._gpus,
            max_restarts=-1,
            max_task_retries=DEATHS,
        )
        return [worker.remote(self.inner, self.words) for _ in range(number)]


class Worker:
    """A process of the cluster with an engine in it.

    Args:
        spec: the model and the engine inside.
        words: those of the Alpaca template.
    """

    def __init__(self, spec: Spec, words: Words | None) -> None:
        self._spec = (spec, words)

    @cached_property
    def engine(self) -> Engine:
        """The engine inside; opened by the first batch, which then reports its errors."""
        return open_engine(*self._spec)

    def do(self, number: int, what: str, requests: Sequence[Request], *arguments: Any) -> Any:
        """Process a batch: `generate` or `choose`; return its number with the result.

        An error is returned too, and raised when it is the batch's turn, so that earlier batches
        are written first.
        """
        try:
            ask = self.engine.choose if what == "choose" else self.engine.generate
            return number, ask(requests, *arguments)
        except Exception as error:
            return number, error


def _first_line(error: BaseException) -> str:
    """Return an error of Ray in a few words."""
    return " ".join(str(error).split())[:200] or type(error).__name__
