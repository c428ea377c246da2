"""The endpoint engine: a server that speaks OpenAI's chat completions, hosted or your own.

Many requests are in flight at once; `setbacks.engines.crowd` decides how many. A failure that may
pass is retried, each time later; one that cannot stops the run in one line. An answer is paid for
once: it is stored in a file of the run until its batch is on disk, so that a stop in the middle of
a batch loses none. A prompt that a provider blocks for its content counts as answered, by a
refusal: see `setbacks.engines.replies`.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setbacks.engines import Engine, by_length
from setbacks.engines.connection import Connection, Status, Trouble
from setbacks.engines.crowd import Crowd
from setbacks.engines.endpoint_options import EndpointOptions
from setbacks.engines.replies import Problem, Reply
from setbacks.errors import RESUME, InputError, SetbacksError
from setbacks.files import failed_write, private
from setbacks.measure.substance import part
from setbacks.messages import Message, last_question, with_system
from setbacks.prompts import Words, ask, prompts
from setbacks.records import Completion, Request, digest
from setbacks.text import encodable

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from setbacks.recipe import Sampling

log = logging.getLogger(__name__)

FEW = 20  # the share of failures is taken of at least this many requests
BLOCKED = Completion("", "filter", 0, 0)
# These errors are about the key, the account, the address or overload, whatever else they say.
NOT_OF_CONTENT = (401, 402, 404, 407, 408, 429)


class Stopped(Exception):
    """The run is stopping: no further request is sent."""


class Endpoint(Engine):
    """A model behind a server.

    Args:
        spec: the model's name on the server, and in `spec.endpoint` where the server is.
        words: those that ask for the beginning of an answer; None for English.
    """

    Options = EndpointOptions
    elsewhere = True
    unused = ("revision", "dtype", "device", "cuda_graphs", "trust_remote_code")

    def __init__(self, spec: EndpointOptions, words: Words | None = None) -> None:
        self.spec = spec
        self.server = spec.endpoint
        self.connection = Connection(spec)
        self.words = words or prompts("en")
        self.name = spec.model
        self.money = 0.0
        self.prompt_tokens = self.tokens = 0
        self.answered = self.blocked = self.failed = self.retried = 0
        self.estimated = 0  # answers whose tokens the server did not count
        self._limit_key = "max_tokens"  # the server's name for it
        self._last_failure = ""
        self._warned_of_thoughts = False
        self.crowd = Crowd(self.server.concurrency)
        self._stored: dict[str, Completion] = {}
        self._file: Path | None = None
        self._stop: SetbacksError | None = None

    @classmethod
    def check(cls, spec: EndpointOptions) -> None:
        """Check that the server answers and accepts the key, by its list of models, which is free.

        Raises:
            InputError: the server does not answer or accept the key, or something is missing here.
        """
        from anyio.from_thread import start_blocking_portal

        connection = Connection(spec)
        if spec.chat_template != "own":
            raise InputError(
                f"{connection.where}: chat_template: {spec.chat_template} is for the local engine; "
                "a server applies the template of its model"
            )
        connection.key  # noqa: B018 (raises where the key is missing)
        with start_blocking_portal() as portal:
            portal.call(connection.greet)

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Cut the whole work list into batches by the length of the prompts, in characters."""
        return by_length([request.size for request in requests], self.spec.batch_size)

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, adapter: Path | None = None
    ) -> list[Completion]:
        """Answer one planned batch; a request that failed for good gets an empty answer.

        Args:
            requests: a batch of the plan.
            sampling: how tokens are drawn; `top_k` is not sent, since not every server knows it.
            adapter: must be None: a server answers with the model that it has loaded.

        Raises:
            InputError: there is no server, or it rejects the key or the model.
            SetbacksError: the budget is spent, or too many requests failed.
        """
        from anyio.from_thread import start_blocking_portal

        if adapter is not None:
            raise InputError(
                f"{self.connection.where}: {adapter} cannot be sent to a server; load the adapter "
                "in the server, and set model to its name there"
            )
        # The event loop runs in another thread, since a notebook runs one in this thread.
        with start_blocking_portal() as portal:
            return portal.call(self._batch, requests, sampling)

    # -- stored answers and costs -----------------------------------------------------------------

    def keep(self, path: Path) -> None:
        """Store answers in a file, and read those that an interrupted run left there."""
        self._file = path
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                key, *fields = json.loads(line)
                self._stored[key] = Completion(*fields)
            except (ValueError, TypeError):  # cut off by a crash: it is requested again
                continue

    def committed(self) -> None:
        """Forget the stored answers: their records are on disk."""
        self._stored.clear()
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def spent(self) -> str:
        """Return requests and costs in one line; empty if nothing was requested."""
        if not self._finished:
            return ""
        blocked = f"{self.blocked:,} blocked by a content filter, " if self.blocked else ""
        failed = f"{self.failed:,} failed" + (
            f" (the last one: {self._last_failure})" if self.failed else ""
        )
        estimated = f" (estimated for {self.estimated:,} answers)" if self.estimated else ""
        cost = f", {self.money:,.4f} spent" if self.server.price else ""
        return (
            f"{self.connection.where}: {self.answered:,} answers, {blocked}{self.retried:,} "
            f"retries, {failed}; {self.prompt_tokens:,} prompt tokens and {self.tokens:,} "
            f"generated tokens{estimated}{cost}"
        )

    @property
    def _finished(self) -> int:
        """How many requests were answered, blocked, or failed for good."""
        return self.answered + self.blocked + self.failed

    # -- a batch ----------------------------------------------------------------------------------

    async def _batch(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        import anyio

        completions: dict[int, Completion] = {}
        self._stop = None
        self._stopped = anyio.Event()
        self._wake = 0.0  # the server asked to wait until then
        self.crowd.open()

        async def answer(client: AsyncOpenAI, place: int) -> None:
            request = requests[place]
            body = self._body(request, sampling)
            key = digest(self.server.base_url, json.dumps(body, sort_keys=True))
            try:
                if key not in self._stored:
                    self._store(key, await self._ask(client, request, body, sampling))
                completions[place] = self._stored[key]
            except Trouble as error:
                completions[place] = Completion("", "failed", 0, 0)
                self._failed(error)
            except Stopped:
                pass
            except SetbacksError as error:
                self._stop_with(error)

        async with self.connection.client() as client, anyio.create_task_group() as group:
            for place in range(len(requests)):
                group.start_soon(answer, client, place)
        if self._stop is not None:
            raise self._stop
        return [completions[place] for place in range(len(requests))]

    async def _ask(
        self, client: AsyncOpenAI, request: Request, body: dict[str, Any], sampling: Sampling
    ) -> Completion:
        """Try until there is an answer, or until further attempts are useless.

        Raises:
            Trouble: every attempt failed.
            Stopped: the run is stopping.
            SetbacksError: the run has to stop.
        """
        from tenacity import (
            AsyncRetrying,
            retry_if_exception,
            stop_after_attempt,
            wait_random_exponential,
        )

        backoff = wait_random_exponential(multiplier=0.5, max=30)  # with full jitter

        def wait(state: Any) -> float:
            requested: float = state.outcome.exception().wait
            return requested or backoff(state)

        def count_retry(_: Any) -> None:
            self.retried += 1

        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, Trouble) and error.passing),
            stop=stop_after_attempt(self.server.retries + 1),
            wait=wait,
            sleep=self._pause,
            before_sleep=count_retry,
            reraise=True,
        )
        # A request keeps its place while it waits, so a server that always fails is soon noticed.
        async with self.crowd.room:
            return await retrying(self._try, client, request, body, sampling)

    async def _try(
        self, client: AsyncOpenAI, request: Request, body: dict[str, Any], sampling: Sampling
    ) -> Completion:
        """Send a request once, as soon as the server allows it."""
        await self._pause(self._wake - time.monotonic())
        if self._stopped.is_set():
            raise Stopped
        if over := self._over_budget():
            raise SetbacksError(over)
        started, sent = time.monotonic(), self._renamed(body)
        texts = [turn["content"] for turn in sent["messages"]]
        reason: Problem | None = None
        try:
            reply = await self.connection.send(client, sent, self._most(request, sampling))
        except Status as status:
            reason = status.problem
            if status.code not in NOT_OF_CONTENT and reason.blocks(texts):
                return self._block()
            if "max_tokens" in sent and reason.mentions("max_completion_tokens"):
                self._limit_key = "max_completion_tokens"
                return await self._try(client, request, body, sampling)
            trouble = self.connection.trouble(status, sent)
        except Trouble as error:
            trouble = error
        else:
            if isinstance(reply, Reply):
                self.crowd.grow()
                return self._completion(request, body, reply)
            reason = reply
            if reason.blocks(texts):
                return self._block()
            trouble = Trouble(f"not a chat completion: {self.connection.line(reason.summary)}")
        if reason and reason.too_long and not trouble.crowded:
            raise Trouble(f"{trouble}; {_does_not_fit(request)}", passing=False)
        if trouble.crowded:
            self.crowd.shrink(started)
        if trouble.wait:
            self._wake = max(self._wake, time.monotonic() + trouble.wait)
        raise trouble

    def _block(self) -> Completion:
        """Count a prompt that the provider blocked: it will not be answered, and is not retried.

        The server answered, so it is not overloaded.
        """
        self.connection.reached = True
        self.blocked += 1
        self.crowd.grow()
        return BLOCKED

    def _completion(self, request: Request, body: dict[str, Any], reply: Reply) -> Completion:
        """Return an answer as a completion, and count what it cost."""
        self.connection.reached = True
        text, thought = self.connection.clean(reply.text), reply.thought
        prompt_tokens, tokens = reply.prompt_tokens, reply.tokens
        if prompt_tokens is None or tokens is None:
            self.estimated += 1
        if prompt_tokens is None:
            prompt_tokens = _estimate(json.dumps(body["messages"], ensure_ascii=False))
        if tokens is None:
            tokens = _estimate(text + (thought or ""))
        continues = bool(request.prefill) and self.server.prefill == "continue"
        if thought is None and not continues:
            thought, text = part(text, self.spec.thinking)
        if thought is not None:
            thought = self.connection.clean(thought)
            self._warn_of_thoughts()
        if continues and text.strip() and reply.finish != "refusal":
            text = request.prefill + text
        blocked = reply.finish == "filter" and not text.strip()
        self.blocked += blocked
        self.answered += not blocked
        self.prompt_tokens += prompt_tokens
        self.tokens += tokens
        if price := self.server.price:
            self.money += (prompt_tokens * price.input + tokens * price.output) / 1e6
        return Completion(
            text.strip(), reply.finish, prompt_tokens, tokens, thought, reply.thought_tokens
        )

    def _warn_of_thoughts(self) -> None:
        """Warn once that the model thinks, if the recipe does not say so."""
        if self._thinks or self._warned_of_thoughts:
            return
        self._warned_of_thoughts = True
        message = (
            f"{self.connection.where}: the model thinks before it answers, and thought and answer "
            "share max_new_tokens; set endpoint.thinks: true to add max_thinking_tokens"
        )
        log.warning(message)
        self.note(message)

    @property
    def _thinks(self) -> bool:
        """Whether requests leave room for a thought."""
        return self.server.thinks or self.spec.thinking is not None

    def _renamed(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return a request with its length limit under the name that the server expects."""
        return {self._limit_key if key == "max_tokens" else key: body[key] for key in body}

    def _body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        """Return the JSON that is sent for a request."""
        more: dict[str, Any] = {}
        if request.prefill and self.server.prefill != "continue":
            words = self.words["begin_with"]
            request = replace(request, prompt=ask(words, request.prompt, prefill=request.prefill))
        turns = with_system(request.turns, self.spec.system)
        if request.prefill and self.server.prefill == "continue":
            turns.append(Message(role="assistant", content=request.prefill))
            more = {"continue_final_message": True, "add_generation_prompt": False}
        if template := {**self.spec.template, **request.template}:
            more["chat_template_kwargs"] = template
        body = {
            "model": self.spec.model,
            "messages": [
                turn.model_dump() | {"content": encodable(turn.content)} for turn in turns
            ],
            "max_tokens": self._most(request, sampling),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed % 2**31,  # the smallest range that servers take
            **more,
            **self.server.body,
        }
        return {key: value for key, value in body.items() if value is not None}

    def _most(self, request: Request, sampling: Sampling) -> int:
        """Return the most tokens of an answer, and of the thought before it if there may be one."""
        thinks = self._thinks and not (request.prefill and self.server.prefill == "continue")
        return sampling.max_new_tokens + (sampling.max_thinking_tokens or 0) * thinks

    def _store(self, key: str, completion: Completion) -> None:
        """Store an answer until its batch is on disk."""
        self._stored[key] = completion
        if self._file is None:
            return
        try:
            with open(self._file, "a", encoding="utf-8", opener=private) as file:
                # A crash may have cut off the line before: a new line keeps this one whole.
                file.write("\n" + json.dumps([key, *completion]))
        except OSError as error:
            raise failed_write(self._file, error) from error

    # -- when to stop -----------------------------------------------------------------------------

    def _stop_with(self, error: SetbacksError) -> None:
        """Send nothing more; wait for requests in flight, since they are paid for."""
        if self._stop is None:
            self._stop = error
            self._stopped.set()

    def _failed(self, error: Trouble) -> None:
        """Count a request that failed for good; too many of them stop the run."""
        self.failed += 1
        self._last_failure = str(error)
        finished = self._finished
        if self.failed > self.server.failures * max(finished, FEW):
            self._stop_with(
                SetbacksError(
                    f"{self.connection.where}: {self.failed} of {finished} requests failed, more "
                    f"than endpoint.failures ({self.server.failures:.0%}) allows; the last one: "
                    f"{error}; {RESUME}"
                )
            )

    def _over_budget(self) -> str | None:
        budget = self.server.budget
        tokens = self.prompt_tokens + self.tokens
        over = None
        if budget.tokens is not None and tokens >= budget.tokens:
            over = f"{tokens:,} tokens, endpoint.budget.tokens is {budget.tokens:,}"
        elif budget.money is not None and self.money >= budget.money:
            over = f"{self.money:,.4f}, endpoint.budget.money is {budget.money:,}"
        return over and (
            f"{self.connection.where}: the budget is spent ({over}); {RESUME} with the same "
            "budget again"
        )

    async def _pause(self, seconds: float) -> None:
        """Sleep, but wake up when the run stops."""
        import anyio

        if seconds > 0:
            with anyio.move_on_after(seconds):
                await self._stopped.wait()


def _estimate(text: str) -> int:
    """Return about how many tokens a text has: for a budget, an estimate must not be too low."""
    return math.ceil(len(text.encode()) / 3)


def _does_not_fit(request: Request) -> str:
    begin = last_question(request.prompt)[:60]
    return (
        f'the prompt of {request.size:,} characters that begins "{begin}" does not fit into the '
        "context window of the model; shorten it, or lower max_new_tokens"
    )
