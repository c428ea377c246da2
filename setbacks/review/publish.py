"""People's verdicts, from the labels to `verdicts/ARM.human.jsonl`, where every command finds them.

The page may be open for days, so it does not hold the run's lock: it takes it for the moment of
writing, and tries again later where another process has it. The database is the truth; the files
follow from it and can be made again at any time.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from setbacks.errors import InputError, SetbacksError
from setbacks.records import Verdict
from setbacks.review.answers import Batch
from setbacks.review.labels import MARK, Label, verdicts
from setbacks.review.store import Store
from setbacks.runs.folder import Run, RunFolder

WAIT = 2.0  # seconds between a label and the files, so that many labels are one writing
AGAIN = 10.0  # seconds until the next try


def publish(folder: Path, store: Store) -> int:
    """Write the people's verdicts of every arm; return how many there are.

    Args:
        folder: the run's.
        store: the labels.

    Raises:
        InputError: another process works in the folder, or a file holds verdicts that came from
            elsewhere and would be lost; nothing was changed.
        SetbacksError: a file cannot be written.
    """
    with RunFolder(folder) as run:
        check(run, store.batch, store.labels())
        return write(run, store)


def check(run: Run, batch: Batch, labels: Sequence[Label]) -> None:
    """Check that the files hold no people's verdict that the labels do not hold, too.

    Args:
        run: the open run folder.
        batch: all the answers.
        labels: all that the files will follow from.

    Raises:
        InputError: a file holds verdicts that came from elsewhere.
    """
    said = {(label.answer, *label.said) for label in labels}
    for arm in batch.arms:
        for record in run.records(_name(arm), Verdict):
            ours = (record.raw or "").startswith(MARK)
            answer = batch.by_response.get(record.response_id)
            told = (answer, record.harmful, record.refused, record.helpful_score)
            if not ours and told not in said:
                raise InputError(
                    f"{run.path / _name(arm)}: holds people's verdicts that are not from this "
                    "page; take them in with `setbacks review import RUN FILE --as NAME`; "
                    "nothing was changed"
                )


def write(run: RunFolder, store: Store) -> int:
    """Write the verdicts that follow from the labels; return how many there are.

    Args:
        run: the open run folder, that `check` has passed.
        store: the labels.
    """
    made = verdicts(store.batch, store.labels())
    for arm, records in made.items():
        if records != run.records(_name(arm), Verdict):
            (run.path / "verdicts").mkdir(mode=0o700, exist_ok=True)
            run.write_text(_name(arm), "".join(v.model_dump_json() + "\n" for v in records))
    return sum(map(len, made.values()))


def _name(arm: str) -> str:
    return f"verdicts/{arm}.human.jsonl"


class Publisher:
    """Keeps the files current from a thread of its own; `wake` after every label.

    Args:
        folder: the run's.
        store: the labels.
    """

    def __init__(self, folder: Path, store: Store) -> None:
        self.problem = ""  # why the files are behind the labels; "" if they are not
        self._folder, self._store = folder, store
        self._changed, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="publisher", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Say that there is something new."""
        self._changed.set()

    def close(self) -> None:
        """Write what is not written yet, and end."""
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
