"""The command line, as a user meets it: exit codes, one line for an error, nothing loaded early."""

import json
import logging
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from setbacks import cli as cli_module
from setbacks.doctor import machine
from setbacks.recipe import Recipe

ROOT = Path(__file__).parents[1]


@pytest.fixture
def write(tmp_path, told):
    """Write a recipe for the rule-based engine, small enough to run to its judges; keys win."""

    def call(*args, name="recipe.yaml", **more):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(told(*args, **more)))
        return path

    return call


def fails(ran, *says, code=2):
    """Check that a command failed with one line that says all of this; return the line."""
    assert ran.returncode == code, ran.stderr
    assert len(ran.stderr.splitlines()) == 1, ran.stderr
    line = ran.stderr.rstrip("\n")
    assert line.startswith("setbacks: ")
    assert ran.stdout == ""
    for word in says:
        assert word in line
    return line


# Loading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["setbacks", "setbacks.cli", "setbacks.recipe"])
def test_importing_loads_nothing_heavy(module, environment):
    heavy = "torch transformers trl peft datasets matplotlib sklearn accelerate".split()
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[]\n"


def test_the_package_gives_its_names():
    import setbacks

    for name in setbacks.__all__:
        assert getattr(setbacks, name)
    with pytest.raises(AttributeError, match="nothing"):
        _ = setbacks.nothing


# Help -------------------------------------------------------------------------------------------


def test_help_names_the_commands(cli):
    ran = cli("--help")
    assert ran.returncode == 0 and ran.stderr == ""
    for name in ("run", "induce", "analyze", "train", "respond", "judge", "report", "new"):
        assert re.search(rf"\b{name}\b", ran.stdout)


def test_no_words_give_the_help_on_several_lines(cli):
    ran = cli()
    text = ran.stdout + ran.stderr
    assert "Usage" in text and len(text.splitlines()) > 10


def test_the_version(cli):
    import setbacks

    ran = cli("--version")
    assert (ran.returncode, ran.stdout) == (0, setbacks.__version__ + "\n")


# Bad input --------------------------------------------------------------------------------------


def test_an_unknown_command_or_option_is_told(cli):
    fails(cli("runn"), "runn")
    fails(cli("run", "--nothing"), "--nothing")
    fails(cli("induce"), "RUN")


def test_a_missing_recipe(cli, write):
    write(name="mine.yaml")
    fails(cli("run", "mime.yaml"), "mime.yaml", 'Did you mean "mine.yaml"?', "setbacks new")


def test_an_unknown_key(typed, write, tmp_path):
    path = write(trian={"epochs": 1})
    fails(typed("run", path, "--out", "run"), str(path), "trian", 'Did you mean "train"?')
    assert not (tmp_path / "run").exists()


def test_an_override_without_a_value(typed, write):
    fails(typed("run", write(), "train.epochs"), "train.epochs", "key.path=value")


def test_an_override_of_an_unknown_key(typed):
    fails(typed("run", "trian.epochs=3"), 'Did you mean "train"?')


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"prompt_text": "<x>"}\n', "prompt_text"),
        ("", "data.jsonl"),
        ('{"instruction": "<x>"}\n{"instruction": "<y>"}\n{"instr\n', "line 3"),
        ("\x00\x01", "data.jsonl"),
    ],
    ids=["wrong field", "empty", "half broken", "binary"],
)
def test_bad_data(typed, write, data, text, says):
    data.write_text(text)
    fails(typed("run", write(), "--out", "run"), "data.jsonl", says)


