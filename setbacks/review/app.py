"""The labeling page as an application: who gets in, the pages, and a JSON API.

The pages work without scripts. See `setbacks.review.pages` and `setbacks.review.api`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import ValidationError
from starlette.exceptions import HTTPException as StarletteError

from setbacks.errors import InputError, SetbacksError
from setbacks.review import api, pages
from setbacks.review.access import HEADERS, Keys, own_site
from setbacks.review.publish import Publisher
from setbacks.review.site import Rejected, Site, reason, redirect, remember, render
from setbacks.review.store import Store

_STATIC: list[str | tuple[str, str]] = [
    ("setbacks.review", "static"),
    ("setbacks.report", "static"),
]
LONGEST_BODY = 16 * 2**20  # bytes
WRONG = "this page needs the link with the token that `setbacks review` printed"


def make(
    store: Store,
    token: str,
    *,
    title: str = "",
    hosts: tuple[str, ...] | None = None,
    publisher: Publisher | None = None,
) -> FastAPI:
    """Return the application.

    Args:
        store: the labels.
        token: the secret without which nothing is shown.
        title: the name in the page's head; it must not reveal the arms.
        hosts: host names that the page accepts; None for any.
        publisher: notified of every change, and closed when the server stops.
    """
    keys = Keys(token)

    @asynccontextmanager
    async def lifespan(_: FastAPI):  # type: ignore[no-untyped-def]
        yield
        if publisher:
            publisher.close()

    app = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.site = Site(store, keys, title, publisher)
    app.mount("/static", StaticFiles(packages=_STATIC), name="static")
    app.include_router(pages.router)
    app.include_router(api.router)

    @app.middleware("http")
    async def guard(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        try:
            reply = _checked(request, keys, hosts) or await call_next(request)
        except Rejected as error:
            reply = _error(request, error.status, error.why)
        for name, value in HEADERS.items():
            reply.headers[name] = value
        return reply

    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    return app


def _checked(request: Request, keys: Keys, hosts: tuple[str, ...] | None) -> Response | None:
    """Check a request before anything else; return a redirect, or None to let it in.

    Raises:
        Rejected: the request is not allowed.
    """
    if hosts is not None and (request.url.hostname or "") not in hosts:
        raise Rejected(421, "this page answers to its own address alone")
    path = request.url.path
    if path.startswith("/static/"):
        return None
    if request.method not in ("GET", "HEAD", "POST"):
        raise Rejected(405, "this page accepts GET and POST")
    if request.method == "POST":
        length = request.headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()):
            raise Rejected(411, "a Content-Length header is missing")
        if int(length) > LONGEST_BODY:
            raise Rejected(413, f"more than {LONGEST_BODY // 2**20} MiB; send it in parts")
    if path.startswith("/api/"):
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not keys.opens(token.strip()):
            raise Rejected(401, "the API needs the page's token: Authorization: Bearer TOKEN")
        return None
    if request.method == "GET" and "token" in request.query_params:
        if not keys.opens(request.query_params["token"]):
            raise Rejected(403, WRONG)
        rest = {k: v for k, v in request.query_params.items() if k != "token"}
        reply = redirect(path + ("?" + urlencode(rest) if rest else ""))
        remember(reply, keys.cookie_name, keys.cookie)
        return reply
    if not keys.remembers(request.cookies):
        raise Rejected(403, WRONG)
    if request.method == "POST" and not own_site(request.headers):
        raise Rejected(403, "another site sent this; nothing was changed")
    return None


def _error(request: Request, status: int, why: str) -> Response:
    if status == 303:
        return redirect("/join")
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": why}, status)
    nobody = {"title": request.app.title, "reviewer": None, "token": "", "behind": ""}
    return render("error", status, **nobody, why=why)


def _failed(request: Request, error: SetbacksError) -> Response:
    return _error(request, 400 if isinstance(error, InputError) else 503, str(error))


def _rejected(request: Request, error: Rejected) -> Response:
    return _error(request, error.status, error.why)


def _invalid(request: Request, error: RequestValidationError | ValidationError) -> Response:
    return _error(request, 422, reason(error))


def _http_error(request: Request, error: HTTPException) -> Response:
    return _error(request, error.status_code, str(error.detail))


_HANDLERS: dict[type[Exception], Any] = {
    SetbacksError: _failed,
    Rejected: _rejected,
    RequestValidationError: _invalid,
    ValidationError: _invalid,
    StarletteError: _http_error,
}
