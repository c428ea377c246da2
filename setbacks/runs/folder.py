"""The folder of a run: its recipe, lock, journals and log, all private to their owner.

`Run` reads a folder as it is: it takes no lock and writes nothing. `RunFolder` is the one writer.
`docs/run-folder.md` describes the layout. A file that must survive a crash whole is written to a
temporary file beside it, fsynced, and renamed.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from setbacks.errors import InputError, SetbacksError
from setbacks.files import (
    expanded,
    failed_write,
    private,
    read_json,
    sync,
    write_atomic,
    writing,
)
from setbacks.notices import drop_notices, keep_notices
from setbacks.recipe import Recipe
from setbacks.records import Arm, Record, Response, Verdict
from setbacks.runs.arms import read_arms
from setbacks.runs.environment import environment
from setbacks.runs.journal import Journal, read, repair
from setbacks.runs.redo import (
    STAGE_NAMES,
    Redo,
    Stage,
    check_name,
    described,
    differences,
    first_affected,
    is_before,
    set_aside,
)
from setbacks.text import quoted

R = TypeVar("R", bound=Record)

NOTICE = "notice: "  # marks the lines of run.log that a report lists
# Errors of network and user-space file systems that cannot lock a file.
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ESTALE}


class Run:
    """A run folder, for reading only.

    It takes no lock and writes nothing, so it works in a read-only folder, and while another
    process writes to the run: an incomplete last line is left out.

    Args:
        path: the run folder.
        overrides: `key.path=value` strings that win over its recipe.

    Raises:
        InputError: the folder is not a run folder, or cannot be read.
    """

    path: Path
    recipe: Recipe

    def __init__(self, path: Path, overrides: Sequence[str] = ()) -> None:
        self.path = expanded(path)
        try:
            is_run = (self.path / "recipe.yaml").is_file()
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror})") from None
        if not is_run:
            raise InputError(f"{self.path}: not a run folder (no recipe.yaml)")
        _check_no_runs_inside(self.path)
        self.recipe = Recipe.load(self.path / "recipe.yaml", overrides, of_run=True)

    @property
    def environment(self) -> dict[str, Any]:
        """What the run depends on besides its recipe, recorded at its start."""
        data: dict[str, Any] = json.loads(
            (self.path / "environment.json").read_text(encoding="utf-8")
        )
        return data

    def records(self, name: str, kind: type[R]) -> list[R]:
        """Return the records of the journal `name`; none if it is missing."""
        return read(self.path / name, kind)

    def verdicts(self, judge: str) -> dict[str, Verdict]:
        """Return a judge's verdicts on all arms, by response id."""
        return {
            verdict.response_id: verdict
            for file in sorted((self.path / "verdicts").glob(f"*.{judge}.jsonl"))
            for verdict in self.records(f"verdicts/{file.name}", Verdict)
        }

    def arms(self) -> list[Arm]:
        """Return the arms that have responses, in the order in which tables show them."""
        return read_arms(self.path, self.recipe)

    def responses(self) -> dict[str, list[Response]]:
        """Return the responses of each arm, by name, in the order of the arms."""
        return {
            arm.name: self.records(f"responses/{arm.name}.jsonl", Response) for arm in self.arms()
        }

    def costs(self) -> list[dict[str, Any]]:
        """Return seconds, records, tokens and money by stage, in the order of the stages."""
        sums: dict[str, dict[str, Any]] = {}
        for line in self._lines("costs.jsonl"):
            try:
                row = json.loads(line)
            except ValueError:  # torn by a crash: a cost, not a record
                continue
            total = sums.setdefault(row["stage"], dict.fromkeys(row, 0) | {"stage": row["stage"]})
            for key in row.keys() - {"stage"}:
                total[key] = total.get(key, 0) + row[key]
        return [sums[stage] for stage in STAGE_NAMES if stage in sums]

    def notices(self) -> list[str]:
        """Return the notices in run.log, in order, such as rows left out."""
        lines = (line.partition(" ")[2] for line in self._lines("run.log"))
        return [line.removeprefix(NOTICE) for line in lines if line.startswith(NOTICE)]

    def _lines(self, name: str) -> list[str]:
        try:
            text = (self.path / name).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        return text.splitlines()


