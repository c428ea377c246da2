"""The connection to one server: its client, its key, and what its errors mean."""

from __future__ import annotations

import math
import os
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from setbacks.engines.endpoint_options import EndpointOptions
from setbacks.engines.replies import Problem, Reply, problem, read
from setbacks.errors import RESUME, InputError, SetbacksError
from setbacks.text import encodable

if TYPE_CHECKING:
    from openai import AsyncOpenAI

LONGEST_WAIT = 120  # seconds: if a server asks for more, the run stops
LONGEST_TOKEN = 200  # bytes of JSON that one token may take; a longer body is not an answer


class Trouble(Exception):
    """A request got no answer.

    Args:
        reason: why, in a few words.
        passing: whether another attempt may succeed.
        wait: seconds after which the server wants to be asked again.
        crowded: whether fewer concurrent requests would help.
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


class Connection:
    """The way to one server.

    Args:
        spec: the model's name on the server, and in `spec.endpoint` where the server is.

    Attributes:
        where: the model and the server, for messages.
        reached: whether the server has answered a request, if only to block a prompt.
    """

    def __init__(self, spec: EndpointOptions) -> None:
        self.model = spec.model
        self.server = spec.endpoint
        self.where = f"{spec.model} at {spec.endpoint.base_url}"
        self.reached = False

    @cached_property
    def key(self) -> str:
        """The key, from the environment alone.

        Raises:
            InputError: the variable is not set or does not hold a key, or a library is missing.
        """
        if missing := [name for name in ("openai", "tenacity") if find_spec(name) is None]:
            raise InputError(
                f'engine: endpoint needs {missing[0]}: pip install "setbacks[endpoint]"'
            )
        name = self.server.api_key_env
        if name is None:
            return ""
        key = os.environ.get(name, "").strip()
        if not key:
            raise InputError(f"{self.where}: the environment variable {name} is not set")
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise InputError(
                f"{self.where}: {name} does not hold a key: it has spaces or unusual characters"
            )
        return key

    @asynccontextmanager
    async def client(self) -> AsyncIterator[AsyncOpenAI]:
        """Open a client of the server."""
        import httpx2
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        server = self.server
        timeout = httpx2.Timeout(server.timeout, connect=min(10.0, server.timeout), pool=None)
        hooks: Any = {"response": [self._raise_for_status]}
        try:
            opened = AsyncOpenAI(
                base_url=server.base_url,
                # Without a key the client would take OPENAI_API_KEY, and send it anywhere.
                api_key=self.key or "none",
                max_retries=0,  # the engine retries, since it can tell overload from other trouble
                timeout=timeout,
                http_client=DefaultAsyncHttpxClient(event_hooks=hooks, timeout=timeout),
            )
        except (httpx2.InvalidURL, UnicodeError) as error:
            raise InputError(f"endpoint.base_url: {server.base_url}: {error}") from None
        async with opened as client:
            client.organization = client.project = None  # the environment's are for OpenAI alone
            yield client

    async def greet(self) -> None:
        """Ask for the list of models. Not every server has one; it only has to answer."""
        import anyio
        import httpx2
        import openai

        try:
            with anyio.fail_after(min(10.0, self.server.timeout)):
                async with self.client() as client, client.models.with_streaming_response.list():
                    pass
        except Status as status:
            if status.code == 401:
                raise self.trouble(status) from None
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            self._look_for_server(error)
        except TimeoutError:
            pass  # the server is there, and busy

    async def send(
        self, client: AsyncOpenAI, body: dict[str, Any], max_tokens: int
    ) -> Reply | Problem:
        """Send a request and read the answer, up to a limit that depends on `max_tokens`.

        Raises:
            Trouble: no complete answer came in time.
            Status: an HTTP error.
            InputError: there is no server.
        """
        import anyio
        import httpx2
        import openai

        longest = 2**20 + LONGEST_TOKEN * max_tokens
        data = bytearray()
        call = client.chat.completions.with_streaming_response.create
        rest = {key: value for key, value in body.items() if key not in ("model", "messages")}
        try:
            with anyio.fail_after(self.server.timeout):
                async with call(
                    model=body["model"], messages=body["messages"], extra_body=rest
                ) as response:
                    async for part in response.iter_bytes():
                        data += part
                        if len(data) > longest:
                            raise Trouble(f"an answer of more than {longest:,} bytes")
        except (TimeoutError, openai.APITimeoutError, httpx2.TimeoutException) as error:
            self._look_for_server(error)
            raise Trouble(f"no answer in {self.server.timeout:g} s", crowded=True) from None
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            self._look_for_server(error)
            raise Trouble(f"the connection broke ({_root(error)})") from None
        return read(bytes(data))

    def trouble(self, status: Status, sent: Iterable[str] = ()) -> Trouble:
        """Return what an HTTP error means.

        Args:
            status: the error.
            sent: the keys of the request's body.

        Raises:
            InputError: the key, the model or the address is wrong.
            SetbacksError: further requests would be useless for now.
        """
        code, key = status.code, self.server.api_key_env
        if code == 401 or (code == 403 and not self.reached):
            wrong = (
                f"the key in {key} is wrong, or has no access to this model"
                if key
                else "the server needs a key: set endpoint.api_key_env to the name of the "
                "environment variable that holds it"
            )
            raise InputError(f"{self.where}: {status}; {wrong}")
        if code == 404 and not self.reached:
            raise InputError(
                f'{self.where}: {status}; check that the server has a model "{self.model}", and '
                "that endpoint.base_url is complete (it often ends in /v1)"
            )
        if code == 402 or status.problem.mentions("insufficient_quota"):
            raise SetbacksError(f"{self.where}: {status}; the account has no credit left; {RESUME}")
        if status.wait > LONGEST_WAIT:
            raise SetbacksError(
                f"{self.where}: {status}; the server asks to wait {status.wait:,.0f} s; {RESUME}"
            )
        passing = code in (408, 409, 425, 429) or code >= 500
        crowded = code in (408, 429, 503, 504, 529)
        advice = "" if passing else self._advice(status.problem, sent)
        return Trouble(f"{status}{advice}", passing=passing, wait=status.wait, crowded=crowded)

    def clean(self, text: str) -> str:
        """Return a server's text as valid UTF-8, without a key that it may have repeated."""
        key = self.key
        return encodable(text.replace(key, "[key]") if len(key) >= 8 else text)

    def line(self, text: str) -> str:
        """Return a server's text as one short line."""
        return " ".join(self.clean(text).split())[:300] or "nothing"

    async def _raise_for_status(self, response: Any) -> None:
        """Raise for an HTTP error, with as much of its body as one line needs."""
        if response.status_code < 400:
            return
        data = bytearray()
        async for part in response.aiter_bytes():
            data += part
            if len(data) > 2**16:
                break
        reason = problem(bytes(data))
        summary = self.line(reason.summary)
        raise Status(response.status_code, reason, summary, retry_after(response.headers))

    def _advice(self, problem: Problem, sent: Iterable[str]) -> str:
        """Return what to do about a key of the request that the server rejects, if it names one."""
        named = [key for key in sent if key not in ("model", "messages") and problem.mentions(key)]
        if not named:
            return ""
        return f"; to leave {named[0]} out, set endpoint.body: {{{named[0]}: null}}"

    def _look_for_server(self, error: BaseException) -> None:
        """Tell a server that is not there from one that has trouble.

        Raises:
            InputError: no connection could be made, and the server has never answered.
        """
        import httpx2

        cause = error.__cause__ or error
        if not self.reached and isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout):
            raise InputError(
                f"{self.where}: no server at this address ({_root(error)}); start it, or correct "
                "endpoint.base_url"
            ) from None


def retry_after(headers: Any) -> float:
    """Return the seconds that a server asks to wait (RFC 9110, Retry-After); 0 by default."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _root(error: BaseException) -> str:
    """Return the cause of an error of the client library, in a few words."""
    cause = error.__cause__ or error
    return " ".join(str(cause).split())[:200] or type(cause).__name__
