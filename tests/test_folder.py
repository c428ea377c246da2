"""Run folders: private, one writer, one recipe, and nothing is ever deleted."""

import errno
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from setbacks.data import Source
from setbacks.errors import InputError, SetbacksError
from setbacks.files import write_atomic
from setbacks.notices import notice
from setbacks.pipeline import open_run, run_until
from setbacks.recipe import Engine, Recipe
from setbacks.records import Completion, Record
from setbacks.runs.folder import Run, RunFolder
from setbacks.runs.redo import STAGE_NAMES, check_name
from setbacks.runs.session import Session
from setbacks.stages import STAGES
from setbacks.studies.variants import each, variant


class Thing(Record):
    text: str


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def change(**overrides):
    return Recipe.model_validate(overrides)


# What every stage leaves, by docs/run-folder.md.
LEFT = {
    "induce": ["mistakes.jsonl"],
    "analyze": ["analyses.jsonl"],
    "preflight": ["preflight.jsonl", "flips.jsonl"],
    "train": [
        "training.jsonl", "loss.jsonl", "trained.json", "checkpoints", "snapshots", "adapter",
    ],
    "introspect": ["introspection.jsonl"],
    "respond": ["responses"],
    "judge": ["verdicts"],
    "report": ["metrics.json", "report.html"],
}  # fmt: skip


def fill(run):
    """Leave something of every stage, each file holding the path of itself."""
    for outputs in LEFT.values():
        for name in outputs:
            if "." in name:
                run.write_text(name, name)
            else:
                (run.path / name).mkdir(mode=0o700)
                run.write_text(f"{name}/inner", name)


def left(path):
    """What stages left in a folder."""
    names = {name for outputs in LEFT.values() for name in outputs}
    return {entry.name for entry in path.iterdir()} & names


# Opening ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("existing", [False, True], ids=["new", "existing and empty"])
def test_all_of_it_is_private(folder, existing):
    previous = os.umask(0)
    try:
        if existing:
            folder.mkdir(mode=0o755)
        with RunFolder(folder, Recipe()) as run:
            run.log("<a line>")
            run.spend("induce", 1.0, 1, 1, 1)
            run.write_text("metrics.json", "{}")
            journal = run.journal("responses/vanilla.jsonl", Thing)
            journal.write([Thing(id="1", text="<x>")])
    finally:
        os.umask(previous)
    made = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    assert set(made) == {
        ".lock", "costs.jsonl", "environment.json", "metrics.json", "recipe.yaml", "responses",
        "responses/vanilla.jsonl", "run.log",
    }  # fmt: skip
    for path in [folder, *made.values()]:
        assert mode(path) == (0o700 if path.is_dir() else 0o600), path


def test_the_folder_says_all_that_is_needed_to_do_it_again(folder):
    recipe = change(name="a name: with é\n", seed=3)
    with RunFolder(folder, recipe):
        pass
    assert Recipe.load(folder / "recipe.yaml") == recipe
    environment = json.loads((folder / "environment.json").read_text())
    assert set(environment["packages"]) >= {"setbacks", "torch", "transformers", "trl", "peft"}


def test_opened_again_it_takes_its_own_recipe(folder):
    with RunFolder(folder, change(seed=3)):
        pass
    with RunFolder(folder) as run:
        assert run.recipe.seed == 3