def read_data(folder: Path, name: str, stage: str) -> Any:
    """Return the data of a JSON file in a run folder.

    Args:
        folder: the run folder.
        name: of the file.
        stage: the stage that writes it.

    Raises:
        InputError: it is damaged.
    """
    redo = shlex.join(["setbacks", stage, str(folder), "--from", stage])
    return read_json(folder / name, f"redo it with `{redo}`")


class OtherRecipe(InputError):
    """A folder holds a run of another recipe than the one that it was opened with."""


class RunFolder(Run):
    """A run folder that is open for writing: one writer at a time. Use it as a context manager.

    Args:
        path: the folder; created if it is missing.
        recipe: the run's recipe; None takes the one in the folder.
        redo: the first stage to redo; the outputs of it and later ones move to `superseded/`.
        stages: of the pipeline, in order; without them nothing can be redone.

    Raises:
        OtherRecipe: the folder holds another recipe.
        InputError: the folder is not a run folder, or is in use.
    """

    def __init__(
        self,
        path: Path,
        recipe: Recipe | None = None,
        *,
        redo: str | None = None,
        stages: Sequence[Stage] = (),
    ) -> None:
        assert stages or redo is None, "what is redone depends on the stages"
        self.path = expanded(path)
        self._given = None if recipe is None else recipe.rebased(Path.cwd())
        self._redo = redo
        self._stages = stages

    def __enter__(self) -> RunFolder:
        if self._redo is not None:
            check_name(self._redo)
        self._create_folder()
        self._lock = FileLock(self.path / ".lock", mode=0o600)
        try:
            with warnings.catch_warnings():  # without flock, a marker file is the lock
                warnings.simplefilter("ignore")
                self._lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"{self.path}: another setbacks process is using this folder; wait for it, or "
                "choose another folder with --out"
            ) from None
        except OSError as error:
            raise _not_locked(self.path, error) from error
        try:
            self.recipe = self._settle_recipe()
            if self._redo:
                self._set_aside(self._redo, self.recipe)
            if not (self.path / "environment.json").exists():
                self.write_text("environment.json", json.dumps(environment(), indent=1) + "\n")
        except BaseException:
            self._lock.release()
            raise
        keep_notices(self.note)
        return self

    def __exit__(self, *_: object) -> None:
        drop_notices(self.note)
        self._lock.release()

    def journal(self, name: str, kind: type[R]) -> Journal[R]:
        """Open the journal `name` for appending."""
        path = self.path / name
        if not path.parent.exists():
            with writing(path.parent):
                path.parent.mkdir(mode=0o700)
                sync(self.path)
        return Journal(path, kind, self.log)

    def records(self, name: str, kind: type[R]) -> list[R]:
        """Return the records of the journal `name`; a torn last line is removed."""
        repair(self.path / name, self.log)
        return super().records(name, kind)

    def spend(
        self,
        stage: str,
        seconds: float,
        records: int,
        prompt_tokens: int,
        tokens: int,
        money: float = 0.0,
    ) -> None:
        """Record what a batch cost; apart from the records, since no two runs take equal time."""
        row: dict[str, Any] = {
            "stage": stage,
            "seconds": round(seconds, 3),
            "records": records,
            "prompt_tokens": prompt_tokens,
            "tokens": tokens,
        }
        if money:
            row["money"] = round(money, 8)
        self._append("costs.jsonl", json.dumps(row))

    def log(self, line: str) -> None:
        """Add a line, with the time, to run.log."""
        self._append("run.log", f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {line}")

    def note(self, notice: str) -> None:
        """Add a notice to run.log, once: a resumed run reads the same data again."""
        if notice not in self.notices():
            self.log(f"{NOTICE}{notice}")

    def write_text(self, name: str, text: str) -> Path:
        """Write a whole file so that a crash leaves either the old file or the new one."""
        path = self.path / name
        write_atomic(path, text.encode("utf-8", "surrogatepass"))
        return path

    def _create_folder(self) -> None:
        recipe = self.path / "recipe.yaml"
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file; a run needs a folder")
        if self._given is None:
            _check_no_runs_inside(self.path)
            if not recipe.exists():
                raise InputError(
                    f"{self.path}: not a run folder (no recipe.yaml); `setbacks run RECIPE --out "
                    f"{self.path}` creates one"
                )
        if self.path.is_dir() and not recipe.exists() and any(self.path.iterdir()):
            leftovers = {entry.name for entry in self.path.iterdir()}
            if not leftovers <= {".lock", "recipe.yaml.tmp"}:
                raise InputError(
                    f"{self.path}: not empty, and not a run folder (no recipe.yaml); choose "
                    "another with --out"
                )
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be created ({error.strerror})") from None
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise InputError(
                f"{self.path}: no permission to write here; choose another folder with --out"
            )
        if not recipe.exists():
            with writing(self.path):
                self.path.chmod(0o700)  # an empty folder may exist already

    def _settle_recipe(self) -> Recipe:
        path = self.path / "recipe.yaml"
        if not path.exists():
            assert self._given is not None
            write_atomic(path, self._given.to_yaml().encode())
            return self._given
        held = Recipe.load(path, of_run=True)
        if self._given is not None and self._redo != STAGE_NAMES[0]:
            self._given = self._given.resuming(path)
        if self._given is None or self._given == held:
            return held
        old, new = held.model_dump(mode="json"), self._given.model_dump(mode="json")
        redo = ""
        if self._stages:
            keys = [key for key, *_ in differences(old, new)]
            first = first_affected(self._stages, keys, held, self._given)
            if self._redo is not None and is_before(self._redo, first):
                self._set_aside(self._redo, held, keys)
                self._redo = None
                write_atomic(path, self._given.to_yaml().encode())
                return self._given
            redo = (
                f", redo what changed with --from {first}, or resume this run as it is with "
                f"`setbacks report {quoted(self.path)}`"
            )
        raise OtherRecipe(
            f"{self.path}: holds a run of another recipe ({described(old, new)}); choose another "
            f"folder with --out{redo}"
        )

    def _set_aside(self, first: str, recipe: Recipe, changed: Sequence[str] = ()) -> None:
        place = set_aside(Redo(self.path, recipe, first, changed), self._stages)
        if place is not None:
            name = place.relative_to(self.path)
            self.log(f"redone from {first}; what was there is in {name}")

    def _append(self, name: str, line: str) -> None:
        try:
            with open(self.path / name, "a+b", opener=private) as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(0, end - 1))
                # End a line that a crash has torn first, so that it damages only itself.
                start = b"" if file.read(1) in (b"", b"\n") else b"\n"
                file.write(start + line.encode("utf-8", "replace") + b"\n")
        except OSError as error:
            raise failed_write(self.path / name, error) from error


def _check_no_runs_inside(folder: Path) -> None:
    """Check that a folder is not one of a comparison, a study or a loop, or one of many runs.

    Raises:
        InputError: it contains the folders of runs. A stage would begin one more among them.
    """
    if (folder / "environment.json").exists():  # a run; somebody put another into its folder
        return
    recipes = sorted((*folder.glob("*/recipe.yaml"), *folder.glob("arms/*/recipe.yaml")))
    if recipes:
        raise InputError(
            f"{folder}: not a run folder, but it contains {len(recipes)}; name one, such as "
            f"{recipes[0].parent}"
        )


def _not_locked(folder: Path, error: OSError) -> SetbacksError:
    """Say in one line why a folder could not be locked and what to do."""
    if error.errno not in _NO_LOCKS:
        return failed_write(folder / ".lock", error)
    return InputError(
        f"{folder}: this file system refuses a lock ({error.strerror}), which keeps two processes "
        "from writing at once; choose a folder on another disk with --out"
    )
