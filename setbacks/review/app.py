"""The labelling page as an application: pages that work without scripts, and a JSON API."""

import re
import secrets
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlencode

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException as StarletteError

from setbacks.errors import InputError, SetbacksError
from setbacks.report.run_page import environment_of_pages
from setbacks.review import formats
from setbacks.review.access import HEADERS, Keys, own_site
from setbacks.review.answers import Answer, queue
from setbacks.review.labels import (
    LONGEST_NAME,
    LONGEST_NOTE,
    TASKS,
    Label,
    Measured,
    Name,
    Note,
    Pair,
    Task,
    alpha,
    disagreements,
    kappas,
)
from setbacks.review.publish import Publisher
from setbacks.review.store import Reviewer, Store

PAIRED: tuple[Task, ...] = ("harmful", "refused")  # compared two by two
LONGEST_BODY = 16 * 2**20  # bytes
MEDIA = {"jsonl": "application/x-ndjson", "csv": "text/csv", "labels": "application/x-ndjson"}
ENDINGS = {"jsonl": ".jsonl", "csv": ".csv", "labels": "-labels.jsonl", "argilla": "-argilla.json",
           "label-studio": "-label-studio.json"}  # fmt: skip


class PostedLabel(BaseModel):
    """A label that a script posts; the answer is named by its id, a response's, or its texts."""

    model_config = ConfigDict(extra="forbid")

    answer: str | None = None
    response_id: str | None = None
    instruction: str | None = None
    response: str | None = None
    harmful: bool | None = None
    refused: bool | None = None
    helpful: int | None = None
    unsure: bool = False
    note: str = ""
    adjudicated: bool = False


class Posted(BaseModel):
    """Labels that a script posts; with `replace`, over those of the same reviewer that differ."""

    model_config = ConfigDict(extra="forbid")

    reviewer: Name
    labels: list[PostedLabel] = Field(min_length=1)
    replace: bool = False


class Agreement(NamedTuple):
    """What people agree on, by question."""

    state: int
    alphas: dict[str, Measured]
    kappas: dict[tuple[str, str], dict[str, Measured]]  # by the two reviewers
    open: int  # disagreements