def test_relative_paths_mean_the_same_when_it_is_opened_again(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(instructions=[Source(source="data.jsonl")])
    with RunFolder(folder, recipe):
        pass
    with RunFolder(folder, recipe) as run:
        assert run.recipe.instructions[0].source in ("data.jsonl", str(tmp_path / "data.jsonl"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with RunFolder(folder) as run:
        assert run.recipe.instructions[0].source == str(tmp_path / "data.jsonl")


def test_the_environment_stays_that_of_the_first_opening(folder):
    with RunFolder(folder, Recipe()):
        pass
    (folder / "environment.json").write_text('{"python": "0.1"}')
    with RunFolder(folder) as run:
        assert run.environment == {"python": "0.1"}


def refusal(path, recipe=None, **opening):
    """Open what cannot be opened; return the message, which is one line."""
    with pytest.raises(InputError) as error, open_run(path, recipe, **opening):
        pass
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("<text>")
    assert "is a file" in refusal(tmp_path / "file", Recipe())
    assert "cannot be created" in refusal(tmp_path / "file" / "run", Recipe())
    assert (tmp_path / "file").read_text() == "<text>"


def test_a_folder_of_something_else_is_left_alone(folder):
    folder.mkdir()
    (folder / "thesis.tex").write_text("<text>")
    assert "not empty" in refusal(folder, Recipe())
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("made", [False, True])
def test_without_a_recipe_there_must_be_a_run(folder, made):
    if made:
        folder.mkdir()
    assert "recipe.yaml" in refusal(folder)
    assert folder.exists() is made


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_refused(folder):
    folder.mkdir(mode=0o500)
    assert "no permission to write" in refusal(folder, Recipe())


def test_leftovers_of_a_crash_while_it_was_made_do_not_hinder(folder):
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / "recipe.yaml.tmp").write_text("name: torn")
    with RunFolder(folder, Recipe()) as run:
        assert run.recipe == Recipe()


# One writer -------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from setbacks.recipe import Recipe
from setbacks.runs.folder import Run, RunFolder
with RunFolder(Path(sys.argv[1]), Recipe()):
    print("open", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_until_the_first_is_gone(folder):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "open\n"
        assert "another setbacks process" in refusal(folder, Recipe())
        assert "another setbacks process" in refusal(folder)
        holder.send_signal(signal.SIGKILL)
    finally:
        holder.kill()
        holder.communicate()
    with RunFolder(folder):
        pass


@pytest.mark.skipif(os.name != "posix", reason="POSIX locks")
@pytest.mark.parametrize(
    ("number", "says"),
    [
        *[
            (number, "this file system refuses a lock .*choose a folder on another disk with --out")
            for number in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ESTALE)
        ],
        (errno.EIO, ".lock: cannot be written"),
    ],
)
def test_a_file_system_without_locks_is_told(folder, monkeypatch, number, says):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(SetbacksError, match=f"^{re.escape(str(folder))}.*{says}"):
        RunFolder(folder, Recipe()).__enter__()


@pytest.mark.skipif(os.name != "posix", reason="POSIX locks")
def test_where_locks_do_not_exist_a_file_is_the_lock(folder, monkeypatch, recwarn):
    def refuse(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", refuse)
    with RunFolder(folder, Recipe()):
        assert "another setbacks process" in refusal(folder, Recipe())
    with RunFolder(folder):
        assert not recwarn.list


def test_a_folder_that_could_not_be_opened_is_not_locked(folder):
    with RunFolder(folder, Recipe()):
        pass
    refusal(folder, change(seed=1))
    with RunFolder(folder):
        pass


# Another recipe ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "shown", "stage"),
    [
        ({"seed": 7}, "seed: 0 -> 7", "induce"),
        ({"model": "a/b"}, "model.model: smollm2-135m -> a/b", "induce"),
        ({"analyze": {"candidates": 9}}, "analyze.candidates: 2 -> 9", "analyze"),
        ({"train": {"epochs": 5}}, "train.epochs: 2 -> 5", "train"),
        ({"respond": {"guidance": True}}, "respond.guidance: false -> true", "respond"),
        ({"judges": ["llm"]}, "judges.0.judge: probe -> llm", "judge"),
        (
            {"instructions": [{"source": "builtin:redteam", "split": "train", "limit": 10}]},
            "(instructions.0.limit: null -> 10);",
            "induce",
        ),
        (
            {"instructions": [{"source": "hub:a/b"}, {"source": "hub:a/c"}]},
            "-> [{source: 'hub:a/b', header: true, unique: false, skip: 0}, {source: 'hub:a/c',",
            "induce",
        ),
        ({"name": "other"}, "name: quickstart -> other", "report"),
        ({"study": {"alpha": None}}, "study.alpha: (not set) -> null", "report"),
        ({"name": "other", "train": {"epochs": 5}}, "train.epochs: 2 -> 5", "train"),
    ],
)
def test_another_recipe_is_refused_with_what_differs_and_where_to_redo(folder, data, shown, stage):
    with RunFolder(folder, Recipe()) as run:
        fill(run)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    message = refusal(folder, change(**data))
    assert shown in message and f"--from {stage}" in message
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_every_recipe_key_belongs_to_a_stage():
    """A changed key that no stage names would be taken for a change of the first stage."""
    named = [key for stage in STAGES for key in stage.keys if "." not in key]
    assert sorted(named) == sorted(Recipe.model_fields)


def test_the_stages_are_in_the_order_of_their_names():
    assert tuple(stage.name for stage in STAGES) == STAGE_NAMES


def test_a_user_who_is_not_there_has_no_home():
    with pytest.raises(InputError, match="~nobody-here.* has no home folder"):
        RunFolder(Path("~nobody-here/run"))


# Redoing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", LEFT)
def test_redoing_moves_a_stage_and_those_after_it_and_deletes_nothing(folder, stage):
    with RunFolder(folder, Recipe()) as run:
        fill(run)
    later = {name for outputs in list(LEFT.values())[[*LEFT].index(stage) :] for name in outputs}
    everything = left(folder)
    with open_run(folder, redo=stage):
        assert left(folder) == everything - later
        place = folder / "superseded" / "001"
        assert left(place) == later
        for name in later:
            kept = place / name
            assert (kept / "inner" if kept.is_dir() else kept).read_text() == name
        assert mode(place) == mode(place.parent) == 0o700
        assert mode(place / "recipe.yaml") == 0o600


def test_labels_of_people_stay_as_long_as_their_answers(folder):
    with RunFolder(folder, Recipe()) as run:
        fill(run)
        for name in ("sft.probe", "sft.human", "sft.human.probe"):  # the last arm has a dot
            run.write_text(f"verdicts/{name}.jsonl", name)
    files = {"inner", "sft.probe.jsonl", "sft.human.jsonl", "sft.human.probe.jsonl"}
    with open_run(folder, redo="judge"):
        assert {path.name for path in (folder / "verdicts").iterdir()} == {"sft.human.jsonl"}
    moved = folder / "superseded" / "001" / "verdicts"
    assert {path.name for path in moved.iterdir()} == files - {"sft.human.jsonl"}
    assert mode(moved) == 0o700
    with open_run(folder, redo="respond"):
        assert not (folder / "verdicts").exists()
    moved = folder / "superseded" / "002" / "verdicts"
    assert {path.name for path in moved.iterdir()} == {"sft.human.jsonl"}


def test_redoing_with_a_changed_recipe_keeps_the_old_one_beside_what_it_made(folder):
    with RunFolder(folder, Recipe()) as run:
        fill(run)
    changed = change(train={"epochs": 5})
    with open_run(folder, changed, redo="train") as run:
        assert run.recipe == changed
        earlier = ("induce", "analyze", "preflight")
        assert left(folder) == {name for stage in earlier for name in LEFT[stage]}
    assert Recipe.load(folder / "recipe.yaml") == changed
    assert Recipe.load(folder / "superseded" / "001" / "recipe.yaml") == Recipe()
    assert not (folder / "superseded" / "002").exists()


def test_redoing_from_later_than_the_change_is_refused(folder):
    with RunFolder(folder, Recipe()) as run:
        fill(run)
    everything = left(folder)
    message = refusal(folder, change(analyze={"candidates": 9}), redo="train")
    assert "--from analyze" in message
    assert left(folder) == everything


@pytest.mark.parametrize("key", [{"mistakes": 20}, {"flip_rate": "always"}])
def test_other_options_of_the_flip_rate_redo_it_and_no_training(folder, key):
    """Nothing but the report reads it."""
    with RunFolder(folder, Recipe()) as run:
        fill(run)
    everything, changed = left(folder), change(preflight=key)
    assert "--from report" in refusal(folder, changed)
    assert left(folder) == everything
    with open_run(folder, changed, redo="report"):
        assert everything - left(folder) == {"flips.jsonl", "metrics.json", "report.html"}
    assert (folder / "superseded" / "001" / "flips.jsonl").read_text() == "flips.jsonl"
    with open_run(folder, changed, redo="preflight"):
        assert left(folder) == {"mistakes.jsonl", "analyses.jsonl"}


def test_redoing_the_training_sets_aside_what_its_method_left(folder):
    with RunFolder(folder, change(train={"method": "critique_revise"})) as run:
        run.write_text("revisions.jsonl", "<a revision>")
        run.write_text("notes.jsonl", "<nobody's>")
    with open_run(folder, change(train={"method": "sft"}), redo="train"):
        assert not (folder / "revisions.jsonl").exists(), "another method must not find it"
        assert (folder / "notes.jsonl").exists()
    kept = folder / "superseded" / "001" / "revisions.jsonl"
    assert kept.read_text() == "<a revision>"


def test_every_redoing_has_a_place_of_its_own(folder):
    for round_ in range(3):
        with open_run(folder, Recipe(), redo="report") as run:
            run.write_text("metrics.json", str(round_))
    with open_run(folder, redo="report"):
        pass
    kept = sorted((folder / "superseded").rglob("metrics.json"))
    assert [path.read_text() for path in kept] == ["0", "1", "2"]


def test_redoing_after_an_old_place_was_removed(folder):
    for text in "ab":
        with open_run(folder, Recipe(), redo="report") as run:
            run.write_text("metrics.json", text)
    with open_run(folder, redo="report"):
        pass
    (folder / "superseded" / "001" / "metrics.json").unlink()
    (folder / "superseded" / "001" / "recipe.yaml").unlink()
    (folder / "superseded" / "001").rmdir()
    with RunFolder(folder) as run:
        run.write_text("metrics.json", "c")
    with open_run(folder, redo="report"):
        assert not (folder / "metrics.json").exists()
    kept = sorted((folder / "superseded").rglob("metrics.json"))
    assert sorted(path.read_text() for path in kept) == ["b", "c"]


def test_redoing_an_unknown_stage_names_the_nearest(folder):
    assert 'Did you mean "analyze"' in refusal(folder, Recipe(), redo="analyse")
    assert not folder.exists()


# Costs, files -----------------------------------------------------------------------------------


def test_costs_are_summed_by_stage_in_the_stages_order(folder):
    with RunFolder(folder, Recipe()) as run:
        run.spend("judge", 1.5, 1, 0, 0)
        run.spend("induce", 0.25, 2, 10, 100)
        run.spend("induce", 0.5, 3, 20, 200)
        assert run.costs() == [
            {
                "stage": "induce",
                "seconds": 0.75,
                "records": 5,
                "prompt_tokens": 30,
                "tokens": 300,
            },
            {"stage": "judge", "seconds": 1.5, "records": 1, "prompt_tokens": 0, "tokens": 0},
        ]


def test_a_torn_line_of_costs_loses_itself_alone(folder):
    with RunFolder(folder, Recipe()) as run:
        assert run.costs() == []
        run.spend("induce", 1, 1, 1, 1)
        line = (folder / "costs.jsonl").read_text()
        for length in range(1, len(line) - 1):
            (folder / "costs.jsonl").write_text(line + line[:length])
            run.spend("induce", 2, 2, 2, 2)
            assert [cost["records"] for cost in run.costs()] == [3], line[:length]


def test_a_whole_file_is_the_old_one_or_the_new_one(tmp_path):
    path = tmp_path / "metrics.json"
    write_atomic(path, b"old")
    (tmp_path / "metrics.json.tmp").write_bytes(b"a crash left this, and it is longer")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.json"]
    with pytest.raises(SetbacksError, match="cannot be written"):
        write_atomic(tmp_path / "missing" / "metrics.json", b"new")


def test_progress_is_shown_only_for_what_is_on_disk(folder):
    shown = []

    def show(what, done, total):
        path = folder / "things.jsonl"
        lines = path.read_bytes().splitlines() if path.exists() else []
        shown.append((what, done, total, len(lines)))

    work = [Thing(id=str(n), text="<x>") for n in range(5)]
    batches = [work[:2], work[2:4], work[4:]]
    with RunFolder(folder, Recipe()) as opened, Session(opened, show) as run:
        journal = run.journal("things.jsonl", Thing)
        work = run.work(journal, "induce", batches, "(again)")
        for batch in work:
            work.commit(batch, batch, [Completion("<x>", "stop", 10, 1)])
        assert shown == [("induce (again)", n, 5, n) for n in (0, 2, 4, 5)]
        (cost,) = opened.costs()
        assert (cost["records"], cost["prompt_tokens"], cost["tokens"]) == (5, 30, 3)


def test_the_recipe_in_the_folder_is_yaml_for_people(folder):
    with RunFolder(folder, change(name="ordinary")):
        pass
    text = Path(folder / "recipe.yaml").read_text()
    assert text.startswith("name: ordinary\n") and yaml.safe_load(text)["name"] == "ordinary"


# Reading ----------------------------------------------------------------------------------------


def state(folder):
    """What is in a folder, and when it was last written."""
    return {
        path.relative_to(folder).as_posix(): (
            path.stat().st_mtime_ns,
            None if path.is_dir() else path.read_bytes(),
        )
        for path in folder.rglob("*")
    }


def begin(run):
    """Leave two records, a cost and a notice in an open run."""
    journal = run.journal("responses/vanilla.jsonl", Thing)
    journal.write([Thing(id=id_, text="<x>") for id_ in "ab"])
    run.spend("induce", 1, 2, 3, 4)
    run.note("<a notice>")


def test_reading_needs_no_lock_and_writes_nothing(folder):
    with RunFolder(folder, change(seed=3)) as writer:
        begin(writer)
        before = state(folder)
        run = Run(folder)
        assert run.recipe == writer.recipe and run.environment == writer.environment
        assert [thing.id for thing in run.records("responses/vanilla.jsonl", Thing)] == ["a", "b"]
        assert run.records("mistakes.jsonl", Thing) == []
        assert [arm.name for arm in run.arms()] == ["vanilla"]
        assert run.notices() == ["<a notice>"]
        assert run.costs() == writer.costs() != []
        assert state(folder) == before


def test_a_value_may_win_over_the_recipe_of_a_run_that_is_read(folder):
    with RunFolder(folder, change(seed=3)):
        pass
    assert Run(folder, ["seed=5"]).recipe.seed == 5
    assert Run(folder).recipe.seed == 3


@pytest.mark.parametrize("torn", [b'{"id":"c","te', b"\xc3", b"\0\0\0"])
def test_lines_that_are_being_written_are_left_out(folder, torn):
    with RunFolder(folder, Recipe()) as writer:
        begin(writer)
    for name in ("responses/vanilla.jsonl", "costs.jsonl", "run.log"):
        with open(folder / name, "ab") as file:
            file.write(torn)
    before, run = state(folder), Run(folder)
    assert [thing.id for thing in run.records("responses/vanilla.jsonl", Thing)] == ["a", "b"]
    assert run.notices() == ["<a notice>"] and [row["records"] for row in run.costs()] == [2]
    assert state(folder) == before


WRITE = """
import sys
from pathlib import Path
from test_folder import Thing
from setbacks.recipe import Recipe
from setbacks.runs.folder import Run, RunFolder
batches = [[Thing(id=str(n), text="<x>" * 9999)] for n in range(300)]
with RunFolder(Path(sys.argv[1]), Recipe()) as run:
    journal = run.journal("things.jsonl", Thing)
    print("open", flush=True)
    for batch in journal.pending(batches):
        journal.commit(batch, batch)
"""


def test_a_run_is_read_while_another_process_writes_to_it(folder):
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])},
    )
    try:
        assert writer.stdout.readline() == "open\n"
        run, numbers = Run(folder), []
        while writer.poll() is None:
            ids = [thing.id for thing in run.records("things.jsonl", Thing)]
            assert ids == [str(n) for n in range(len(ids))]
            numbers.append(len(ids))
    finally:
        writer.kill()
        writer.communicate()
    assert numbers == sorted(numbers) and len(set(numbers)) > 2
    assert len(run.records("things.jsonl", Thing)) == 300


