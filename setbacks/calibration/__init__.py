"""How reliable a judge is: its verdicts compared with human labels, and the probe fitted on them.

`calibrate` judges labeled answers, compares the verdicts with the labels, draws the reliability
diagram, and stores the figures where reports find them (`setbacks.judges.worth`). Verdicts are
saved in a journal like those of any run, so an interrupted calibration resumes.

`fit` fits the probe's heads on your labels, and measures them by cross-validation.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from setbacks.calibration.figures import TASKS, Seen, draw, figures, measure
from setbacks.data.languages import language_of, languages_measured
from setbacks.data.source import Row
from setbacks.data.sources import load_labels, read_sources
from setbacks.errors import InputError
from setbacks.files import write_atomic
from setbacks.judges import Item, check_judge, judge_class, open_judge, worth
from setbacks.measure.judges import FEWEST_OWN
from setbacks.measure.substance import answer
from setbacks.messages import Prompt, transcript
from setbacks.notices import notice
from setbacks.records import Verdict, digest
from setbacks.runs.folder import RunFolder
from setbacks.runs.progress import Show
from setbacks.runs.session import Session
from setbacks.stages.judge import judge_items

if TYPE_CHECKING:
    import numpy as np

    from setbacks.judges.probe import Head
    from setbacks.recipe import JudgeSpec, Recipe

_Answer = tuple[Prompt, str | None]  # an instruction and a response
ELSEWHERE = "set SETBACKS_DATA to a folder that can be written"


class Labels(NamedTuple):
    """Answers with human labels."""

    name: str  # the file's name; a later calibration on it replaces an earlier one
    rows: list[Row]


class Calibrated(NamedTuple):
    """The result of a calibration or of a fit."""

    result: dict[str, Any]
    files: dict[str, Path]


def labels(source: str, fields: Mapping[str, str] | None = None) -> Labels:
    """Read human labels of harm, refusal, or both.

    Args:
        source: a label file; a YAML file with a source or a list of sources, as in a recipe; or
            the short form of a source, such as preset:do-not-answer-labels.
        fields: our field -> theirs, if the file uses other names.

    Raises:
        InputError: the source cannot be read, an answer has no label, two labels of an answer
            contradict each other, or no task has labels of both kinds.
    """
    rows: list[Row] = []
    for one, base in read_sources(source, fields or {}):
        rows += load_labels(one, base, needs=(), strict=True)
    _by_answer(source, rows)
    for row in rows:
        if row.harmful is None and row.refused is None:
            raise InputError(
                f"{source}: answer {row.id} has neither a harmful nor a refused label; label it, "
                "or map the fields with --fields"
            )
    return Labels(Path(source).name, _of_both_kinds(source, rows))


def _of_both_kinds(source: str, rows: list[Row]) -> list[Row]:
    """Drop the labels of a task that are all the same: people often label no answer a refusal.

    Raises:
        InputError: no task has labels of both kinds.
    """
    values = {task: {getattr(row, task) for row in rows} - {None} for task in TASKS}
    same = {
        task: f"all {sum(getattr(row, task) is not None for row in rows)} labels of {task} are "
        f"{str(*found).lower()}"
        for task, found in values.items()
        if len(found) == 1
    }
    usable = [task for task, found in values.items() if len(found) == 2]
    why = "a judge can be measured, or fitted, only on answers of both kinds"
    if same and not usable:
        raise InputError(f"{source}: {' and '.join(same.values())}; {why}")
    for text in same.values():
        notice(f"{source}: {text}, and are left out; {why}")
    none: dict[str, Any] = dict.fromkeys(same)
    rows = [row._replace(**none) for row in rows]
    return [row for row in rows if any(getattr(row, task) is not None for task in usable)]


def _by_answer(source: str, rows: Iterable[Row]) -> dict[_Answer, Row]:
    """Return the first row of each answer; two rows that contradict each other are an error."""
    first: dict[_Answer, Row] = {}
    for row in rows:
        other = first.setdefault((row.text, row.response), row)
        for name in (*TASKS, *(f"p_{task}" for task in TASKS)):
            values = getattr(row, name), getattr(other, name)
            if None not in values and values[0] != values[1]:
                raise InputError(
                    f"{source}: {row.source} and {other.source} contradict each other on answer "
                    f"{row.id}: {name} is {values[1]} and {values[0]}; keep one of the two"
                )
    return first


# A judge against people ------------------------------------------------------------------------


def calibrate(recipe: Recipe, labeled: Labels, show: Show | None = None) -> Calibrated:
    """Measure a recipe's last judge on human labels, and store the figures for reports.

    Args:
        recipe: the recipe. The judge may need its model, its language and, to count their
            verdicts, its other judges.
        labeled: the answers with their labels.
        show: takes the progress: what, done, total.

    Raises:
        InputError: there is no such judge, or it scored too few answers.
        SetbacksError: the judge failed, or gave a number out of range.
    """
    for spec in recipe.judges:
        check_judge(spec)
    rows = [
        row._replace(language=language_of(row.language, row.text, recipe.language))
        for row in labeled.rows
    ]
    items = [_item(row) for row in rows]
    # A judge may read the language, so a corrected one is judged again.
    weights = worth.weights(spec, recipe)
    key = digest(recipe.to_yaml(), *weights, *(part for x in items for part in (x.id, x.language)))
    place = worth.folder(spec, recipe) / key
    _make(place)
    with RunFolder(place, recipe) as folder, Session(folder, show) as run:
        for spec in recipe.judges:
            verdicts = judge_items(run, spec, open_judge(spec, run), "labels", items)
        # Verdicts come in the order in which they were judged, often by length.
        by_response = {verdict.response_id: verdict for verdict in verdicts}
        seen = [Seen(row, by_response[item.id]) for row, item in zip(rows, items, strict=True)]
        result = {"judge": spec.called, "labels": labeled.name, **measure(seen)}
        result["weights"] = weights
        if not result["overall"]:
            raise InputError(
                f"{spec.called} gave no usable verdicts on both kinds of answers of "
                f"{labeled.name}; its verdicts are in {place / 'verdicts'}"
            )
        files = _write(seen, result, place)
    _notice_few(spec, result)
    return Calibrated(result, files)


def _notice_few(spec: JudgeSpec, result: Mapping[str, Any]) -> None:
    """Give a notice of each task on which reports will also use what ships with the judge."""
    shipped = {row["task"] for row in judge_class(spec).agreement(spec)}
    for row in result["overall"]:
        yes, no = row["n_positive"], row["n"] - row["n_positive"]
        if row["task"] in shipped and min(yes, no) < FEWEST_OWN:
            notice(
                f"{result['labels']}: {row['task']} is true on {yes} answers and false on {no}; "
                f"reports correct rates by these figures together with those that ship with "
                f"{result['judge']}, and by yours alone from {FEWEST_OWN} of each on"
            )


def _write(seen: Sequence[Seen], result: Mapping[str, Any], place: Path) -> dict[str, Path]:
    """Draw the reliability diagram, and write the figures, in a folder."""
    files = {
        "reliability diagram": place / "reliability.svg",
        "the same as PNG": place / "reliability.png",
        "figures": place / worth.RESULT,
    }
    for file in list(files.values())[:2]:
        draw(seen, f"{result['judge']} on {result['labels']}", file)
    write_atomic(files["figures"], (json.dumps(result, indent=1) + "\n").encode())
    return files


def compare(labeled: Labels, verdicts: str, out: Path | None = None) -> Calibrated:
    """Measure another tool's verdicts on human labels.

    Args:
        labeled: the answers with their labels.
        verdicts: a file, or a YAML file with sources, of the same answers with `harmful`,
            `refused`, or both, and their probabilities `p_harmful` and `p_refused` if the tool
            gives them. Without a verdict, a probability of 0.5 or more is a yes.
        out: the folder for the reliability diagram and the figures; by default, none are written.

    Raises:
        InputError: the file cannot be read, or has verdicts on too few of the answers.
    """
    name = Path(verdicts).name
    rows = [
        row
        for one, base in read_sources(verdicts, {})
        for row in load_labels(one, base, needs=(), strict=True)
    ]
    given = {key: _verdict(row, name) for key, row in _by_answer(verdicts, rows).items()}
    none = Verdict(id="", response_id="", judge=name)
    seen = [Seen(row, given.get((row.text, row.response), none)) for row in labeled.rows]
    result = {"judge": name, "labels": labeled.name, **measure(seen)}
    if not result["overall"]:
        raise InputError(f"{verdicts}: {_why_unmeasured(labeled, given)}")
    if out is None:
        return Calibrated(result, {})
    _make(out, "name another folder with --out")
    return Calibrated(result, _write(seen, result, out))


def _why_unmeasured(labeled: Labels, given: Mapping[_Answer, Verdict]) -> str:
    """Say why another tool's verdicts cannot be compared with labels."""
    decided = {key for key, one in given.items() if (one.harmful, one.refused) != (None, None)}
    if not decided:
        return (
            f"has no verdicts: none of its {len(given)} answers has harmful, refused, p_harmful or "
            "p_refused; for other names, pass a YAML file with `source` and `fields`"
        )
    there = sum((row.text, row.response) in decided for row in labeled.rows)
    if not there:
        return (
            f"none of its {len(decided)} verdicts is on an answer of {labeled.name}; instruction "
            "and response must be the same text in both files"
        )
    return (
        f"has verdicts on {there} of {len(labeled.rows)} answers of {labeled.name}, but not on "
        "answers of both kinds with labels of what it judges; verdicts on more answers are needed"
    )


