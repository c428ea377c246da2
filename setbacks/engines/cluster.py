"""The cluster engine: another engine, in many processes at once, by Ray.

The work list is cut into the same batches as in one process; groups of them are sent out, and come
back in order, so a journal gets the same bytes. While one group is written down, the workers have
the next ones. A worker that dies is started anew, and its batch goes to it again: nothing of a
batch is kept before all of it is there.
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
from setbacks.recipe import Engine as Spec
from setbacks.recipe import Section
from setbacks.records import Completion, Request
from setbacks.signals import kept

if TYPE_CHECKING:
    import numpy as np

    from setbacks.recipe import Sampling

SHARE = 4  # batches a worker in one group: the others seldom wait for the last one
DEEP = 2  # batches that a worker holds: while it has one, the next is there
DEATHS = 3  # so often may the workers of one batch die; then the batch is at fault


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
            raise ValueError("vllm goes with ray.engine: vllm")
        return self


class Cluster(Engine):
    """Workers on a Ray cluster, each with a whole model.

    It joins the cluster that RAY_ADDRESS names, or one that runs on this machine; else it starts
    one here for as long as the process lives. The model, and adapters, must be found under the
    same path on each machine.

    Args:
        spec: the model, and in `spec.ray` how many workers.
        language: of the Alpaca template, for models without a chat template.
    """

    Options = ClusterOptions
    ahead = 1  # workers have the next batches while this process writes one down
    shows_probabilities = True  # where the engine inside does; it says so itself where not

    def __init__(self, spec: ClusterOptions, language: str = "en") -> None:
        self.settings = spec.ray or Settings()
        inside = spec.model_dump(exclude={"ray"}) | {"engine": self.settings.engine}
        self.inner = Spec.model_validate(inside)
        self._tensor_parallel = spec.vllm.tensor_parallel if spec.vllm else 1
        self.language = language
        self.name = spec.model
        self._sent = 0  # batches so far
        self._back: dict[int, Any] = {}  # what came back of them, and nobody has asked for yet

    @classmethod
    def check(cls, spec: Spec) -> None:
        """Look whether Ray is installed.

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
        """Send out one planned group; what is returned waits for it.

        Args:
            requests: a group of the plan.
            sampling: how tokens are drawn.
            adapter: a PEFT folder that every worker can read, or None for the base model.

        Raises:
            InputError: there is no room for the workers. What is returned raises it where a worker
                says so, and SetbacksError where the workers of a batch died again and again.
        """
        numbers = self._send("generate", requests, sampling, adapter and adapter.absolute())
        return lambda: [completion for batch in self._wait(numbers) for completion in batch]

    def choose(
        self, requests: Sequence[Request], options: Sequence[str], adapter: Path | None = None
    ) -> np.ndarray:
        """Return how likely each answer begins with each option (`Engine.choose`)."""
        import numpy as np

        numbers = self._send("choose", requests, options, adapter and adapter.absolute())
        return np.concatenate(self._wait(numbers))

    def _send(self, what: str, requests: Sequence[Request], *told: Any) -> range:
        """Have each batch of a group done by whichever worker is free; return their numbers."""
        size, first = self.inner.batch_size, self._sent
        for start in range(0, len(requests), size):
            self._pool.submit(
                lambda worker, job: worker.do.remote(*job),
                (self._sent, what, requests[start : start + size], *told),
            )
            self._sent += 1
        return range(first, self._sent)

    def _wait(self, numbers: range) -> list[Any]:
        """Wait for what was made of these batches; in order."""
        import ray

        try:
            while not self._back.keys() >= {*numbers}:
                number, made = self._pool.get_next_unordered()
                self._back[number] = made
        except ray.exceptions.RayError as error:
            self._forget()
            raise SetbacksError(
                f"{self.name}: workers on the cluster died {DEATHS + 1} times over one batch "
                f"({_first_line(error)}); what was done is kept: look for what ends them (memory: "
                "a smaller batch_size, fewer ray.workers), then run the same command again"
            ) from error
        found = [self._back.pop(number) for number in numbers]
        for made in found:
            if isinstance(made, Exception):
                self._forget()
                raise made
        return found

    def _forget(self) -> None:
        """Wait no longer for what was sent out."""
        del self._pool
        self._back.clear()

    @cached_property
    def _pool(self) -> Any:
        """Ray's, which gives the next batch to whichever worker has room for one."""
        from ray.util import ActorPool

        return ActorPool(self._workers * DEEP)

    @property
    def _wide(self) -> int:
        """Batches in a group."""
        return self._number * SHARE

    @cached_property
    def _number(self) -> int:
        """How many workers: as told, or one for each GPU, or for each machine where none has one.

        Raises:
            InputError: there is no cluster where it is said to be, or too little in it.
        """
        import ray

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # the first one is raised
        try:
            with kept():  # Ray's would abort the process, with a trace of its own calls
                ray.init(
                    ignore_reinit_error=True,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(
                f"engine: ray: no cluster to join or to start ({_first_line(error)}); see "
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
        """The workers; they end when this engine is let go of."""
        import ray

        number = self._number
        made = ray.remote(Worker).options(
            num_cpus=self._cores,
            num_gpus=self._gpus,
            max_restarts=-1,
            max_task_retries=DEATHS,
        )
        return [made.remote(self.inner, self.language) for _ in range(number)]


class Worker:
    """A process of the cluster with an engine in it.

    Args:
        spec: the model and the engine inside.
        language: of the Alpaca template.
    """

    def __init__(self, spec: Spec, language: str) -> None:
        self.told = (spec, language)

    @cached_property
    def engine(self) -> Engine:
        """The engine inside; opened by the first batch, which then says what is wrong with it."""
        return open_engine(*self.told)

    def do(self, number: int, what: str, requests: Sequence[Request], *told: Any) -> Any:
        """Do a batch: `generate` or `choose`; its number comes back with it.

        An error comes back, too, and is raised once it is its batch's turn: what comes before it is
        written down first.
        """
        try:
            ask = self.engine.choose if what == "choose" else self.engine.generate
            return number, ask(requests, *told)
        except Exception as error:
            return number, error


def _first_line(error: BaseException) -> str:
    """What an error of Ray says, in a few words."""
    return " ".join(str(error).split())[:200] or type(error).__name__
