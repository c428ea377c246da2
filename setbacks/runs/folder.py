"""A run's folder: its recipe, its lock, its journals, its log; all of it private to its owner.

The layout is fixed in `docs/run-folder.md`. What a crash must not tear is written to a temporary
file beside its place, fsynced, and renamed over it.
"""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
import platform
import shutil
import time
import warnings
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import yaml
from filelock import FileLock, Timeout

from setbacks.errors import InputError, SetbacksError, nearest
from setbacks.files import expanded, failed_write, private, sync, write_atomic, writing
from setbacks.notices import drop_notices, keep_notices
from setbacks.plugins import plugin
from setbacks.recipe import Recipe
from setbacks.records import Arm, Record, Response, Verdict, digest
from setbacks.runs.arms import read_arms
from setbacks.runs.journal import Journal, W, read
from setbacks.runs.progress import Show
from setbacks.runs.session import Work

if TYPE_CHECKING:
    from setbacks.engines import Engine

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)

Stage = Literal[
    "induce", "analyze", "preflight", "train", "introspect", "respond", "judge", "report"
]

# What each stage leaves, in the order of the method, and the recipe keys that it depends on.
STAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "induce": (("mistakes.jsonl",), ("seed", "language", "model", "instructions", "induce")),
    "analyze": (("analyses.jsonl",), ("analyze",)),
    "preflight": (("preflight.jsonl",), ()),
    "train": (
        (
            "benign.jsonl",
            "training.jsonl",
            "loss.jsonl",
            "trained.json",
            "checkpoints",
            "snapshots",
            "adapter",
        ),
        ("train",),
    ),
    "introspect": (("introspection.jsonl",), ()),
    "respond": (("arms.json", "responses"), ("respond", "evaluate")),
    "judge": (("verdicts",), ("judges",)),
    "report": (("metrics.json", "report.html"), ("name", "compare", "study", "jobs")),
}


NOTICE = "notice: "  # how a line of run.log begins that says what a reader should know
# What network and user-space file systems answer that cannot lock a file.
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ESTALE}
ABSENT = object()  # in place of a value, where a recipe has no such key