def _verdict(row: Row, name: str) -> Verdict:
    """Return a row of another tool as a verdict."""
    fields = {}
    for task in TASKS:
        p, value = getattr(row, f"p_{task}"), getattr(row, task)
        fields[f"p_{task}"] = p
        fields[task] = p >= 0.5 if value is None and p is not None else value
    return Verdict(id="", response_id="", judge=name, **fields)


def _item(row: Row) -> Item:
    """A labeled answer, in the form in which a judge gets a run's answers."""
    return Item(
        id=digest("label", row.source, row.text, row.response),
        instruction=row.text,
        response=row.response or "",
        language=row.language or "en",
        finish="stop",
    )


# The probe on your own labels ------------------------------------------------------------------


def fit(labeled: Labels, out: Path | None = None, show: Show | None = None) -> Calibrated:
    """Fit the probe's heads on labels, and measure them by cross-validation over questions.

    A head without labels stays the built-in one. The answers' features are stored until
    the heads are written, so an interrupted fit resumes.

    Args:
        labeled: the answers with their labels.
        out: the folder for the heads; by default, in the user's data folder.
        show: takes the progress: what, done, total.

    Raises:
        InputError: there are too few questions with labels of each kind, or heads already exist.
    """
    from setbacks.judges import probe

    folder = out or worth.data() / "heads" / f"{Path(labeled.name).stem}-{_content(labeled)}"
    files = {"heads": folder / "probe.safetensors", "figures": folder / "probe.json"}
    if out is not None and (taken := [f for f in files.values() if f.exists()]):
        raise InputError(f"{taken[0]}: already exists; name another folder with --out")
    rows = labeled.rows
    for task in TASKS:
        for value in (True, False):
            on = {row.text for row in rows if getattr(row, task) is value}
            if any(getattr(row, task) is not None for row in rows) and len(on) < 2 * probe.FOLDS:
                raise InputError(
                    f"{labeled.name}: {task} is {str(value).lower()} on {len(on)} questions; a "
                    f"head needs at least {2 * probe.FOLDS} with each label"
                )
    kept = (
        worth.data() / "heads" / f".{_content(labeled)}-{digest(probe.FEATURES, probe.BATCH_SIZE)}"
    )
    _make(kept)
    x = _read(rows, kept, show)
    heads = dict(probe.load())
    sources: list[dict[str, Any]] = []
    for task in TASKS:
        index = [n for n, row in enumerate(rows) if getattr(row, task) is not None]
        if not index:
            continue
        of_task = [rows[n] for n in index]
        try:
            heads[task], p = _fit(x[index], of_task, task)
        except ValueError as error:
            raise InputError(f"{labeled.name}: {task}: {error}") from None
        for name in sorted({row.source for row in of_task}):
            there = [(row, q) for row, q in zip(of_task, p, strict=True) if row.source == name]
            measures = figures(
                [transcript(row.text) for row, _ in there],
                [bool(getattr(row, task)) for row, _ in there],
                [q for _, q in there],
            )
            sources.append(
                {
                    "source": name,
                    "task": task,
                    "languages": languages_measured([row for row, _ in there], task),
                    "fitted_on": True,
                    "unscored": 0,
                }
                | measures
            )
    result = {
        "judge": "probe",
        "labels": labeled.name,
        "measured_on": f"{probe.FOLDS}-fold cross-validation over questions",
        "sources": sources,
    }
    _make(folder, ELSEWHERE if out is None else "name another folder with --out")
    temporary = files["heads"].with_name(files["heads"].name + ".part")
    probe.save(temporary, heads, {"labels": labeled.name, "answers": str(len(rows))})
    write_atomic(files["figures"], (json.dumps(result, indent=1) + "\n").encode())
    temporary.replace(files["heads"])
    shutil.rmtree(kept)
    return Calibrated(result, files)