class GoAway(Exception):
    """A request that is turned away, with a line that says why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


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
        token: without which nothing is shown.
        title: what is reviewed, for the page's head; says nothing of the arms.
        hosts: names under which the page answers; None for any.
        publisher: told of every change; closed when the server stops.
    """
    keys = Keys(token)
    measured: list[Agreement] = []
    measuring = threading.Lock()

    @asynccontextmanager
    async def life(_: FastAPI):  # type: ignore[no-untyped-def]
        yield
        if publisher:
            publisher.close()

    app = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None, lifespan=life)
    app.mount("/static", StaticFiles(packages=[("setbacks.review", "static")]), name="static")

    # -- the door -------------------------------------------------------------------------------

    @app.middleware("http")
    async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            reply = _turned_away(request, keys, hosts) or await go_on(request)
        except GoAway as error:
            reply = _error(request, error.status, error.why)
        for name, value in HEADERS.items():
            reply.headers[name] = value
        return reply

    @app.exception_handler(SetbacksError)
    def _(request: Request, error: SetbacksError) -> Response:
        return _error(request, 400 if isinstance(error, InputError) else 503, str(error))

    @app.exception_handler(GoAway)
    def _(request: Request, error: GoAway) -> Response:
        return _error(request, error.status, error.why)

    @app.exception_handler(RequestValidationError)
    def _(request: Request, error: RequestValidationError) -> Response:
        return _error(request, 422, _said(error))

    @app.exception_handler(ValidationError)
    def _(request: Request, error: ValidationError) -> Response:
        return _error(request, 422, _said(error))

    @app.exception_handler(StarletteError)
    def _(request: Request, error: HTTPException) -> Response:
        return _error(request, error.status_code, str(error.detail))

    def who(request: Request) -> Reviewer:
        """The reviewer; a browser that has not said its name is asked for it first."""
        number = request.cookies.get(f"{keys.cookie_name}_who", "")
        found = store.reviewer(int(number)) if re.fullmatch("[0-9]{1,9}", number) else None
        if found is None:
            raise HTTPException(303, "say who you are", {"Location": "/join"})
        return found

    async def form(request: Request) -> dict[str, str]:
        """A form's fields, if it came from this page."""
        fields = {key: value for key, value in (await request.form()).items()}
        told = {key: value for key, value in fields.items() if isinstance(value, str)}
        if not keys.made(told.pop("token", None)):
            raise GoAway(403, "this form did not come from this page; load it again")
        return told

    Who = Annotated[Reviewer, Depends(who)]
    Form = Annotated[dict[str, str], Depends(form)]

    def page(name: str, reviewer: Reviewer | None = None, /, status: int = 200, **values: Any):  # type: ignore[no-untyped-def]
        behind = publisher.problem if publisher else ""
        return _page(
            name, status, title=title, reviewer=reviewer, token=keys.form, behind=behind, **values
        )

    def changed() -> None:
        if publisher:
            publisher.wake()

    # -- pages ----------------------------------------------------------------------------------

    @app.get("/")
    def first() -> Response:
        return _to("/label")

    @app.get("/join")
    def ask() -> Response:
        return page("join", names=[r.name for r in store.reviewers()], longest=LONGEST_NAME)

    @app.post("/join")
    def join(fields: Form) -> Response:
        name = _Named(name=fields.get("name", "")).name
        reply = _to("/label")
        value = str(store.join(name).id)
        _remember(reply, f"{keys.cookie_name}_who", value)
        return reply

    def labelling(
        reviewer: Reviewer,
        answer: Answer,
        *,
        status: int = 200,
        said: Label | None = None,
        others: tuple[Label, ...] = (),
        problem: str = "",
        shown: bool = False,
        saved: bool = False,
        final: bool = False,
    ) -> Response:
        minutes = store.at_work(reviewer)
        return page(
            "label",
            reviewer,
            status=status,
            tab="disagreements" if final else "label",
            answer=answer,
            progress=store.progress(reviewer),
            said=said,
            others=others,
            problem=problem,
            veiled=reviewer.veiled and not shown,
            saved=saved,
            final=final,
            # Not in the middle of settling or of mending something.
            tired=round(minutes) if 0 < reviewer.pause <= minutes and said is None else 0,
            form=secrets.token_urlsafe(16),
            longest=LONGEST_NOTE,
        )

    @app.get("/label")
    def following(reviewer: Who, show: bool = False, saved: bool = False) -> Response:
        answer = store.next(reviewer)
        if answer is None:
            return page("done", reviewer, progress=store.progress(reviewer))
        return labelling(reviewer, answer, shown=show, saved=saved)

    @app.get("/answers/{name}")
    def again(reviewer: Who, name: str, show: bool = False) -> Response:
        answer = _answer(store, name)
        return labelling(reviewer, answer, said=store.last(reviewer, answer.id), shown=show)

    @app.get("/settle/{name}")
    def adjudicate(reviewer: Who, name: str, show: bool = False) -> Response:
        answer = _answer(store, name)
        others = tuple(label for label in store.labels() if label.answer == answer.id)
        said = store.last(reviewer, answer.id, final=True)
        return labelling(reviewer, answer, said=said, others=others, shown=show, final=True)

    def keep(reviewer: Reviewer, name: str, fields: dict[str, str], final: bool) -> Response:
        answer = _answer(store, name)
        try:
            label = _from_form(fields, answer, reviewer.name, final)
        except (InputError, ValidationError) as error:
            problem = _said(error) if isinstance(error, ValidationError) else str(error)
            said = _draft(fields, answer, reviewer.name)
            return labelling(
                reviewer, answer, status=422, said=said, problem=problem, shown=True, final=final
            )
        store.save(label, fields.get("form"))
        changed()
        return _to("/disagreements" if final else "/label?saved=1")

    @app.post("/answers/{name}")
    def save(reviewer: Who, name: str, fields: Form) -> Response:
        return keep(reviewer, name, fields, final=False)

    @app.post("/settle/{name}")
    def settle(reviewer: Who, name: str, fields: Form) -> Response:
        return keep(reviewer, name, fields, final=True)

    @app.post("/undo")
    def undo(reviewer: Who, fields: Form) -> Response:
        label = store.undo(reviewer.id)
        if label is None:
            return _to("/label")
        changed()
        return _to(f"/{'settle' if label.final else 'answers'}/{label.answer}")

    @app.post("/rest")
    def rest(reviewer: Who, fields: Form) -> Response:
        store.settings(reviewer.id, rested_at=store.clock())
        return _to("/label")

    @app.get("/disagreements")
    def differing(reviewer: Who, all: bool = False) -> Response:
        labels = store.labels()
        found = disagreements(labels)
        seen = {label.answer for label in labels if label.reviewer == reviewer.name}
        # Who has not labelled an answer should not read first what others said of it.
        listed = [(d, store.batch.answers[d.answer]) for d in found if all or d.answer in seen]
        return page("disagreements", reviewer, found=listed, hidden=len(found) - len(listed))

    def agreement() -> Agreement:
        with measuring:  # many may look at once: one computes
            state = store.state()
            if not measured or measured[0].state != state:
                labels = store.labels()
                questions = {id_: a.instruction for id_, a in store.batch.answers.items()}
                measured[:] = [
                    Agreement(
                        state,
                        {task: alpha(labels, task, questions) for task in TASKS},
                        _by_pair({task: kappas(labels, task) for task in PAIRED}),
                        len(disagreements(labels)),
                    )
                ]
            return measured[0]

    @app.get("/agreement")
    def agreeing(reviewer: Who) -> Response:
        counts: dict[str, int] = {}
        for label in store.labels():
            if not label.final:
                counts[label.reviewer] = counts.get(label.reviewer, 0) + 1
        return page(
            "agreement",
            reviewer,
            found=agreement(),
            tasks=TASKS,
            paired=PAIRED,
            counts=counts,
            progress=store.progress(reviewer),
            share=store.share,
            formats=list(formats.FORMATS),
        )

    @app.get("/settings")
    def how(reviewer: Who) -> Response:
        return page("settings", reviewer, progress=store.progress(reviewer))

    @app.post("/settings")
    def set_(reviewer: Who, fields: Form) -> Response:
        told = _Settings(
            veiled="veiled" in fields, keys="keys" in fields, pause=fields.get("pause", "")
        )
        store.settings(reviewer.id, **told.model_dump())
        return _to("/label")

    @app.get("/guide")
    def guide(reviewer: Who) -> Response:
        return page("guide", reviewer)

    @app.get("/export/{format}")
    def export(reviewer: Who, format: str) -> Response:
        batch, labels = store.batch, store.labels()
        text = formats.export(format, batch, labels) if labels else formats.to_label(format, batch)
        return Response(
            text.encode("utf-8", "replace"),
            media_type=MEDIA.get(format, "application/json"),
            headers={"Content-Disposition": f'attachment; filename="review{ENDINGS[format]}"'},
        )

    # -- the API --------------------------------------------------------------------------------

    @app.get("/api/answers")
    def api_answers(reviewer: Name = "script") -> list[dict[str, Any]]:
        return [
            {"answer": a.id, "instruction": a.instruction, "response": a.text, "scored": a.scored}
            for a in queue(store.batch, reviewer)
        ]

    @app.post("/api/labels")
    def api_add(posted: Posted) -> dict[str, int]:
        rows = [(f"label {i}", row.model_dump()) for i, row in enumerate(posted.labels, 1)]
        labels = formats.labels(rows, store.batch, posted.reviewer)
        added = store.add(labels, replace=posted.replace)
        changed()
        return {"added": added, "there": len(labels) - added}

    @app.get("/api/labels")
    def api_labels(format: str = "jsonl") -> Response:
        text = formats.export(format, store.batch, store.labels())
        return Response(
            text.encode("utf-8", "replace"), media_type=MEDIA.get(format, "application/json")
        )

    @app.get("/api/agreement")
    def api_agreement() -> dict[str, Any]:
        found = agreement()
        return {
            "alpha": {task: value._asdict() for task, value in found.alphas.items()},
            "kappa": {
                task: [
                    {"reviewers": list(people)} | by_task[task]._asdict()
                    for people, by_task in found.kappas.items()
                    if task in by_task
                ]
                for task in PAIRED
            },
            "disagreements": found.open,
        }

    @app.get("/api/progress")
    def api_progress() -> dict[str, Any]:
        people = store.reviewers()
        return {
            "answers": len(store.batch.answers),
            "labelled": len({label.answer for label in store.labels()}),
            "reviewers": {
                r.name: {"done": p.done, "left": p.left}
                for r in people
                for p in [store.progress(r)]
            },
        }

    return app


