"""The endpoint engine: a server that speaks OpenAI's chat completions, hosted or your own.

Many requests are under way at once. Their number grows while answers come, and is halved where the
server is crowded, as TCP does it (RFC 5681). What may pass is tried again, each time later; what
cannot, stops the run in one line. An answer is paid for once: it rests in a file of the run until
its batch is on disk, so that a stop in the middle of a batch loses none. A prompt that a provider
blocks for its content has been answered, by a refusal: see `setbacks.engines.replies`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setbacks.engines import Engine, by_length
from setbacks.engines.endpoint_options import EndpointOptions
from setbacks.engines.replies import Problem, Reply, problem, read
from setbacks.errors import InputError, SetbacksError
from setbacks.files import failed_write, private
from setbacks.prompts import fill, prompts
from setbacks.records import Completion, Request, digest

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from setbacks.recipe import Sampling

FIRST = 4  # requests at once, to begin with
LONGEST_WAIT = 120  # seconds: a server that asks for more is come back to by hand
FEW = 20  # failures are weighed against at least so many requests
LONGEST_TOKEN = 200  # bytes of JSON that one token may take; what exceeds that is no answer
BLOCKED = Completion("", "filter", 0, 0)
# Here an error speaks of the key, the money, the address or the crowd, whatever else it says.
NOT_OF_CONTENT = (401, 402, 404, 407, 408, 429)


class Trouble(Exception):
    """A request got no answer.

    Args:
        reason: why, in a few words.
        passing: whether it may get one when it is tried again.
        wait: seconds after which the server wants to be asked again.
        crowded: whether fewer requests at once would help.
    """

    def __init__(
        self, reason: str, *, passing: bool = True, wait: float = 0.0, crowded: bool = False
    ) -> None:
        super().__init__(reason)
        self.passing = passing
        self.wait = wait
        self.crowded = crowded


class Status(Exception):
    """A server answered with an HTTP error.

    Args:
        code: the HTTP status.
        problem: what the body says.
        summary: the same in one short line.
        wait: seconds after which the server wants to be asked again.
    """

    def __init__(self, code: int, problem: Problem, summary: str, wait: float) -> None:
        super().__init__(f"{code}: {summary}")
        self.code = code
        self.problem = problem
        self.wait = wait


class Stopped(Exception):
    """The run is being stopped: no further request is sent."""


class Endpoint(Engine):
    """A model behind a server.

    Args:
        spec: the model's name there, and in `spec.endpoint` where the server is.
        language: of the words that ask for the beginning of an answer.
    """

    Options = EndpointOptions
    elsewhere = True

    def __init__(self, spec: EndpointOptions, language: str = "en") -> None:
        self.spec = spec
        self.told = spec.endpoint
        self.language = language
        self.name = spec.model
        self.money = 0.0
        self.prompt_tokens = self.tokens = 0
        self.answered = self.blocked = self.failed = self.retried = 0
        self.estimated = 0  # answers whose tokens the server did not count
        self._limit_key = "max_tokens"  # as this server calls it
        self._last_failure = ""
        self.crowd = Crowd(self.told.concurrency)
        self._where = f"{spec.model} at {self.told.base_url}"
        self._resting: dict[str, Completion] = {}
        self._file: Path | None = None

    @classmethod
    def check(cls, spec: EndpointOptions) -> None:
        """Look whether the server is there and takes the key: its list of models costs nothing.

        Raises:
            InputError: it is not, or does not, or something is missing here.
        """
        from anyio.from_thread import start_blocking_portal

        engine = cls(spec)
        if spec.chat_template != "own":
            raise InputError(
                f"{engine._where}: chat_template: {spec.chat_template} is for the local engine; a "
                "server applies the template of its model"
            )
        engine._key  # noqa: B018 (it is looked up, or found missing)
        with start_blocking_portal() as portal:
            portal.call(engine._greet)

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Cut the whole work list into batches by the length of the prompts, in characters."""
        return by_length([request.size for request in requests], self.spec.batch_size)

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, adapter: Path | None = None
    ) -> list[Completion]:
        """Have one planned batch answered; a request that failed for good has an empty answer.

        Args:
            requests: a batch of the plan.
            sampling: how tokens are drawn; `top_k` is not sent, since not every server knows it.
            adapter: must be None: a server answers with what it has loaded.

        Raises:
            InputError: the server is not there, or does not take the key or the model.
            SetbacksError: the budget is spent, or too many requests failed.
        """
        from anyio.from_thread import start_blocking_portal

        if adapter is not None:
            raise InputError(
                f"{self._where}: {adapter} cannot be sent to a server; have the server load the "
                "adapter, and name it as its model"
            )
        # An event loop of its own thread: notebooks have one running in theirs.
        with start_blocking_portal() as portal:
            return portal.call(self._batch, requests, sampling)

    # -- what a model elsewhere needs besides -----------------------------------------------------

    def keep(self, path: Path) -> None:
        """Let answers rest in a file, and take up those that a stopped run left there."""
        self._file = path
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                key, *fields = json.loads(line)
                self._resting[key] = Completion(*fields)
            except (ValueError, TypeError):  # torn by a crash: it is asked for again
                continue

    def committed(self) -> None:
        """Forget the answers that rest there: their records are on disk."""
        self._resting.clear()
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def spent(self) -> str:
        """Say in one line what was asked and what it cost; nothing where nothing was asked."""
        if not self._asked:
            return ""
        blocked = f"{self.blocked:,} blocked by a content filter, " if self.blocked else ""
        failed = f"{self.failed:,} failed" + (
            f" (the last one: {self._last_failure})" if self.failed else ""
        )
        estimated = f" (estimated for {self.estimated:,} answers)" if self.estimated else ""
        cost = f", {self.money:,.4f} spent" if self.told.price else ""
        return (
            f"{self._where}: {self.answered:,} answers, {blocked}{self.retried:,} tries repeated, "
            f"{failed}; {self.prompt_tokens:,} tokens read and {self.tokens:,} "
            f"made{estimated}{cost}"
        )

    @property
    def _reached(self) -> bool:
        """Whether the server has answered before, if only to block a prompt."""
        return bool(self.answered or self.blocked)

    @property
    def _asked(self) -> int:
        """How many requests have come to an end."""
        return self.answered + self.blocked + self.failed

    # -- a batch ----------------------------------------------------------------------------------

    async def _batch(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        import anyio

        made: dict[int, Completion] = {}
        self._stop: SetbacksError | None = None
        self._stopped = anyio.Event()
        self._wake = 0.0  # until then the server wants to be left alone
        self.crowd.open()

        async def answer(client: AsyncOpenAI, place: int) -> None:
            request = requests[place]
            body = self._body(request, sampling)
            key = digest(self.told.base_url, json.dumps(body, sort_keys=True))
            try:
                if key not in self._resting:
                    self._rest(key, await self._ask(client, request, body, sampling))
                made[place] = self._resting[key]
            except Trouble as error:
                made[place] = Completion("", "failed", 0, 0)
                self._failed(error)
            except Stopped:
                pass
            except SetbacksError as error:
                self._stop_with(error)

        async with self._client() as client, anyio.create_task_group() as group:
            for place in range(len(requests)):
                group.start_soon(answer, client, place)
        if self._stop is not None:
            raise self._stop
        return [made[place] for place in range(len(requests))]

    async def _ask(
        self, client: AsyncOpenAI, request: Request, body: dict[str, Any], sampling: Sampling
    ) -> Completion:
        """Try until there is an answer, or no use in trying.

        Raises:
            Trouble: there is none after all tries.
            Stopped: the run stops.
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
            asked: float = state.outcome.exception().wait
            return asked or backoff(state)

        def again(_: Any) -> None:
            self.retried += 1

        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, Trouble) and error.passing),
            stop=stop_after_attempt(self.told.retries + 1),
            wait=wait,
            sleep=self._pause,
            before_sleep=again,
            reraise=True,
        )
        # It keeps its room while it waits: a server that fails always is soon known to.
        async with self.crowd.room:
            return await retrying(self._try, client, request, body, sampling)

    async def _try(
        self, client: AsyncOpenAI, request: Request, body: dict[str, Any], sampling: Sampling
    ) -> Completion:
        """Send a request once, as soon as the server lets us."""
        await self._pause(self._wake - time.monotonic())
        if self._stopped.is_set():
            raise Stopped
        if over := self._over_budget():
            raise SetbacksError(over)
        started, sent = time.monotonic(), self._renamed(body)
        found: Problem | None = None
        try:
            reply = await self._send(client, sent, sampling.max_new_tokens)
        except Status as status:
            found = status.problem
            if status.code not in NOT_OF_CONTENT and found.blocks(request.prompt):
                return self._block()
            if "max_tokens" in sent and found.mentions("max_completion_tokens"):
                self._limit_key = "max_completion_tokens"
                return await self._try(client, request, body, sampling)
            trouble = self._trouble(status, sent)
        except Trouble as error:
            trouble = error
        else:
            if isinstance(reply, Reply):
                self.crowd.grow()
                return self._completion(request, body, reply)
            found = reply
            if found.blocks(request.prompt):
                return self._block()
            trouble = Trouble(f"no chat completion, but: {self._line(found.summary)}")
        if found and found.too_long and not trouble.crowded:
            raise Trouble(f"{trouble}; {_does_not_fit(request)}", passing=False)
        if trouble.crowded:
            self.crowd.shrink(started)
        if trouble.wait:
            self._wake = max(self._wake, time.monotonic() + trouble.wait)
        raise trouble

    async def _send(self, client: AsyncOpenAI, body: dict[str, Any], most: int) -> Reply | Problem:
        """Send a request and read the answer, up to as long as it may be.

        Raises:
            Trouble: there was none, in time and whole.
            Status: an HTTP error.
            InputError: nobody has ever answered there.
        """
        import anyio
        import httpx2
        import openai

        longest = 2**20 + LONGEST_TOKEN * most
        data = bytearray()
        call = client.chat.completions.with_streaming_response.create
        rest = {key: value for key, value in body.items() if key not in ("model", "messages")}
        try:
            with anyio.fail_after(self.told.timeout):
                async with call(
                    model=body["model"], messages=body["messages"], extra_body=rest
                ) as response:
                    async for part in response.iter_bytes():
                        data += part
                        if len(data) > longest:
                            raise Trouble(f"an answer of more than {longest:,} bytes")
        except (TimeoutError, openai.APITimeoutError, httpx2.TimeoutException) as error:
            self._look_for_server(error)
            raise Trouble(f"no answer in {self.told.timeout:g} s", crowded=True) from None
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            self._look_for_server(error)
            raise Trouble(f"the connection broke ({_root(error)})") from None
        return read(bytes(data))

    def _block(self) -> Completion:
        """Count a prompt that the provider blocked: there is no answer, and no use in asking again.

        Such a server is not crowded.
        """
        self.blocked += 1
        self.crowd.grow()
        return BLOCKED

    def _completion(self, request: Request, body: dict[str, Any], reply: Reply) -> Completion:
        """Make an answer a completion, and count what it cost."""
        text = self._clean(reply.text)
        prompt_tokens, tokens = reply.prompt_tokens, reply.tokens
        if prompt_tokens is None or tokens is None:
            self.estimated += 1
        if prompt_tokens is None:
            prompt_tokens = _estimate(json.dumps(body["messages"], ensure_ascii=False))
        if tokens is None:
            tokens = _estimate(text)
        goes_on = self.told.prefill == "continue" and text.strip() and reply.finish != "refusal"
        if goes_on:
            text = request.prefill + text
        blocked = reply.finish == "filter" and not text.strip()
        self.blocked += blocked
        self.answered += not blocked
        self.prompt_tokens += prompt_tokens
        self.tokens += tokens
        if price := self.told.price:
            self.money += (prompt_tokens * price.input + tokens * price.output) / 1e6
        return Completion(text.strip(), reply.finish, prompt_tokens, tokens)

    def _renamed(self, body: dict[str, Any]) -> dict[str, Any]:
        """A request with its length limit under the name that this server takes."""
        return {self._limit_key if key == "max_tokens" else key: body[key] for key in body}

    def _body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        """What is sent for a request."""
        prompt = request.prompt
        more: dict[str, Any] = {}
        messages = [{"role": "user", "content": prompt}]
        if request.reply is not None:
            messages.append({"role": "assistant", "content": request.reply})
        if request.prefill and self.told.prefill == "continue":
            messages.append({"role": "assistant", "content": request.prefill})
            more = {"continue_final_message": True, "add_generation_prompt": False}
        elif request.prefill:
            words = prompts(self.language)["begin_with"]
            messages[0]["content"] = fill(words, instruction=prompt, prefill=request.prefill)
        if request.template:
            more["chat_template_kwargs"] = dict(request.template)
        body = {
            "model": self.spec.model,
            "messages": [message | {"content": _sound(message["content"])} for message in messages],
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed % 2**31,  # the smallest range that servers take
            **more,
            **self.told.body,
        }
        return {key: value for key, value in body.items() if value is not None}

    def _rest(self, key: str, completion: Completion) -> None:
        """Let an answer rest until its batch is on disk."""
        self._resting[key] = completion
        if self._file is None:
            return
        try:
            with open(self._file, "a", encoding="utf-8", opener=private) as file:
                # The line before may have been torn by a crash: it spoils nothing but itself.
                file.write("\n" + json.dumps([key, *completion]))
        except OSError as error:
            raise failed_write(self._file, error) from error

    # -- when to stop -----------------------------------------------------------------------------

    def _stop_with(self, error: SetbacksError) -> None:
        """Send nothing more; what is under way is waited for, since it is paid for."""
        if self._stop is None:
            self._stop = error
            self._stopped.set()

    def _failed(self, error: Trouble) -> None:
        """Count a request that failed for good; too many of them stop the run."""
        self.failed += 1
        self._last_failure = str(error)
        asked = self._asked
        if self.failed > self.told.failures * max(asked, FEW):
            self._stop_with(
                SetbacksError(
                    f"{self._where}: {self.failed} of {asked} requests failed, more than "
                    f"endpoint.failures ({self.told.failures:.0%}) allows; the last one: {error}; "
                    "what was done is kept: the same command goes on"
                )
            )

    def _over_budget(self) -> str | None:
        budget = self.told.budget
        tokens = self.prompt_tokens + self.tokens
        over = None
        if budget.tokens is not None and tokens >= budget.tokens:
            over = f"{tokens:,} tokens, endpoint.budget.tokens is {budget.tokens:,}"
        elif budget.money is not None and self.money >= budget.money:
            over = f"{self.money:,.4f}, endpoint.budget.money is {budget.money:,}"
        return over and (
            f"{self._where}: the budget is spent ({over}); what was done is kept: the same command "
            "goes on, with as much again to spend"
        )

    async def _pause(self, seconds: float) -> None:
        """Sleep, but wake up when the run stops."""
        import anyio

        if seconds > 0:
            with anyio.move_on_after(seconds):
                await self._stopped.wait()

    # -- the server -------------------------------------------------------------------------------

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[AsyncOpenAI]:
        import httpx2
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        told = self.told
        timeout = httpx2.Timeout(told.timeout, connect=min(10.0, told.timeout), pool=None)
        hooks: Any = {"response": [self._raise_for_status]}
        try:
            made = AsyncOpenAI(
                base_url=told.base_url,
                # Without a key the client would take OPENAI_API_KEY, and send it anywhere.
                api_key=self._key or "none",
                max_retries=0,  # tried again here, where a crowd can be told from other trouble
                timeout=timeout,
                http_client=DefaultAsyncHttpxClient(event_hooks=hooks, timeout=timeout),
            )
        except (httpx2.InvalidURL, UnicodeError) as error:
            raise InputError(f"endpoint.base_url: {told.base_url}: {error}") from None
        async with made as client:
            client.organization = client.project = None  # from the environment: others' business
            yield client

    async def _greet(self) -> None:
        """Ask for the list of models. Not every server has one; what counts is that it answers."""
        import anyio
        import httpx2
        import openai

        self._stopped = anyio.Event()
        try:
            with anyio.fail_after(min(10.0, self.told.timeout)):
                async with (
                    self._client() as client,
                    client.models.with_streaming_response.list(),
                ):
                    pass
        except Status as status:
            if status.code == 401:
                raise self._trouble(status) from None
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            self._look_for_server(error)
        except TimeoutError:
            pass  # it is there, and busy

    async def _raise_for_status(self, response: Any) -> None:
        """Raise for an HTTP error, with as much of its body as one line needs."""
        if response.status_code < 400:
            return
        data = bytearray()
        async for part in response.aiter_bytes():
            data += part
            if len(data) > 2**16:
                break
        found = problem(bytes(data))
        summary = self._line(found.summary)
        raise Status(response.status_code, found, summary, _wait(response.headers))

    def _trouble(self, status: Status, sent: Iterable[str] = ()) -> Trouble:
        """Say what an HTTP error means.

        Args:
            status: the error.
            sent: the keys of the request's body.

        Raises:
            InputError: key, model or address are wrong.
            SetbacksError: there is no use in going on now.
        """
        code, key = status.code, self.told.api_key_env
        if code == 401 or (code == 403 and not self._reached):
            wrong = (
                f"the key in {key} is wrong, or has no right to this"
                if key
                else "it wants a key: name its environment variable in endpoint.api_key_env"
            )
            raise InputError(f"{self._where}: {status}; {wrong}")
        if code == 404 and not self._reached:
            raise InputError(
                f'{self._where}: {status}; has it a model "{self.spec.model}", and does '
                "endpoint.base_url end as its address does, such as /v1?"
            )
        if code == 402 or status.problem.mentions("insufficient_quota"):
            raise SetbacksError(
                f"{self._where}: {status}; the account has nothing left; what was done is kept: "
                "the same command goes on"
            )
        if status.wait > LONGEST_WAIT:
            raise SetbacksError(
                f"{self._where}: {status}; it asks to wait {status.wait:,.0f} s; what was done is "
                "kept: the same command goes on, then"
            )
        passing = code in (408, 409, 425, 429) or code >= 500
        crowded = code in (408, 429, 503, 504, 529)
        advice = "" if passing else self._advice(status.problem, sent)
        return Trouble(f"{status}{advice}", passing=passing, wait=status.wait, crowded=crowded)

    def _advice(self, problem: Problem, sent: Iterable[str]) -> str:
        """What to do about a key of ours that the server does not take, if it names one."""
        named = [key for key in sent if key not in ("model", "messages") and problem.mentions(key)]
        if not named:
            return ""
        return f"; to leave {named[0]} out, set endpoint.body: {{{named[0]}: null}}"

    def _look_for_server(self, error: BaseException) -> None:
        """Tell a server that is not there from one that has trouble.

        Raises:
            InputError: no connection could be made, and nobody has answered so far.
        """
        import httpx2

        cause = error.__cause__ or error
        if not self._reached and isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout):
            raise InputError(
                f"{self._where}: no server there ({_root(error)}); start it, or mend "
                "endpoint.base_url"
            ) from None

    @cached_property
    def _key(self) -> str:
        """The key, from the environment alone.

        Raises:
            InputError: the variable is not set, or does not hold a key.
        """
        if missing := [name for name in ("openai", "tenacity") if find_spec(name) is None]:
            raise InputError(
                f'engine: endpoint needs {missing[0]}: pip install "setbacks[endpoint]"'
            )
        name = self.told.api_key_env
        if name is None:
            return ""
        key = os.environ.get(name, "").strip()
        if not key:
            raise InputError(f"{self._where}: the environment variable {name} is not set")
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise InputError(f"{self._where}: {name} holds no key: blanks or odd characters in it")
        return key

    def _clean(self, text: str) -> str:
        """A server's words, without a key that it may have repeated, as UTF-8 can hold them."""
        key = self._key
        return _sound(text.replace(key, "[key]") if len(key) >= 8 else text)

    def _line(self, text: str) -> str:
        """What a server says, in one short line."""
        return " ".join(self._clean(text).split())[:300] or "nothing"


class Crowd:
    """How many requests may be under way at once: additive increase, multiplicative decrease.

    Up to the first sign of a crowd each answer makes room for one more, so that the number doubles
    in the time of an answer; from there on it grows by one in that time (RFC 5681, section 3.1).

    Args:
        most: never more than so many.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.width = float(min(FIRST, most))
        self._doubling = True
        self._shrunk = 0.0

    def open(self) -> None:
        """Begin in a new event loop, with as much room as there was in the last one."""
        import anyio

        self.room = anyio.CapacityLimiter(int(self.width))

    def grow(self) -> None:
        """Make more room: an answer came."""
        self._set(min(self.most, self.width + (1 if self._doubling else 1 / self.width)))

    def shrink(self, sent: float) -> None:
        """Halve the room.

        Args:
            sent: when the request was sent (monotonic seconds): of those that were under way
                together, one counts.
        """
        if sent >= self._shrunk:
            self._shrunk = time.monotonic()
            self._doubling = False
            self._set(max(1.0, self.width / 2))

    def _set(self, width: float) -> None:
        self.width = width
        self.room.total_tokens = int(width)


def _wait(headers: Any) -> float:
    """The seconds that a server asks to wait (RFC 9110, Retry-After); 0 where it does not say."""
    told = headers.get("retry-after", "")
    try:
        seconds = float(told)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(told).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _root(error: BaseException) -> str:
    """What lies under an error of the client library, in a few words."""
    cause = error.__cause__ or error
    return " ".join(str(cause).split())[:200] or type(cause).__name__


def _estimate(text: str) -> int:
    """About how many tokens a text has: a budget needs some figure, and one that is not too low."""
    return math.ceil(len(text.encode()) / 3)


def _does_not_fit(request: Request) -> str:
    begin = " ".join(request.prompt.split())[:60]
    return (
        f'the prompt of {request.size:,} characters that begins "{begin}" does not fit into the '
        "context of the model; shorten it, or lower max_new_tokens"
    )


def _sound(text: str) -> str:
    """A text as UTF-8 can hold it: a lone surrogate becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")