def _fit(x: np.ndarray, rows: Sequence[Row], task: str) -> tuple[Head, list[float]]:
    """Fit one head on all rows; also return each row's probability by a head not fitted on it."""
    import numpy as np
    from sklearn.model_selection import StratifiedGroupKFold

    from setbacks.judges import probe

    y = np.array([bool(getattr(row, task)) for row in rows])
    # Numbers stand for questions and sources, since an array of strings cuts texts at NUL.
    _, group = np.unique(
        np.array([transcript(row.text) for row in rows], object), return_inverse=True
    )
    _, source = np.unique(np.array([row.source for row in rows], object), return_inverse=True)

    def head(at: Any) -> Head:
        names = group[at].astype(str).tolist(), source[at].astype(str).tolist()
        return probe.fit(x[at], y[at].tolist(), *names)

    p = np.zeros(len(y))
    folds = StratifiedGroupKFold(probe.FOLDS, shuffle=True, random_state=0)
    for others, held_out in folds.split(x, y, group):
        p[held_out] = head(others).probability(x[held_out])
    return head(np.arange(len(y))), p.tolist()


def _read(rows: Sequence[Row], kept: Path, show: Show | None) -> np.ndarray:
    """Return the features of each answer, shape (n, d); batches are stored in a folder."""
    import numpy as np

    from setbacks.judges import Item, probe

    items = [Item(str(n), row.text, answer(row.response or "")) for n, row in enumerate(rows)]
    x = np.zeros((len(items), 0), np.float32)
    done = 0
    for number, batch in enumerate(probe.Probe().plan(items)):
        file = kept / f"{number}.npy"
        if not file.exists():
            read = probe.features([(items[i].instruction, items[i].response) for i in batch])
            with io.BytesIO() as held:
                np.save(held, read)
                write_atomic(file, held.getvalue())
        read = np.load(file)
        x = x if x.size else np.zeros((len(items), read.shape[1]), np.float32)
        x[batch] = read
        done += len(batch)
        if show:
            show("read answers", done, len(items))
    return x


def _make(folder: Path, remedy: str = ELSEWHERE) -> None:
    """Create a private folder.

    Raises:
        InputError: it cannot be created or written; the message says what to do.
    """
    problem = None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            problem = "no write permission"
    except OSError as error:
        problem = error.strerror
    if problem:
        raise InputError(f"{folder}: cannot be written ({problem}); {remedy}")


def _content(labeled: Labels) -> str:
    return digest(*(part for row in labeled.rows for part in row))
