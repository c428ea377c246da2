"""Write people's verdicts from the labels to `verdicts/ARM.human.jsonl`, for other commands.

The page may be open for days, so it does not hold the run's lock: it takes the lock to write, and
tries again later if another process has it. The database is authoritative; the files can be
recreated from it at any time.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from setbacks.errors import InputError, SetbacksError
from setbacks.records import Verdict
from setbacks.review.answers import Batch, collect
from setbacks.review.labels import MARK, Label, verdicts
from setbacks.review.store import Store
from setbacks.runs.folder import Run, RunFolder

WAIT = 2.0  # seconds between a label and the files, so that many labels are written together
AGAIN = 10.0  # seconds until the next try


def publish(folder: Path, store: Store) -> int:
    """Write the people's verdicts of every arm; return their number.

    The answers are read again: while the page is open, they or their plan may have changed. A label
    counts only for the answer that its reviewer saw.

    Args:
        folder: the run's.
        store: the labels.

    Raises:
        InputError: another process uses the folder, its answers cannot be read, or a file has
            verdicts from elsewhere that would be lost; nothing was changed. Or the run no longer
            has a labeled answer; the labels of all other answers were written.
        SetbacksError: a file cannot be written.
    """
    with RunFolder(folder) as run:
        batch, labels = collect(run), store.labels()
        check(run, batch, labels)
        written = write(run, batch, labels)
    if gone := {label.answer for label in labels} - batch.answers.keys():
        raise InputError(
            f"{folder}: the page shows answers that the run no longer has, and the labels of "
            f"{len(gone)} do not count; stop the page, and start `setbacks review serve` again"
        )
    return written


def check(run: Run, batch: Batch, labels: Sequence[Label]) -> None:
    """Check that the labels include every verdict of people in the files.

    Args:
        run: the open run folder.
        batch: all the answers.
        labels: that the files will be written from.

    Raises:
        InputError: a file has verdicts from elsewhere.
    """
    known = {(label.answer, *label.choices) for label in labels}
    for arm in batch.arms:
        for record in run.records(_name(arm), Verdict):
            ours = (record.raw or "").startswith(MARK)
            answer = batch.by_response.get(record.response_id)
            verdict = (answer, record.harmful, record.refused, record.helpful_score)
            if not ours and verdict not in known:
                raise InputError(
                    f"{run.path / _name(arm)}: has people's verdicts that are not from this "
                    "page; import them with `setbacks review import RUN FILE --as NAME`; "
                    "nothing was changed"
                )


def write(run: RunFolder, batch: Batch, labels: Sequence[Label]) -> int:
    """Write the verdicts that follow from the labels; return their number.

    A verdict keeps its sampling probability if the plan does not have its answer any more.

    Args:
        run: the open run folder, that `check` has passed.
        batch: all the answers.
        labels: the current ones.
    """
    by_arm = verdicts(batch, labels)
    for arm, made in by_arm.items():
        there = run.records(_name(arm), Verdict)
        drawn = {v.response_id: v.sampling_probability for v in there}
        records = [
            v.model_copy(update={"sampling_probability": drawn.get(v.response_id)})
            if v.sampling_probability is None
            else v
            for v in made
        ]
        if records != there:
            (run.path / "verdicts").mkdir(mode=0o700, exist_ok=True)
            run.write_text(_name(arm), "".join(v.model_dump_json() + "\n" for v in records))
    return sum(map(len, by_arm.values()))


def _name(arm: str) -> str:
    return f"verdicts/{arm}.human.jsonl"


class Publisher:
    """Keeps the files current from a separate thread; call `wake` after every label.

    Args:
        folder: the run's.
        store: the labels.
    """

    def __init__(self, folder: Path, store: Store) -> None:
        self.problem = ""  # why the files are out of date; "" if they are current
        self._folder, self._store = folder, store
        self._changed, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="publisher", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Report that a label changed."""
        self._changed.set()

    def close(self) -> None:
        """Write pending changes, and end."""
        self._over.set()
        self._changed.set()
        self._thread.join()

    def _work(self) -> None:
        while True:
            self._changed.wait()
            self._over.wait(WAIT)
            self._changed.clear()
            written = self._once()
            if self._over.is_set() and not self._changed.is_set():
                return
            if not written:
                self._over.wait(AGAIN)
                self._changed.set()

    def _once(self) -> bool:
        try:
            publish(self._folder, self._store)
        except SetbacksError as error:
            self.problem = str(error)
        else:
            self.problem = ""
        return not self.problem