@pytest.fixture
def as_a_reader():
    """Give a folder that somebody may read and not write, and be that somebody."""
    place = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    me = os.geteuid()

    def become():
        for path in [place, *place.rglob("*")]:
            path.chmod((0o500 if path.is_dir() else 0o400) if me else 0o755)
        if me == 0:
            os.seteuid(65534)

    yield place / "run", become
    os.seteuid(me)
    for path in [place, *place.rglob("*")]:
        path.chmod(0o700)
    shutil.rmtree(place)


def test_somebody_who_may_only_read_reads(as_a_reader):
    folder, become = as_a_reader
    with RunFolder(folder, Recipe()) as run:
        begin(run)
    become()
    with pytest.raises(PermissionError):
        (folder / "run.log").open("a")
    run = Run(folder)
    assert len(run.records("responses/vanilla.jsonl", Thing)) == 2
    assert [arm.name for arm in run.arms()] == ["vanilla"]
    assert run.notices() == ["<a notice>"] and run.costs()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_somebody_who_may_not_read_is_told(as_a_reader):
    folder, become = as_a_reader
    with RunFolder(folder, Recipe()):
        pass
    become()
    os.seteuid(0)
    folder.chmod(0o700)
    os.seteuid(65534)
    with pytest.raises(InputError, match="run: cannot be read .Permission denied.$"):
        Run(folder)