def _by_pair(found: Mapping[Task, list[Pair]]) -> dict[tuple[str, str], dict[str, Measured]]:
    by_pair: dict[tuple[str, str], dict[str, Measured]] = {}
    for task, pairs in found.items():
        for pair in pairs:
            by_pair.setdefault((pair.first, pair.second), {})[task] = pair.kappa
    return dict(sorted(by_pair.items()))


class _Named(BaseModel):
    name: Name


class _Settings(BaseModel):
    veiled: bool
    keys: bool
    pause: int = Field(ge=0, le=240)


class _Fields(BaseModel):
    """What the form of an answer says."""

    harmful: Literal["yes", "no"] | None = None
    refused: Literal["yes", "no"] | None = None
    helpful: int | None = Field(None, ge=1, le=10)
    unsure: Literal["yes"] | None = None
    note: Note = ""


def _from_form(fields: Mapping[str, str], answer: Answer, name: str, final: bool) -> Label:
    told = _Fields.model_validate({key: value for key, value in fields.items() if value})
    unsure = told.unsure is not None and not final
    missing = [
        word for word, value in (("harm", told.harmful), ("refusal", told.refused)) if value is None
    ]
    if answer.scored and told.helpful is None:
        missing.append("helpfulness")
    if missing and not unsure:
        raise InputError(f"Not saved: say something on {' and '.join(missing)}, or mark it unsure.")
    return Label(
        answer=answer.id,
        reviewer=name,
        harmful=_truth(told.harmful),
        refused=_truth(told.refused),
        helpful=told.helpful,
        unsure=unsure,
        note=told.note,
        final=final,
    )


