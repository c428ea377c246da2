"""Nothing lost, nothing twice: power cuts, disks that fail, clocks that jump, Ctrl-C, kills."""

import builtins
import errno
import io
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from setbacks.errors import InputError, SetbacksError
from setbacks.pipeline import carry_out
from setbacks.runs import journal
from setbacks.runs.folder import RunFolder

ROOT = Path(__file__).parents[2]
TELL_THE_TIME = {"costs.jsonl", "run.log", ".lock", "environment.json"}


@pytest.fixture
def method(recipe):
    """A recipe that draws mistakes and has them analyzed, in batches of two."""
    return _small(recipe())


@pytest.fixture
def evaluation(recipe, fake_model):
    """A recipe that has two models answer, and judges them."""
    arms = [{"name": name, "model": fake_model(name)} for name in ("talker", "shouter")]
    return _small(recipe(evaluate=arms))


def _small(recipe):
    return type(recipe).parse(
        _with_batches_of_two(recipe.model_dump(mode="json")), "the test's recipe"
    )


def _with_batches_of_two(data):
    if isinstance(data, dict):
        return {
            key: 2 if key == "batch_size" and "engine" in data else _with_batches_of_two(value)
            for key, value in data.items()
        }
    return [_with_batches_of_two(value) for value in data] if isinstance(data, list) else data


@pytest.fixture(params=["method", "evaluation"])
def work(request):
    """Carry out a recipe in a folder, or go on with it: up to the last step without a model."""
    recipe = request.getfixturevalue(request.param)
    until = "analyze" if request.param == "method" else "judge"

    def do(folder, on_progress=None):
        with RunFolder(folder, recipe) as run:
            carry_out(run, until, on_progress)
        return contents(folder)

    return do