@pytest.mark.parametrize("made", [False, True])
def test_a_folder_without_a_recipe_is_not_a_run(folder, made):
    if made:
        folder.mkdir()
    with pytest.raises(InputError, match="run: not a run folder .no recipe.yaml.$"):
        Run(folder)
    assert folder.exists() is made


# Notices ----------------------------------------------------------------------------------------


def test_a_notice_is_kept_once_by_the_run_that_is_open(folder, caplog):
    first, second = folder / "first", folder / "second"
    notice("<before any run>")
    with RunFolder(first, Recipe()) as outer:
        notice("<of the first\x1b[2J\n>")
        with RunFolder(second, Recipe()) as inner:
            notice("<of the second>")
        notice("<of the first\x1b[2J\n>")
    notice("<after all>")
    assert outer.notices() == ["<of the first [2J >"]
    assert inner.notices() == ["<of the second>"]
    with RunFolder(first) as again:
        notice("<of the first\x1b[2J\n>")
        again.log("<no notice>")
        assert again.notices() == ["<of the first [2J >"]
    said = [record.message for record in caplog.records]
    assert said == ["<before any run>", *outer.notices(), "<of the second>", "<after all>"]


def test_an_option_of_another_method_is_noticed_in_a_run_but_not_in_a_comparison(recipe, tmp_path):
    """The methods of a comparison share one section, so each variant holds options of others."""
    data = recipe(train={"method": "sft", "openings": False, "epochs": 2})
    run_until(data, tmp_path / "run", "induce")
    notices = [
        "train.openings is an option of dpo, mistake_distillation, rlhf; sft does not use it"
    ]
    assert Run(tmp_path / "run").notices() == notices
    ((_, path),) = each(tmp_path, [variant(data, "sft", {})], "induce")
    assert Run(path).recipe.train.unused() and Run(path).notices() == []
    used = recipe(train={"method": "mistake_distillation", "openings": False})
    assert used.train.unused() == []


def test_a_stage_that_does_not_exist_is_told_with_those_that_do():
    with pytest.raises(InputError, match='unknown stage "judgement".* Available: induce, analyze'):
        check_name("judgement")


@pytest.mark.parametrize(
    "more", [{}, {"judges": ["refusal", {"judge": "llm", "engine": {}}]}], ids=["model", "judge"]
)
def test_a_run_that_began_with_smaller_batches_goes_on_with_them(folder, more):
    """With another size, an unfinished batch would be generated again, with other rounding."""
    today = Recipe(**more)
    with RunFolder(folder, today, stages=STAGES):
        pass
    file = folder / "recipe.yaml"
    written = file.read_text()
    assert written.count("batch_size: 256") == 1 + len(more)
    file.write_text(written.replace("batch_size: 256", "batch_size: 128"))
    with RunFolder(folder, today, stages=STAGES) as run:
        assert {engine.batch_size for engine in run.recipe.parts(Engine)} == {128}
    other = Recipe(**more, model={"batch_size": 64})
    with (
        pytest.raises(InputError, match="model.batch_size"),
        RunFolder(folder, other, stages=STAGES),
    ):
        pass
