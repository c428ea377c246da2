"""What every route of the labeling page shares: the store, the reviewer, the form, the page."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import ValidationError

from setbacks.messages import transcript
from setbacks.report.run_page import environment_of_pages
from setbacks.review.access import Keys
from setbacks.review.labels import TASKS, Measured, Pair, Task, alpha, disagreements, kappas
from setbacks.review.publish import Publisher
from setbacks.review.store import Reviewer, Store

PAIRED: tuple[Task, ...] = ("harmful", "refused")  # compared two by two
MEDIA = {"jsonl": "application/x-ndjson", "csv": "text/csv", "labels": "application/x-ndjson"}


class Rejected(Exception):
    """A request that is not allowed, with one line that says why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class Agreement(NamedTuple):
    """How far people agree, by question."""

    state: int  # of the store, when it was measured
    alphas: dict[str, Measured]
    kappas: dict[tuple[str, str], dict[str, Measured]]  # by the two reviewers
    open: int  # disagreements


class Site:
    """The page of one run.

    Args:
        store: the labels.
        keys: the token and what is derived from it.
        title: the name in the page's head.
        publisher: notified of every change.
    """

    def __init__(self, store: Store, keys: Keys, title: str, publisher: Publisher | None) -> None:
        self.store = store
        self.keys = keys
        self.title = title
        self.publisher = publisher
        self._agreement: Agreement | None = None
        self._measuring = threading.Lock()

    def page(
        self, name: str, reviewer: Reviewer | None = None, /, status: int = 200, **values: Any
    ) -> HTMLResponse:
        """Return a page."""
        return render(
            name,
            status,
            title=self.title,
            reviewer=reviewer,
            token=self.keys.form,
            behind=self.publisher.problem if self.publisher else "",
            **values,
        )

    def changed(self) -> None:
        """Have the verdicts written: a label changed."""
        if self.publisher:
            self.publisher.wake()

    def agreement(self) -> Agreement:
        """Return how far people agree by now."""
        with self._measuring:  # of several requests at once, one computes
            state = self.store.state()
            if self._agreement is None or self._agreement.state != state:
                labels = self.store.labels()
                answers = self.store.batch.answers.values()
                questions = {answer.id: transcript(answer.instruction) for answer in answers}
                self._agreement = Agreement(
                    state,
                    {task: alpha(labels, task, questions) for task in TASKS},
                    _by_pair({task: kappas(labels, task) for task in PAIRED}),
                    len(disagreements(labels)),
                )
            return self._agreement


# What a route asks for ---------------------------------------------------------------------------


def _site(request: Request) -> Site:
    site: Site = request.app.state.site
    return site


Here = Annotated[Site, Depends(_site)]


def _reviewer(request: Request, site: Here) -> Reviewer:
    """Return the reviewer; a browser without a name is asked for it first."""
    number = request.cookies.get(f"{site.keys.cookie_name}_who", "")
    reviewer = site.store.reviewer(int(number)) if re.fullmatch("[0-9]{1,9}", number) else None
    if reviewer is None:
        raise HTTPException(303, "enter your name", {"Location": "/join"})
    return reviewer


async def _form(request: Request, site: Here) -> dict[str, str]:
    """Return a form's fields, if it came from this page."""
    form = await request.form()
    fields = {key: value for key, value in form.items() if isinstance(value, str)}
    if not site.keys.issued(fields.pop("token", None)):
        raise Rejected(403, "this form did not come from this page; load it again")
    return fields


Who = Annotated[Reviewer, Depends(_reviewer)]
Form = Annotated[dict[str, str], Depends(_form)]


# Replies -----------------------------------------------------------------------------------------


def redirect(place: str) -> Response:
    """Return a redirect within the site; a path that began with two slashes would leave it."""
    return RedirectResponse("/" + place.lstrip("/"), 303)


def remember(reply: Response, name: str, value: str) -> None:
    """Set a cookie for 90 days that scripts cannot read."""
    reply.set_cookie(name, value, max_age=90 * 86400, httponly=True, samesite="lax", path="/")


def render(name: str, status: int, **values: Any) -> HTMLResponse:
    """Return a page of a template."""
    template = environment_of_pages("setbacks.review", "templates").get_template(
        f"{name}.html.jinja"
    )
    return HTMLResponse(template.render(page=name, status=status, **values), status)


def labels_file(text: str, format: str, **headers: str) -> Response:
    """Return labels as a file of a format."""
    return Response(
        text.encode("utf-8", "replace"),
        media_type=MEDIA.get(format, "application/json"),
        headers=headers,
    )


def reason(error: ValidationError | RequestValidationError) -> str:
    """Return one problem of a form or a body in one line."""
    # Of a value that may be of several types, the problem deepest inside says the most.
    problem = max(error.errors(), key=lambda one: len(one["loc"]))
    parts = [str(part) for part in problem["loc"] if part not in ("body", "query")]
    place = ".".join(part for part in parts if "[" not in part)  # else the name of a type
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _by_pair(by_task: Mapping[Task, list[Pair]]) -> dict[tuple[str, str], dict[str, Measured]]:
    by_pair: dict[tuple[str, str], dict[str, Measured]] = {}
    for task, pairs in by_task.items():
        for pair in pairs:
            by_pair.setdefault((pair.first, pair.second), {})[task] = pair.kappa
    return dict(sorted(by_pair.items()))