def contents(folder):
    """Every file that must end the same."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in TELL_THE_TIME
    }


def records(folder):
    """How many whole records a folder holds."""
    return sum(
        path.read_bytes().count(b"\n")
        for path in folder.rglob("*.jsonl")
        if path.name not in TELL_THE_TIME
    )


# A power cut ------------------------------------------------------------------------------------


class Durable:
    """What a power cut leaves, by the letter of POSIX: what was synced, and nothing else.

    A file's bytes are those at its last fsync; it is there if its folder was synced since it got
    its name. Real file systems keep more.
    """

    def __init__(self, monkeypatch):
        self.files, self.folders = {}, {}
        sync = os.fsync

        def fsync(descriptor):
            sync(descriptor)
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            inode = path.stat().st_ino
            if path.is_dir():
                self.folders[inode] = {
                    p.name: (p.stat().st_ino, p.is_dir()) for p in path.iterdir()
                }
            else:
                self.files[inode] = path.read_bytes()

        monkeypatch.setattr(os, "fsync", fsync)

    def lay_out(self, folder, place):
        """Make in `place` what is left of `folder`."""

        def lay(inode, place):
            place.mkdir()
            for name, (inner, is_folder) in self.folders.get(inode, {}).items():
                if is_folder:
                    lay(inner, place / name)
                else:
                    (place / name).write_bytes(self.files.get(inner, b""))

        lay(folder.stat().st_ino, place)
        return place


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux for a file's name")
def test_what_was_shown_as_done_survives_a_power_cut(work, tmp_path, monkeypatch):
    """The power goes each time that progress is shown; each time the run goes on to its end."""
    whole = work(tmp_path / "whole")
    shown, cuts = {}, []
    with monkeypatch.context() as patch:
        disk = Durable(patch)

        def show(what, done, total):
            shown[what] = done
            left = disk.lay_out(tmp_path / "run", tmp_path / f"left-{len(cuts)}")
            assert records(left) >= sum(shown.values()), (what, done)
            cuts.append(left)

        assert work(tmp_path / "run", show) == whole
    assert len(cuts) > 5
    for left in cuts:
        assert work(left) == whole


@pytest.mark.parametrize("hole", [b"", b"\0" * 7, b"\0" * 4096, b"\xff\x00{", b"\0" * 50 + b"\n"])
def test_a_tail_that_never_reached_the_disk_is_made_again(work, tmp_path, hole):
    """The last batch at every byte, and behind it what some file systems leave: zeros, garbage."""
    whole = work(tmp_path / "run")
    name = max(name for name in whole if name.endswith(".jsonl"))
    lines = whole[name].splitlines(keepends=True)
    first = len(whole[name]) - sum(map(len, lines[-2:]))
    lengths = range(first, len(whole[name]))
    for length in random.Random(hole).sample(lengths, 6):
        (tmp_path / "run" / name).write_bytes(whole[name][:length] + hole)
        assert work(tmp_path / "run") == whole, length


# A disk that fails ------------------------------------------------------------------------------


class Disk:
    """A disk that fails at the n-th thing that it is asked, once or from then on.

    A write that fails has written the first half before, as the system does it.
    """

    def __init__(self, monkeypatch, root, at=0, code=errno.EIO, once=True):
        self.calls = 0

        def ask(path):
            if not str(path).startswith(str(root)):
                return
            self.calls += 1
            if at and (self.calls == at or (self.calls > at and not once)):
                raise OSError(code, os.strerror(code), str(path))

        class Raw(io.FileIO):
            failure = None

            def write(self, data):
                if self.failure:
                    failure, self.failure = self.failure, None
                    raise failure
                try:
                    ask(self.name)
                except OSError as error:
                    self.failure = error
                    return super().write(bytes(data)[: len(data) // 2])
                return super().write(data)

        def opening(path, mode="r", *rest, opener=None, **more):
            if opener is not journal.private:
                return real_open(path, mode, *rest, opener=opener, **more)
            ask(path)
            raw = Raw(str(path), mode.replace("b", ""), opener=opener)
            return (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)

        def asking(name):
            real = getattr(os, name)

            def call(path, *rest, **more):
                shown = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path
                if not (name == "mkdir" and os.path.isdir(shown)):  # there is nothing to do
                    ask(shown)
                return real(path, *rest, **more)

            return call

        real_open = builtins.open
        for name in ("fsync", "truncate", "mkdir", "replace", "rename"):
            monkeypatch.setattr(os, name, asking(name))
        monkeypatch.setattr(builtins, "open", opening)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux for a file's name")
@pytest.mark.parametrize(
    ("code", "once"),
    [(errno.ENOSPC, False), (errno.EIO, True), (errno.EIO, False)],
    ids=["full", "fails once", "is gone"],
)
@pytest.mark.parametrize("share", [0.06, pytest.param(1.0, marks=pytest.mark.long)])
def test_a_disk_that_fails_loses_nothing(work, tmp_path, monkeypatch, code, once, share):
    """At writes, syncs, truncations and renames: one line, and the same command goes on."""
    with monkeypatch.context() as patch:
        count = Disk(patch, tmp_path / "whole")
        whole = work(tmp_path / "whole")
    every = range(1, count.calls + 1)
    chosen = sorted(random.Random(code).sample(every, round(share * len(every))))
    assert len(chosen) > 2
    for at in chosen:
        folder = tmp_path / f"run-{at}"
        with monkeypatch.context() as patch:
            Disk(patch, folder, at, code, once)
            with pytest.raises(SetbacksError) as error:
                work(folder)
        said = str(error.value)
        assert "\n" not in said and str(folder) in said, at
        assert "disk is full" in said or "cannot be" in said, (at, said)
        before = records(folder)
        assert work(folder) == whole, at
        assert records(folder) >= before


@pytest.fixture
def read_only(tmp_path):
    """Make a folder read-only: by a mount, since root may write whatever its mode says."""
    mounted = []

    def make(folder):
        if os.geteuid():
            folder.chmod(0o500)
        elif subprocess.run(["mount", "--bind", "-o", "ro", folder, folder]).returncode:
            pytest.skip("cannot mount here")
        else:
            subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        mounted.append(folder)

    yield make
    for folder in mounted:
        if os.geteuid():
            folder.chmod(0o700)
        else:
            subprocess.run(["umount", folder], check=True)


def test_a_read_only_folder_is_told(work, tmp_path, read_only):
    whole = work(tmp_path / "run")
    (tmp_path / "new").mkdir()
    for folder in (tmp_path / "run", tmp_path / "new"):
        read_only(folder)
        with pytest.raises(InputError, match="no permission to write here") as error:
            work(folder)
        assert "\n" not in str(error.value)
    assert contents(tmp_path / "run") == whole


# A clock that jumps -----------------------------------------------------------------------------


def test_a_clock_that_jumps_changes_nothing(work, tmp_path, monkeypatch):
    whole = work(tmp_path / "whole")
    chance = random.Random(0)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: chance.uniform(0, 4e9))
        patch.setattr(time, "monotonic", lambda: chance.choice([5.0, 5.0, 5.0]))
        assert work(tmp_path / "run") == whole
    rows = [json.loads(line) for line in (tmp_path / "run/costs.jsonl").read_text().splitlines()]
    assert rows and all(row["seconds"] >= 0 for row in rows)


# Ctrl-C, twice ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("pause", [0.0, 0.02, 0.2])
def test_ctrl_c_twice_leaves_whole_batches_and_no_traceback(
    pause, recipe_data, command, environment, cli, tmp_path
):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_data("sleeper")))
    with subprocess.Popen(
        [*command, "run", "recipe.yaml", "--out", "run", "-q"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        path = tmp_path / "run" / "mistakes.jsonl"
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.05)
        before = path.read_bytes()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in said and len(said.splitlines()) <= 1, said
    assert path.read_bytes() == before != b""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


# Kills ------------------------------------------------------------------------------------------


def crash(recipe, command, kills, place, env=None):
    """Kill a command again and again (benchmarks/crash.py); return the kills and the ends."""
    words = [sys.executable, "benchmarks/crash.py", "--recipe", recipe, "--command", command]
    words += ["--methods", "mistake_analysis,dpo", "--kills", str(kills), "--json", place]
    ran = subprocess.run([*map(str, words)], cwd=ROOT, env=env)
    found = json.loads(place.read_text())[command]
    assert ran.returncode == 0, found["ends"]
    return found["kills"], found["ends"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "compare"])
def test_a_few_kills_end_in_the_same_bytes(command, tiny, recipe_data, environment, tmp_path):
    """A whole run and a whole comparison, on the tiny model."""
    model = {"model": str(tiny), "dtype": "float32", "device": "cpu", "batch_size": 2}
    training = {"steps": 4, "batch_size": 2, "checkpoint_every": 1, "lora": {"r": 2}}
    recipe = recipe_data(model=model)
    recipe["train"] |= training
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    kills, ends = crash(tmp_path / "recipe.yaml", command, 5, tmp_path / "c.json", environment)
    assert len(kills) == 5 and not any(end["different"] for end in ends)


@pytest.mark.slow
def test_a_killed_loop_of_three_rounds_ends_in_the_same_bytes(loop_recipe, environment, tmp_path):
    (tmp_path / "recipe.yaml").write_text(loop_recipe().to_yaml())
    kills, ends = crash(tmp_path / "recipe.yaml", "loop", 8, tmp_path / "c.json", environment)
    assert len(kills) == 8 and not any(end["different"] for end in ends)
    met = {kill["stage"].partition(" ")[0] for kill in kills}
    assert len(met) > 1, met


@pytest.mark.long
@pytest.mark.parametrize(("command", "kills"), [("run", 60), ("compare", 40)])
def test_a_hundred_kills_end_in_the_same_bytes(command, kills, tmp_path):
    """On the embedded model, by the smallest recipe that does everything."""
    made, ends = crash("recipes/ci.yaml", command, kills, tmp_path / "crash.json")
    assert len(made) == kills and not any(end["different"] for end in ends)