def test_missing_data(typed, write, data):
    fails(typed("run", write(instructions=["dota.jsonl"]), "--out", "run"), 'mean "data.jsonl"')


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"model": "smolm2-135m"}, 'Did you mean "smollm2-135m"?'),
        ({"model": {"engine": "lokal"}}, 'Did you mean "local"?'),
        ({"train": {"method": "mistake_analisis"}}, 'Did you mean "mistake_analysis"?'),
        ({"judges": ["prob"]}, 'Did you mean "probe"?'),
        ({"judges": [{"judge": "llm", "engine": {"engine": "lokal"}}]}, 'Did you mean "local"?'),
        ({"judges": [{"judge": "llm", "engine": "smolm2-135m"}]}, 'mean "smollm2-135m"?'),
        ({"analyze": {"analyst": {"model": "a", "engine": "lokal"}}}, 'Did you mean "local"?'),
    ],
    ids=[
        "model",
        "engine",
        "method",
        "judge",
        "judge's engine",
        "judge's model",
        "analyst's engine",
    ],
)
def test_an_unknown_name_is_told_before_any_work(typed, write, tmp_path, more, says):
    """A judge that is not there must not be missed after hours of training only."""
    fails(typed("run", write(**more), "--out", "run"), says)
    assert not (tmp_path / "run" / "mistakes.jsonl").exists()


def test_another_packages_engine_has_models_of_its_own(typed, write):
    """Only the engine knows what a judge of an engine that is no local one may be called."""
    path = write(judges=[{"judge": "llm", "engine": {"model": "rater", "engine": "rules"}}])
    ran = typed("run", path, "--out", "run", "-q", "analyze.min_words=190")
    fails(ran, "analyses passed its checks")


@pytest.mark.parametrize("where", ["suite", "contrast", "helpful"])
def test_data_that_is_not_there_is_told_before_any_work(typed, write, tmp_path, where):
    more = {
        "suite": {"respond": {"suites": [{"name": "a", "kind": "safe", "sources": ["no.jsonl"]}]}},
        "contrast": {"analyze": {"contrast": ["no.jsonl"]}},
        "helpful": {"train": {"helpful": ["no.jsonl"]}},
    }[where]
    fails(typed("run", write(**more), "--out", "run"), "no.jsonl")
    assert not (tmp_path / "run" / "mistakes.jsonl").exists()


def test_a_folder_of_another_recipe(typed, write, tmp_path):
    path = write()
    assert typed("run", path, "--out", "run", "analyze.min_words=190").returncode == 2
    before = (tmp_path / "run" / "mistakes.jsonl").read_bytes()
    line = fails(typed("run", path, "--out", "run"), "190 -> 12", "--out", "--from analyze")
    assert "analyze.min_words" in line
    assert (tmp_path / "run" / "mistakes.jsonl").read_bytes() == before


def test_an_unknown_stage(typed, write, tmp_path):
    ran = typed("run", write(), "--out", "run", "--from", "analyse")
    fails(ran, 'Did you mean "analyze"?')
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run(typed, write, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("<text>")
    fails(typed("run", write(), "--out", "thesis"), "not empty")
    fails(typed("induce", "thesis"), "recipe.yaml")
    fails(typed("induce", "nowhere"), "nowhere")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]


def test_a_damaged_journal(typed, write, tmp_path):
    assert typed("run", write(), "--out", "run", "analyze.min_words=190").returncode == 2
    path = tmp_path / "run" / "mistakes.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "{}\n", *lines[2:]]))
    fails(typed("induce", "run", "-q"), "mistakes.jsonl", "line 2", code=1)


# Work -------------------------------------------------------------------------------------------


def test_a_stage_does_what_is_missing(typed, write, tmp_path):
    assert typed("run", write(), "--out", "run", "analyze.min_words=190").returncode == 2
    ran = typed("induce", "run")
    assert ran.returncode == 0 and "induce" in ran.stdout
    assert "induce (attempt 1): 6/6" in ran.stderr
    ran = typed("induce", "run", "--quiet", "--json")
    assert ran.stderr == ""
    assert json.loads(ran.stdout) == {"stage": "induce", "folder": "run"}
    path = tmp_path / "run" / "mistakes.jsonl"
    before = path.read_bytes()
    assert typed("induce", "run", "--from", "induce", "-q").returncode == 0
    assert path.read_bytes() == before
    assert (tmp_path / "run" / "superseded" / "001" / "mistakes.jsonl").read_bytes() == before


