"""The storage of labels: SQLite in the run's folder, or PostgreSQL by URL; nothing is deleted.

Each label is a row. A newer one of the same person and answer replaces the older one, and undoing
it brings the older one back. A label is committed to disk before the page reports it as saved.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, NoSuchModuleError, SQLAlchemyError

from setbacks.errors import InputError, SetbacksError
from setbacks.files import private
from setbacks.review.answers import Answer, Batch, known, queue, shared
from setbacks.review.labels import Label, contradiction

SCHEMA = 1
CLAIMED = 30 * 60  # seconds for which an answer is reserved for the reviewer who sees it
GAP = 5 * 60  # seconds without a label that count as a break

_tables = sa.MetaData()
_meta = sa.Table(
    "review_meta",
    _tables,
    sa.Column("key", sa.String(40), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
_reviewers = sa.Table(
    "review_reviewers",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(60), nullable=False, unique=True),
    sa.Column("veiled", sa.Boolean, nullable=False, default=False),
    sa.Column("keys", sa.Boolean, nullable=False, default=True),
    sa.Column("pause", sa.Integer, nullable=False, default=25),
    sa.Column("rested_at", sa.Float, nullable=False, default=0.0),
)
_labels = sa.Table(
    "review_labels",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("answer", sa.String(16), nullable=False),
    sa.Column("reviewer", sa.ForeignKey("review_reviewers.id"), nullable=False),
    sa.Column("harmful", sa.Boolean),
    sa.Column("refused", sa.Boolean),
    sa.Column("helpful", sa.Integer),
    sa.Column("unsure", sa.Boolean, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("final", sa.Boolean, nullable=False),
    sa.Column("made_at", sa.Float, nullable=False),
    sa.Column("undone", sa.Boolean, nullable=False, default=False),
    # A form that is sent twice (the first reply was lost) is one label.
    sa.Column("form", sa.String(64), unique=True),
    sa.Index("review_labels_of", "reviewer", "answer", "final"),
)
_claims = sa.Table(
    "review_claims",
    _tables,
    sa.Column("answer", sa.String(16), primary_key=True),
    sa.Column("reviewer", sa.ForeignKey("review_reviewers.id"), nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)


class Reviewer(NamedTuple):
    """A person who labels, and their settings."""

    id: int
    name: str
    veiled: bool  # answers are blurred until shown
    keys: bool  # single letters work
    pause: int  # minutes after which a break is suggested; 0 never
    rested_at: float


class Progress(NamedTuple):
    """The progress of one reviewer, and of all, in answers."""

    done: int
    left: int
    labeled: int  # by anybody
    answers: int


class Store:
    """The labels of one run.

    Args:
        url: of the database, as SQLAlchemy takes it; or the path of an SQLite file.
        batch: all the answers of the run.
        share: of the answers that every reviewer labels, in [0, 1]; None keeps the previous value,
            0.2 at first.
        clock: seconds since 1970.

    Raises:
        InputError: the database belongs to another program, another version of this one, or
            another run; nothing was changed.
        SetbacksError: it cannot be reached.
    """

    def __init__(
        self,
        url: str | Path,
        batch: Batch,
        *,
        share: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if share is not None and not 0 <= share <= 1:
            raise InputError(f"the share of common answers is {share:g}; it must be from 0 to 1")
        self.batch = batch
        self.clock = clock
        self.where = str(url) if isinstance(url, Path) else shown(url)
        with self._failures():
            self._engine = _connect(url)
            self._writer = self._engine.execution_options(writes=True)
            try:
                self._settle(url)
                self.left_out = self._of_this_run()
                self.share = self._share(share)
            except BaseException:  # the caller has nothing to close
                self.close()
                raise
        self._shared = shared(batch, self.share)
        self._queues: dict[str, list[Answer]] = {}  # by reviewer's name

    def close(self) -> None:
        """Close the database."""
        self._engine.dispose()

    # -- people ---------------------------------------------------------------------------------

    def join(self, name: str) -> Reviewer:
        """Return the reviewer of a name; create one if there is none."""
        with self._failures(), self._writer.begin() as db:
            return self._joined(db, name)

    def reviewer(self, number: int) -> Reviewer | None:
        """Return a reviewer by number; None if there is none."""
        with self._failures(), self._engine.connect() as db:
            row = db.execute(_reviewers.select().where(_reviewers.c.id == number)).first()
        return None if row is None else Reviewer(*row)

    def reviewers(self) -> list[Reviewer]:
        """Return all reviewers."""
        with self._failures(), self._engine.connect() as db:
            return [Reviewer(*row) for row in db.execute(_reviewers.select().order_by("id"))]

    def settings(self, number: int, **values: bool | int | float) -> None:
        """Change a reviewer's settings."""
        with self._failures(), self._writer.begin() as db:
            db.execute(_reviewers.update().where(_reviewers.c.id == number).values(values))

    # -- labels ---------------------------------------------------------------------------------

    def labels(self) -> list[Label]:
        """Return the current labels of this run's answers, in order of creation."""
        with self._failures(), self._engine.connect() as db:
            return [label for label in self._current(db) if label.answer in self.batch.answers]

    def save(self, label: Label, form: str | None = None) -> None:
        """Save one label; on return it is on disk. Sending the same form again changes nothing.

        Raises:
            InputError: its answer is not in this run.
        """
        known(self.batch, [label.answer])
        reviewer = self.join(label.reviewer)
        with self._failures():
            try:
                with self._writer.begin() as db:
                    self._insert(db, label, reviewer.id, form)
            except IntegrityError:
                if form is None:
                    raise

    def add(self, labels: Sequence[Label], replace: bool = False) -> int:
        """Save all of these labels, or none; return how many are new.

        Labels that equal a current one are skipped.

        Args:
            labels: of any number of people.
            replace: whether a label replaces a different current one.

        Raises:
            InputError: an answer is not in this run, or two labels contradict each other.
        """
        known(self.batch, [label.answer for label in labels])
        with self._failures(), self._writer.begin() as db:
            people = {name: self._joined(db, name).id for name in {x.reviewer for x in labels}}
            there = {label.key: label for label in self._current(db)}
            if wrong := contradiction(labels, {} if replace else there):
                raise InputError(f"{wrong}; nothing was changed")
            new = {
                label.key: label
                for label in labels
                if label.key not in there or not label.same(there[label.key])
            }
            for label in new.values():
                self._insert(db, label, people[label.reviewer], None)
        return len(new)

    def undo(self, number: int) -> Label | None:
        """Take back a reviewer's newest label and return it; None if there is none."""
        with self._failures(), self._writer.begin() as db:
            mine = self._rows().where(_labels.c.reviewer == number, ~_labels.c.undone)
            newest = db.execute(mine.order_by(_labels.c.id.desc()))
            row = next((row for row in newest if row.answer in self.batch.answers), None)
            newest.close()
            if row is None:
                return None
            db.execute(_labels.update().where(_labels.c.id == row.id).values(undone=True))
        return _label(row)

    def last(self, reviewer: Reviewer, answer: str, final: bool = False) -> Label | None:
        """Return a reviewer's last label of an answer, even if undone; None without one."""
        mine = self._rows().where(
            _labels.c.reviewer == reviewer.id, _labels.c.answer == answer, _labels.c.final == final
        )
        with self._failures(), self._engine.connect() as db:
            row = db.execute(mine.order_by(_labels.c.id.desc()).limit(1)).first()
        return None if row is None else _label(row)

    def state(self) -> int:
        """Return a number that changes with every label and every undo."""
        with self._failures(), self._engine.connect() as db:
            count, undone = db.execute(
                sa.select(sa.func.count(), sa.func.count().filter(_labels.c.undone))
                .select_from(_labels)
            ).one()  # fmt: skip
        return int(count + undone)

    # -- queues ---------------------------------------------------------------------------------

    def next(self, reviewer: Reviewer) -> Answer | None:
        """Return a reviewer's next answer and reserve it; None if all are done."""
        now = self.clock()
        with self._failures(), self._writer.begin() as db:
            for answer in self._open(db, reviewer, now):
                if answer.id in self._shared or self._claim(db, answer.id, reviewer.id, now):
                    return answer
        return None

    def progress(self, reviewer: Reviewer) -> Progress:
        """Return the progress of a reviewer."""
        with self._failures(), self._engine.connect() as db:
            left = sum(1 for _ in self._open(db, reviewer, self.clock()))
            there = [row for row in self._there(db) if row.answer in self.batch.answers]
        return Progress(
            done=len({row.answer for row in there if row.reviewer == reviewer.id}),
            left=left,
            labeled=len({row.answer for row in there}),
            answers=len(self.batch.answers),
        )

    def at_work(self, reviewer: Reviewer) -> float:
        """Return the minutes for which a reviewer has labeled without a break."""
        now = self.clock()
        with self._failures(), self._engine.connect() as db:
            times = db.scalars(
                sa.select(_labels.c.made_at)
                .where(
                    _labels.c.reviewer == reviewer.id,
                    _labels.c.made_at > max(reviewer.rested_at, now - 24 * 3600),
                    _labels.c.form.is_not(None),  # made on the page, not by a script
                )
                .order_by(_labels.c.made_at.desc())
            )
            start = now
            for moment in times:
                if start - moment > GAP:
                    break
                start = moment
        return (now - start) / 60

    # -- inside ---------------------------------------------------------------------------------

    def _open(self, db: sa.Connection, reviewer: Reviewer, now: float) -> Iterator[Answer]:
        """Yield the answers that a reviewer can still label, in order."""
        mine: set[str] = set()
        others: set[str] = set()
        settled: set[str] = set()
        for row in self._there(db):
            (mine if row.reviewer == reviewer.id else others).add(row.answer)
            if row.final:
                settled.add(row.answer)
        kept = {
            claim.answer
            for claim in db.execute(_claims.select().where(_claims.c.at > now - CLAIMED))
            if claim.reviewer != reviewer.id
        }
        if reviewer.name not in self._queues:
            self._queues[reviewer.name] = queue(self.batch, reviewer.name)
        for answer in self._queues[reviewer.name]:
            done = answer.id in mine or answer.id in settled
            if not done and (answer.id in self._shared or answer.id not in others | kept):
                yield answer

    def _claim(self, db: sa.Connection, answer: str, number: int, now: float) -> bool:
        free = (_claims.c.at <= now - CLAIMED) | (_claims.c.reviewer == number)
        taken = db.execute(
            _claims.update()
            .where(_claims.c.answer == answer, free)
            .values(reviewer=number, at=now)
        )  # fmt: skip
        if taken.rowcount:
            return True
        try:
            with db.begin_nested():
                db.execute(_claims.insert().values(answer=answer, reviewer=number, at=now))
        except IntegrityError:  # reserved by another reviewer
            return False
        return True

    def _insert(self, db: sa.Connection, label: Label, number: int, form: str | None) -> None:
        values = label.model_dump(exclude={"reviewer"}) | {"reviewer": number, "form": form}
        if label.made_at is None:
            values["made_at"] = self.clock()
        db.execute(_labels.insert().values(values))

    def _rows(self) -> sa.Select[Any]:
        return sa.select(_labels, _reviewers.c.name.label("by")).join(_reviewers)

    def _there(self, db: sa.Connection) -> list[sa.Row[Any]]:
        """Return which answers each reviewer has labeled or settled."""
        columns = _labels.c.answer, _labels.c.reviewer, _labels.c.final
        return list(db.execute(sa.select(*columns).where(~_labels.c.undone).distinct()))

    def _current(self, db: sa.Connection) -> list[Label]:
        newest = (
            sa.select(sa.func.max(_labels.c.id))
            .where(~_labels.c.undone)
            .group_by(_labels.c.reviewer, _labels.c.answer, _labels.c.final)
        )
        rows = db.execute(self._rows().where(_labels.c.id.in_(newest)).order_by(_labels.c.id))
        return [_label(row) for row in rows]

    def _joined(self, db: sa.Connection, name: str) -> Reviewer:
        reviewer = self._named(db, name)
        if reviewer is None:
            with suppress(IntegrityError), db.begin_nested():  # another server may be quicker
                db.execute(_reviewers.insert().values(name=name))
            reviewer = self._named(db, name)
        assert reviewer is not None
        return reviewer

    def _named(self, db: sa.Connection, name: str) -> Reviewer | None:
        row = db.execute(_reviewers.select().where(_reviewers.c.name == name)).first()
        return None if row is None else Reviewer(*row)

    def _settle(self, url: str | Path) -> None:
        """Create the tables in an empty database; check those of others."""
        there = set(sa.inspect(self._engine).get_table_names())
        ours = set(_tables.tables)
        if not there & ours:
            if isinstance(url, Path) and there:
                raise InputError(
                    f"{self.where}: the database of another program; name another file"
                )
            if isinstance(url, Path):  # the mode is stored in the file
                with self._engine.connect() as db:
                    db.connection.driver_connection.execute("PRAGMA journal_mode=WAL")  # type: ignore[union-attr]
            with self._writer.begin() as db:
                _tables.create_all(db)
                db.execute(_meta.insert().values(key="schema", value=str(SCHEMA)))
            return
        schema = "0"
        if _meta.name in there:
            with self._engine.connect() as db:
                value = db.scalar(sa.select(_meta.c.value).where(_meta.c.key == "schema"))
                schema = str(value or "0")
        if schema != str(SCHEMA) or not ours <= there:
            older = (
                "made by an older"
                if schema.isdigit() and int(schema) <= SCHEMA
                else "made by a newer"
            )
            raise InputError(
                f"{self.where}: {older} version of setbacks (schema {schema}, this one "
                f"has {SCHEMA}); export the labels with that version, move the database away, and "
                "import them with `setbacks review import RUN FILE`; nothing was changed"
            )

    def _of_this_run(self) -> int:
        """Return how many labels belong to answers that are not in the run."""
        with self._engine.connect() as db:
            labels = self._current(db)
        strange = sum(label.answer not in self.batch.answers for label in labels)
        if labels and strange == len(labels):
            raise InputError(
                f"{self.where}: its {strange} labels belong to another run; name another database, "
                "or move this one; nothing was changed"
            )
        return strange

    def _share(self, wanted: float | None) -> float:
        key = _meta.c.key == "share"
        with self._writer.begin() as db:
            held = db.scalar(sa.select(_meta.c.value).where(key))
            value = wanted if wanted is not None else float(held or 0.2)
            if held is None:
                db.execute(_meta.insert().values(key="share", value=str(value)))
            elif float(held) != value:
                db.execute(_meta.update().where(key).values(value=str(value)))
        return value

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise SetbacksError(f"{self.where}: {reason}") from error