class RunFolder:
    """An open run folder: one writer at a time. Use it as a context manager.

    Args:
        path: the folder; made if it is missing.
        recipe: what the run is told; None takes the folder's own.
        redo: a stage from which all is done anew; what was there moves to `superseded/`.
        show: told of progress (what, done, total); None keeps quiet.

    Raises:
        InputError: the folder holds another recipe, is no run folder, or is in use.
    """

    def __init__(
        self,
        path: Path,
        recipe: Recipe | None = None,
        *,
        redo: str | None = None,
        show: Show | None = None,
    ) -> None:
        self.path = expanded(path)
        self._given = None if recipe is None else recipe.rebased(Path.cwd())
        self._redo = redo
        self._show = show
        self._engines: dict[str, Engine] = {}
        self._booked = 0.0  # money that costs.jsonl has
        self._stage = "induce"  # the one that works

    def __enter__(self) -> RunFolder:
        if self._redo is not None and self._redo not in STAGES:
            raise InputError(f'no stage "{self._redo}".{nearest(self._redo, STAGES)}')
        self._make_folder()
        self._lock = FileLock(self.path / ".lock", mode=0o600)
        try:
            with (
                warnings.catch_warnings()
            ):  # without flock, a marker file is the lock: as good here
                warnings.simplefilter("ignore")
                self._lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"{self.path}: another setbacks process works in this folder; wait for it, or "
                "choose another with --out"
            ) from None
        except OSError as error:
            raise _not_locked(self.path, error) from error
        try:
            self.recipe = self._settle_recipe()
            if self._redo:
                self._supersede(self._redo, self.recipe)
            self._settle_environment()
        except BaseException:
            self._lock.release()
            raise
        keep_notices(self.note)
        return self

    def __exit__(self, *_: object) -> None:
        drop_notices(self.note)
        try:
            if self._unbooked() > 0:
                self.spend(self._stage, 0.0, 0, 0, 0)  # for a batch that failed: paid all the same
            for engine in self._remote():
                if summary := engine.spent():
                    log.info(summary)
                    self.log(summary)
        finally:
            self._engines.clear()
            self._lock.release()

    # -- what stages use ------------------------------------------------------------------------

    def work(
        self, journal: Journal[R], stage: Stage, batches: Sequence[Sequence[W]], label: str = ""
    ) -> Work[R, W]:
        """Return what is left of a plan, with progress and cost; see `setbacks.runs.session`.

        Args:
            journal: where the records go.
            stage: whose time and tokens these are.
            batches: the whole plan, in order.
            label: what the progress line says beside the stage's name.
        """
        self._stage = stage
        return Work(self, journal, stage, batches, label)

    def progress(self, name: str, done: int, total: int) -> None:
        """Show how far a piece of work is; called only for what is on disk."""
        if self._show:
            self._show(name, done, total)

    def journal(self, name: str, kind: type[R]) -> Journal[R]:
        """Open the journal `name` for appending."""
        path = self.path / name
        if not path.parent.exists():
            with writing(path.parent):
                path.parent.mkdir(mode=0o700)
                sync(self.path)
        return Journal(path, kind, self.log)

    def records(self, name: str, kind: type[R]) -> list[R]:
        """Return what is in the journal `name`; nothing where it is missing."""
        return read(self.path / name, kind, self.log)

    def verdicts(self, judge: str) -> dict[str, Verdict]:
        """Return a judge's verdicts on all arms, by the response's id."""
        return {
            verdict.response_id: verdict
            for file in sorted((self.path / "verdicts").glob(f"*.{judge}.jsonl"))
            for verdict in self.records(f"verdicts/{file.name}", Verdict)
        }

    def arms(self) -> list[Arm]:
        """Return the arms that have responses, in the order in which tables show them."""
        return read_arms(self.path, self.recipe)

    def responses(self) -> dict[str, list[Response]]:
        """Return what each arm answered, by the arm's name, in the arms' order."""
        return {
            arm.name: self.records(f"responses/{arm.name}.jsonl", Response) for arm in self.arms()
        }

    def engine(self, spec: Any) -> Any:
        """Open the engine of a spec once, and give the same one to every stage that asks."""
        from setbacks.engines import open_engine

        key = spec.model_dump_json()
        if key not in self._engines:
            self._engines[key] = opened = open_engine(spec, self.recipe.language)
            if opened.elsewhere:
                opened.keep(self.path / f"unfinished-{digest(key)}.jsonl")
            opened.note = self.log
        return self._engines[key]

    def _remote(self) -> list[Engine]:
        """The open engines whose models are elsewhere."""
        return [engine for engine in self._engines.values() if engine.elsewhere]

    def committed(self) -> None:
        """Let servers' engines forget the answers whose records are on disk."""
        for engine in self._remote():
            engine.committed()

    def _unbooked(self) -> float:
        """Money spent at servers that costs.jsonl does not have yet."""
        return sum(engine.money for engine in self._remote()) - self._booked

    def release_engines(self) -> None:
        """Let go of every open model, so that training has the memory.

        Those elsewhere need none here, and go on counting what they cost.
        """
        remote = self._remote()
        self._engines = {key: opened for key, opened in self._engines.items() if opened in remote}
        gc.collect()  # models hold themselves in circles; these few objects are gigabytes

    def spend(
        self, stage: str, seconds: float, records: int, prompt_tokens: int, tokens: int
    ) -> None:
        """Note what a batch cost; kept apart from the records, for no two runs take equal time.

        Money spent at servers since the last note is added.
        """
        row: dict[str, Any] = {
            "stage": stage,
            "seconds": round(seconds, 3),
            "records": records,
            "prompt_tokens": prompt_tokens,
            "tokens": tokens,
        }
        if money := self._unbooked():
            row["money"] = round(money, 8)
        self._booked += money
        self._append("costs.jsonl", json.dumps(row))

    def costs(self) -> list[dict[str, Any]]:
        """Return seconds, records, tokens and money, summed by stage, in the stages' order."""
        sums: dict[str, dict[str, Any]] = {}
        for line in self._lines("costs.jsonl"):
            try:
                row = json.loads(line)
            except ValueError:  # torn by a crash: a cost, not a record
                continue
            into = sums.setdefault(row["stage"], dict.fromkeys(row, 0) | {"stage": row["stage"]})
            for key in row.keys() - {"stage"}:
                into[key] = into.get(key, 0) + row[key]
        return [sums[stage] for stage in STAGES if stage in sums]

    def log(self, line: str) -> None:
        """Add a line, with the time, to run.log."""
        self._append("run.log", f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {line}")

    def note(self, notice: str) -> None:
        """Add a notice to run.log, once: a run that is resumed reads the same data again."""
        if notice not in self.notices():
            self.log(f"{NOTICE}{notice}")

    def notices(self) -> list[str]:
        """Return what was noted in run.log, in order: rows left out, and the like."""
        lines = (line.partition(" ")[2] for line in self._lines("run.log"))
        return [line.removeprefix(NOTICE) for line in lines if line.startswith(NOTICE)]

    def write_text(self, name: str, text: str) -> Path:
        """Write a whole file so that a crash leaves the old one or the new one, never a part."""
        path = self.path / name
        write_atomic(path, text.encode("utf-8", "surrogatepass"))
        return path

    # -- opening --------------------------------------------------------------------------------

    def _make_folder(self) -> None:
        made = self.path / "recipe.yaml"
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file; a run needs a folder")
        if self.path.is_dir() and not made.exists() and any(self.path.iterdir()):
            leftovers = {entry.name for entry in self.path.iterdir()}
            if not leftovers <= {".lock", "recipe.yaml.tmp"}:
                raise InputError(
                    f"{self.path}: not empty, and no run folder (no recipe.yaml); choose another "
                    "with --out"
                )
        if self._given is None and not made.exists():
            raise InputError(
                f"{self.path}: no run folder (no recipe.yaml); `setbacks run RECIPE --out "
                f"{self.path}` makes one"
            )
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be made ({error.strerror})") from None
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise InputError(f"{self.path}: no right to write here; choose another with --out")
        if not made.exists():
            with writing(self.path):
                self.path.chmod(0o700)  # it may have been there, empty

    def _settle_recipe(self) -> Recipe:
        path = self.path / "recipe.yaml"
        if not path.exists():
            assert self._given is not None
            write_atomic(path, self._given.to_yaml().encode())
            return self._given
        held = Recipe.load(path)
        if self._given is None or self._given == held:
            return held
        differences = list(
            _differences(held.model_dump(mode="json"), self._given.model_dump(mode="json"))
        )
        also = plugin("methods", held.train.method).reads
        first = min((_stage_of(key, also) for key, *_ in differences), key=list(STAGES).index)
        if self._redo is not None and list(STAGES).index(self._redo) <= list(STAGES).index(first):
            self._supersede(self._redo, held)
            self._redo = None
            write_atomic(path, self._given.to_yaml().encode())
            return self._given
        shown = "; ".join(f"{key}: {old} -> {new}" for key, old, new in differences[:4])
        more = f" and {len(differences) - 4} more" if len(differences) > 4 else ""
        raise InputError(
            f"{self.path}: holds a run of another recipe ({shown}{more}); choose another folder "
            f"with --out, or redo what changed with --from {first}"
        )

    def _settle_environment(self) -> None:
        path = self.path / "environment.json"
        if not path.exists():
            write_atomic(path, (json.dumps(environment(), indent=1) + "\n").encode())
        self.environment: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))

    def _supersede(self, stage: str, recipe: Recipe) -> None:
        """Set aside what `stage` and later ones left: nothing is ever deleted.

        Args:
            stage: the first stage to redo.
            recipe: by which it was done; its method may have left files of its own.
        """
        names = list(STAGES)
        outputs = {name: outputs for name, (outputs, _) in STAGES.items()}
        outputs["train"] = (*plugin("methods", recipe.train.method).outputs, *outputs["train"])
        found = [
            self.path / output
            for later in names[names.index(stage) :]
            for output in outputs[later]
            if (self.path / output).exists()
        ]
        if not found:
            return
        shelf = self.path / "superseded"
        with writing(shelf):
            shelf.mkdir(mode=0o700, exist_ok=True)
            taken = [int(path.name) for path in shelf.iterdir() if path.name.isdigit()]
            place = shelf / f"{max(taken, default=0) + 1:03}"
            place.mkdir(mode=0o700)
            shutil.copy2(self.path / "recipe.yaml", place / "recipe.yaml")
            # The last stage first: a crash on the way leaves a folder that can go on.
            for path in reversed(found):
                path.rename(place / path.name)
            for folder in (place, shelf, self.path):
                sync(folder)
        self.log(f"redone from {stage}; what was there is in {place.relative_to(self.path)}")

    def _append(self, name: str, line: str) -> None:
        try:
            with open(self.path / name, "a+b", opener=private) as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(0, end - 1))
                # A line that a crash has torn is ended first, so that it spoils nothing but itself.
                start = b"" if file.read(1) in (b"", b"\n") else b"\n"
                file.write(start + line.encode("utf-8", "replace") + b"\n")
        except OSError as error:
            raise failed_write(self.path / name, error) from error

    def _lines(self, name: str) -> Iterable[str]:
        path = self.path / name
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _not_locked(folder: Path, error: OSError) -> SetbacksError:
    """Say in one line why a folder could not be locked and what to do."""
    if error.errno not in _NO_LOCKS:
        return failed_write(folder / ".lock", error)
    return InputError(
        f"{folder}: this file system refuses a lock ({error.strerror}), which keeps two processes "
        "from writing at once; choose a folder on another disk with --out"
    )


def environment() -> dict[str, Any]:
    """Return what a run depends on besides its recipe: versions and hardware; no host or user."""
    names = ("setbacks", "torch", "transformers", "trl", "peft", "datasets", "accelerate")
    return {
        "python": platform.python_version(),
        "platform": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "packages": {name: metadata.version(name) for name in names},
    }


def _stage_of(key: str, also: Sequence[str] = ()) -> str:
    """The first stage that a recipe's key is told to; training may read `also` these."""
    top = key.partition(".")[0]
    if key.startswith(tuple(also)):
        return "train"
    return next((stage for stage, (_, keys) in STAGES.items() if top in keys), "induce")


def _differences(old: Any, new: Any, path: str = "") -> Iterable[tuple[str, str, str]]:
    """Yield (key, old, new) for each place in which two recipes differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old | new:
            parts = old.get(key, ABSENT), new.get(key, ABSENT)
            yield from _differences(*parts, f"{path}.{key}".strip("."))
    elif old != new:
        yield path, _shown(old), _shown(new)


def _shown(value: Any) -> str:
    if value is ABSENT:
        return "(not there)"
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return str(text).removesuffix("...\n").strip()