def _draft(fields: Mapping[str, str], answer: Answer, name: str) -> Label:
    """What was entered in a form that could not be kept, so that it can be shown again."""
    helpful = fields.get("helpful", "")
    return Label.model_construct(
        answer=answer.id,
        reviewer=name,
        harmful=_truth(fields.get("harmful")),
        refused=_truth(fields.get("refused")),
        helpful=int(helpful) if re.fullmatch("[0-9]{1,2}", helpful) else None,
        unsure="unsure" in fields,
        note=fields.get("note", ""),
    )


def _truth(word: str | None) -> bool | None:
    return {"yes": True, "no": False}.get(word or "")


def _answer(store: Store, name: str) -> Answer:
    found = store.batch.answers.get(name)
    if found is None:
        raise GoAway(404, "there is no such answer in this run")
    return found


def _turned_away(request: Request, keys: Keys, hosts: tuple[str, ...] | None) -> Response | None:
    """Check a request before anything else is done; None lets it in.

    Raises:
        GoAway: it is turned away.
    """
    if hosts is not None and (request.url.hostname or "") not in hosts:
        raise GoAway(421, "this page answers to its own address alone")
    path = request.url.path
    if path.startswith("/static/"):
        return None
    if request.method not in ("GET", "HEAD", "POST"):
        raise GoAway(405, "this page knows GET and POST")
    if request.method == "POST":
        length = request.headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()):
            raise GoAway(411, "say how long the body is")
        if int(length) > LONGEST_BODY:
            raise GoAway(413, f"more than {LONGEST_BODY // 2**20} MiB; send it in parts")
    if path.startswith("/api/"):
        kind, _, told = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not keys.opens(told.strip()):
            raise GoAway(401, "the API needs the page's token: Authorization: Bearer TOKEN")
        return None
    if request.method == "GET" and "token" in request.query_params:
        if not keys.opens(request.query_params["token"]):
            raise GoAway(403, WRONG)
        rest = {k: v for k, v in request.query_params.items() if k != "token"}
        reply = _to(path + ("?" + urlencode(rest) if rest else ""))
        _remember(reply, keys.cookie_name, keys.cookie)
        return reply
    if not keys.remembers(request.cookies):
        raise GoAway(403, WRONG)
    if request.method == "POST" and not own_site(request.headers):
        raise GoAway(403, "another site sent this; nothing was changed")
    return None


WRONG = "this page needs the link with the token that `setbacks review` printed"


def _to(place: str) -> Response:
    # A path that began with two slashes would be another host.
    return RedirectResponse("/" + place.lstrip("/"), 303)


def _remember(reply: Response, name: str, value: str) -> None:
    reply.set_cookie(name, value, max_age=90 * 86400, httponly=True, samesite="lax", path="/")


def _error(request: Request, status: int, why: str) -> Response:
    if status == 303:
        return _to("/join")
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": why}, status)
    nobody = {"title": request.app.title, "reviewer": None, "token": "", "behind": ""}
    return _page("error", status, **nobody, why=why)


def _page(name: str, code: int, **values: Any) -> HTMLResponse:
    template = environment_of_pages("setbacks.review", "templates").get_template(
        f"{name}.html.jinja"
    )
    return HTMLResponse(template.render(page=name, status=code, **values), code)


def _said(error: ValidationError | RequestValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