def shown(url: str) -> str:
    """Return a database's URL without its password."""
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return "--database"


def _connect(url: str | Path) -> sa.Engine:
    if isinstance(url, Path):
        url.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite gives its other files the mode of this one.
        os.close(private(str(url), os.O_RDWR | os.O_CREAT))
        engine = sa.create_engine(
            sa.URL.create("sqlite", database=str(url)), connect_args={"timeout": 30}
        )
        sa.event.listen(engine, "connect", _prepare)
        sa.event.listen(engine, "begin", _begin)
        return engine
    try:
        parsed = sa.make_url(url)
    except SQLAlchemyError:
        raise InputError(
            "--database: not a URL; write postgresql://USER:PASSWORD@HOST/NAME"
        ) from None
    if parsed.get_backend_name() != "postgresql":
        raise InputError(f"--database: {parsed.drivername} is unknown here; use postgresql://")
    try:
        return sa.create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            isolation_level="READ COMMITTED",
            pool_pre_ping=True,
        )
    except (ImportError, NoSuchModuleError):
        raise InputError(
            "--database: PostgreSQL needs a driver: pip install 'setbacks[postgres]'"
        ) from None


def _prepare(connection: Any, _: Any) -> None:
    # `_begin` begins transactions, not the driver.
    connection.isolation_level = None
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin(connection: sa.Connection) -> None:
    # A writer takes the lock at once: one that began by reading could fail to get it later.
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _label(row: Any) -> Label:
    """Return a row as a label, without validating it again."""
    names: Iterable[str] = ("answer", "harmful", "refused", "helpful", "unsure", "note", "final")
    return Label.model_construct(
        **{name: getattr(row, name) for name in names}, reviewer=row.by, made_at=row.made_at
    )