def test_an_engine_that_breaks_is_one_line_and_a_traceback_only_on_demand(cli, write):
    path = write("broken")
    line = fails(cli("run", path, "--out", "run", "-q"), "the engine fell over", code=1)
    assert "--debug" in line
    for words in (["--debug", "run"], ["run", "--debug"]):
        ran = cli(*words, path, "--out", "run")
        assert ran.returncode == 1
        assert "Traceback" in ran.stderr and "the engine fell over" in ran.stderr
    ran = cli("--debug", "run", "no.yaml")
    assert "Traceback" in ran.stderr and "InputError" in ran.stderr


@pytest.fixture
def sleeper(command, environment, tmp_path, write):
    """A run that has committed one batch and sleeps in the next."""
    child = subprocess.Popen(
        [*command, "run", str(write("sleeper")), "--out", "run", "-q"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        path = tmp_path / "run" / "mistakes.jsonl"
        for _ in range(600):
            if path.exists() or child.poll() is not None:
                break
            time.sleep(0.1)
        assert path.exists(), child.communicate()
        yield child
    finally:
        child.kill()
        child.communicate()


def test_ctrl_c_is_one_line_and_keeps_what_was_done(sleeper, tmp_path):
    before = (tmp_path / "run" / "mistakes.jsonl").read_bytes()
    time.sleep(0.3)
    sleeper.send_signal(signal.SIGINT)
    out, err = sleeper.communicate(timeout=60)
    assert sleeper.returncode == 130 and out == ""
    (line,) = err.splitlines()
    assert line.startswith("setbacks: stopped") and "the same command" in line
    assert (tmp_path / "run" / "mistakes.jsonl").read_bytes() == before != b""


def test_a_second_process_on_the_folder(sleeper, cli, tmp_path):
    fails(cli("run", tmp_path / "recipe.yaml", "--out", "run"), "another setbacks process")
    fails(cli("report", "run"), "another setbacks process")
    assert sleeper.poll() is None


def test_a_librarys_line_is_printed_once_and_not_said_to_be_ours(typed, monkeypatch):
    def app(**_):
        theirs = logging.getLogger("some_library")
        monkeypatch.setattr(theirs, "handlers", [logging.StreamHandler()])
        theirs.warning("theirs")
        logging.getLogger("setbacks.stages").info("ours")

    monkeypatch.setattr(cli_module, "app", app)
    assert typed("run").stderr == "theirs\nsetbacks: ours\n"


# Other commands ---------------------------------------------------------------------------------


def test_new_writes_a_recipe_and_never_over_one(typed, tmp_path):
    ran = typed("new", "mine.yaml")
    assert ran.returncode == 0 and "setbacks run mine.yaml" in ran.stdout
    assert Recipe.load(tmp_path / "mine.yaml") == Recipe()
    (tmp_path / "mine.yaml").write_text("name: precious\n")
    fails(typed("new", "mine.yaml"), "mine.yaml", "exists")
    assert (tmp_path / "mine.yaml").read_text() == "name: precious\n"
    fails(typed("new", "no/such/folder/mine.yaml"), "cannot be written")


def test_doctor_says_what_there_is(typed):
    ran = typed("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(ran.stdout)}
    assert {"python", "torch", "engines", "smollm2-135m"} <= set(checks)
    assert checks["torch"]["ok"] and "rules" in checks["engines"]["found"]
    assert ran.returncode == (not all(c["ok"] for c in checks.values() if c["needed"]))
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(told["optional-dependencies"]) - {"test", "dev", "docs"}
    assert {name for name in checks if name.startswith("extra ")} == {f"extra {e}" for e in extras}


def test_doctor_tells_a_library_that_is_too_old_or_not_there():
    assert machine.problem(Requirement("pytest>=1")) == ""
    assert "pip install 'pytest>=999'" in machine.problem(Requirement("pytest>=999"))
    assert "not installed" in machine.problem(Requirement("no-such-library"))
