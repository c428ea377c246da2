"""The command line, as a user meets it: exit codes, one line for an error, nothing loaded early."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from test_preflight import flips_of

from setbacks import cli as cli_module
from setbacks.cli import judging, runs
from setbacks.cli.doctor import machine
from setbacks.errors import InputError
from setbacks.recipe import Recipe, Section
from setbacks.runs.folder import RunFolder
from setbacks.stages.preflight import Preflight

ROOT = Path(__file__).parents[1]


@pytest.fixture
def write(tmp_path, recipe_data):
    """Write a recipe for the rule-based engine, small enough to run to its judges; keys win."""

    def call(*args, name="recipe.yaml", **more):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(recipe_data(*args, **more)))
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


def test_an_unknown_key(cli_in_process, write, tmp_path):
    path = write(trian={"epochs": 1})
    fails(cli_in_process("run", path, "--out", "run"), str(path), "trian", 'Did you mean "train"?')
    assert not (tmp_path / "run").exists()


def test_an_override_without_a_value(cli_in_process, write):
    fails(cli_in_process("run", write(), "train.epochs"), "train.epochs", "key.path=value")


def test_an_override_of_an_unknown_key(cli_in_process):
    fails(cli_in_process("run", "trian.epochs=3"), 'Did you mean "train"?')


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
def test_bad_data(cli_in_process, write, data, text, says):
    data.write_text(text)
    fails(cli_in_process("run", write(), "--out", "run"), "data.jsonl", says)


def test_missing_data(cli_in_process, write, data):
    fails(
        cli_in_process("run", write(instructions=["dota.jsonl"]), "--out", "run"),
        'mean "data.jsonl"',
    )


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
def test_an_unknown_name_is_told_before_any_work(cli_in_process, write, tmp_path, more, says):
    """A judge that is not there must not be missed after hours of training only."""
    fails(cli_in_process("run", write(**more), "--out", "run"), says)
    assert not (tmp_path / "run" / "mistakes.jsonl").exists()


def test_another_packages_engine_has_models_of_its_own(cli_in_process, write):
    """Only the engine knows what a judge of an engine that is no local one may be called."""
    path = write(judges=[{"judge": "llm", "engine": {"model": "rater", "engine": "rules"}}])
    ran = cli_in_process("run", path, "--out", "run", "-q", "analyze.min_words=190")
    fails(ran, "analyses passed its checks")


@pytest.mark.parametrize("where", ["suite", "contrast", "helpful"])
def test_data_that_is_not_there_is_told_before_any_work(cli_in_process, write, tmp_path, where):
    more = {
        "suite": {"respond": {"suites": [{"name": "a", "kind": "safe", "sources": ["no.jsonl"]}]}},
        "contrast": {"analyze": {"contrast": ["no.jsonl"]}},
        "helpful": {"train": {"helpful": ["no.jsonl"]}},
    }[where]
    fails(cli_in_process("run", write(**more), "--out", "run"), "no.jsonl")
    assert not (tmp_path / "run" / "mistakes.jsonl").exists()


def test_a_folder_of_another_recipe(cli_in_process, write, tmp_path):
    path = write()
    assert cli_in_process("run", path, "--out", "run", "analyze.min_words=190").returncode == 2
    before = (tmp_path / "run" / "mistakes.jsonl").read_bytes()
    line = fails(
        cli_in_process("run", path, "--out", "run"), "190 -> 12", "--out", "--from analyze"
    )
    assert "analyze.min_words" in line
    assert (tmp_path / "run" / "mistakes.jsonl").read_bytes() == before


def test_a_mistake_in_the_recipe_shows_before_the_differences_to_the_folder(cli_in_process, write):
    """It would be the reason for them; without one, the line also says how to resume."""
    path = write()
    assert cli_in_process("run", path, "--out", "my run", "analyze.min_words=190").returncode == 2
    ran = cli_in_process("run", path, "--out", "my run", "judges=[prbe]")
    fails(ran, 'unknown judge "prbe". Did you mean "probe"?')
    fails(
        cli_in_process("run", path, "--out", "my run"), "as it is with `setbacks report 'my run'`"
    )


def test_a_folder_of_runs_in_place_of_a_run(cli_in_process, write, tmp_path):
    (tmp_path / "runs" / "b").mkdir(parents=True)
    fails(cli_in_process("report", "runs"), "no recipe.yaml); `setbacks run RECIPE --out runs`")
    cli_in_process("run", write(), "--out", "runs/a", "analyze.min_words=190")
    fails(
        cli_in_process("report", "runs"),
        "not a run folder, but it contains 1; name one, such as runs/a",
    )


@pytest.mark.parametrize("inner", ["arms/sft.0", "round-1"])
def test_a_stage_begins_no_run_among_those_of_a_comparison_or_loop(
    cli_in_process, write, tmp_path, inner
):
    """Such a folder has a recipe, too."""
    path = write()
    cli_in_process("run", path, "--out", f"several/{inner}", "analyze.min_words=190")
    (tmp_path / "several" / "recipe.yaml").write_text(path.read_text())
    before = sorted(tmp_path.rglob("*"))
    for words in (("report",), ("chat",), ("review", "serve")):
        ran = cli_in_process(*words, "several")
        fails(
            ran, f"several: not a run folder, but it contains 1; name one, such as several/{inner}"
        )
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unknown_stage(cli_in_process, write, tmp_path):
    ran = cli_in_process("run", write(), "--out", "run", "--from", "analyse")
    fails(ran, 'Did you mean "analyze"?')
    assert not (tmp_path / "run").exists()


def test_redoing_what_is_not_there(cli_in_process, write, tmp_path):
    ran = cli_in_process("run", write(), "--out", "new", "--from", "train")
    fails(ran, "new: no run to redo from train", "leave out --from")
    assert not (tmp_path / "new").exists()


def test_a_run_folder_in_place_of_a_recipe(cli_in_process, write, tmp_path):
    """The line says how to resume it; a folder without a run gets no such advice."""
    assert cli_in_process("run", write(), "--out", "my run", "analyze.min_words=190").returncode
    fails(cli_in_process("run", "my run"), "is a folder", "`setbacks report 'my run'`")
    (tmp_path / "empty").mkdir()
    assert fails(cli_in_process("run", "empty"), "is a folder").endswith("a recipe is a YAML file")


def test_an_unknown_option_of_a_study_lists_the_options(cli_in_process, write):
    ran = cli_in_process("study", "quantity-quality", write(), "study.nope=3", "--out", "study")
    fails(ran, 'unknown key "study.nope"', "Available: study.sizes, study.")
    with pytest.raises(InputError, match="Remove it: there are no options"):
        Recipe(study={"nope": 3}).options(Section)


def test_a_misspelled_judge_is_named_before_its_labels_are_read(cli_in_process):
    ran = cli_in_process("calibrate", "prob", "--labels", "no.csv")
    fails(ran, 'unknown judge "prob". Did you mean "probe"?', "Available")


def test_an_unknown_format_of_an_export(cli_in_process):
    ran = cli_in_process("export", "run", "--to", "out", "--format", "merge")
    fails(ran, 'unknown format "merge". Did you mean "merged"? Available: adapter, merged')


def test_a_folder_that_is_no_run(cli_in_process, write, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("<text>")
    fails(cli_in_process("run", write(), "--out", "thesis"), "not empty")
    fails(cli_in_process("induce", "thesis"), "recipe.yaml")
    fails(cli_in_process("induce", "nowhere"), "nowhere")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]


def test_a_damaged_journal(cli_in_process, write, tmp_path):
    assert cli_in_process("run", write(), "--out", "run", "analyze.min_words=190").returncode == 2
    path = tmp_path / "run" / "mistakes.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "{}\n", *lines[2:]]))
    fails(cli_in_process("induce", "run", "-q"), "mistakes.jsonl", "line 2", "(id: ", code=1)


# Work -------------------------------------------------------------------------------------------


def test_a_stage_does_what_is_missing(cli_in_process, write, tmp_path):
    assert cli_in_process("run", write(), "--out", "run", "analyze.min_words=190").returncode == 2
    ran = cli_in_process("induce", "run")
    assert ran.returncode == 0 and "induce" in ran.stdout
    assert "induce (attempt 1): 6/6" in ran.stderr
    ran = cli_in_process("induce", "run", "--quiet", "--json")
    assert ran.stderr == ""
    assert json.loads(ran.stdout) == {"stage": "induce", "folder": "run"}
    path = tmp_path / "run" / "mistakes.jsonl"
    before = path.read_bytes()
    assert cli_in_process("induce", "run", "--from", "induce", "-q").returncode == 0
    assert path.read_bytes() == before
    assert (tmp_path / "run" / "superseded" / "001" / "mistakes.jsonl").read_bytes() == before


def test_a_stage_takes_a_recipe_too(cli_in_process, write, tmp_path):
    ran = cli_in_process("induce", write(), "induce.attempts=1", "--out", "run", "-q")
    assert ran.returncode == 0 and ran.stdout == "induce: done, in run\n" and ran.stderr == ""
    before = (tmp_path / "run" / "mistakes.jsonl").read_bytes()
    assert cli_in_process("induce", "run", "-q").returncode == 0
    assert (tmp_path / "run" / "mistakes.jsonl").read_bytes() == before
    assert cli_in_process("induce", write(name="mine.yaml"), "-q").returncode == 0
    (made,) = (tmp_path / "runs").iterdir()
    assert (made / "mistakes.jsonl").exists()
    fails(cli_in_process("induce", "none.yaml"), "none.yaml")
    line = fails(cli_in_process("induce", "run", "induce.attempts=2"), "keeps its recipe")
    assert "`setbacks run run/recipe.yaml induce.attempts=2 --out run --from STAGE`" in line
    fails(cli_in_process("induce", "run", "--out", "other"), "--out goes with a recipe")


def test_a_stage_says_which_earlier_one_runs_first(cli_in_process, write):
    """Once, before that stage starts, and only where the command names the folder alone."""
    says = "the stage analyze is not finished, so it runs before preflight"
    assert cli_in_process("induce", write(), "--out", "run").returncode == 0
    shown = cli_in_process("preflight", "run").stderr
    assert shown.count(says) == 1 and shown.index(says) < shown.index("\nanalyze: ")
    assert "is not finished" not in cli_in_process("preflight", "run").stderr
    assert "is not finished" not in cli_in_process("analyze", write(), "--out", "new").stderr


def test_the_preflight_prints_the_auc(cli_in_process, tiny_recipe, write):
    recipe = tiny_recipe()
    recipe = recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"method": "mistake_analysis"})}
    )
    Path("mine.yaml").write_text(recipe.to_yaml())
    ran = cli_in_process("preflight", "mine.yaml", "--out", "run", "-q", "--json")
    printed = json.loads(ran.stdout)
    value, low, high = printed.pop("auc")
    assert 0 <= low <= value <= high <= 1
    assert printed == {"stage": "preflight", "folder": "run", "flips": None}
    assert (
        f"AUC of the model's own verdict: {value:.2f} ["
        in cli_in_process("preflight", "run").stdout
    )
    few = write(train={"method": "sft"})
    shown = cli_in_process("preflight", few, "--out", "few").stdout
    assert "AUC of the model's own verdict: skipped" in shown and "flip rate: skipped" in shown
    assert json.loads(cli_in_process("preflight", "few", "--json").stdout)["auc"] is None


def test_the_preflight_prints_the_flip_rates():
    flips = flips_of(none=30, guidance=45, analysis=57, shuffled=45)
    text, data = runs._flips(Preflight([], flips))
    assert "analysis: 95.0 [" in text and "analysis - shuffled: +20.0 points" in text
    assert data["n"] == 60 and data["rates"]["none"]["value"] == 0.5
    few = [flip for flip in flips if int(flip.response_id) < 9]
    assert runs._flips(Preflight([], few)) == ("flip rate: needs 10 mistakes", None)


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


def wait_for(there, child):
    """Wait until something is there that a process makes."""
    for _ in range(600):
        if there() or child.poll() is not None:
            break
        time.sleep(0.1)
    assert there(), child.communicate()


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
        wait_for(lambda: path.exists() and path.stat().st_size, child)
        yield child
    finally:
        child.kill()
        child.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_are_one_line_and_keep_what_was_done(sleeper, tmp_path, sent, code):
    before = (tmp_path / "run" / "mistakes.jsonl").read_bytes()
    time.sleep(0.3)
    sleeper.send_signal(sent)
    out, err = sleeper.communicate(timeout=60)
    assert sleeper.returncode == code and out == ""
    (line,) = err.splitlines()
    assert line.startswith("setbacks: stopped") and "the same command" in line
    assert (tmp_path / "run" / "mistakes.jsonl").read_bytes() == before != b""


def test_a_second_process_on_the_folder(sleeper, cli, tmp_path):
    fails(cli("run", tmp_path / "recipe.yaml", "--out", "run"), "another setbacks process")
    fails(cli("report", "run"), "another setbacks process")
    assert sleeper.poll() is None


# The command line, with a comparison of three evaluations in place of what it was asked for: the
# first one is over at once, and the others, each in a process of its own, sleep after a batch.
SIDE_BY_SIDE = """
import json, sys
from pathlib import Path
from setbacks import cli
from setbacks.recipe import Recipe
from setbacks.studies.variants import each, variant

told, models = json.loads(sys.argv.pop()), json.loads(sys.argv.pop())
variants = [
    variant(Recipe.model_validate(told), name, {"evaluate": [{"name": "arm", "model": model}]})
    for name, model in models.items()
]
cli.app = lambda **_: list(each(Path("cmp"), variants, "respond", jobs=2))
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_runs_side_by_side_end_with_the_command(
    recipe_data, fake_model, environment, tmp_path, sent
):
    models = {"a": fake_model("talker"), "b": fake_model("sleeper"), "c": fake_model("sleeper")}
    words = [json.dumps(models), json.dumps(recipe_data())]
    parent = subprocess.Popen(
        [sys.executable, "-c", SIDE_BY_SIDE, *words],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    folders = [tmp_path / "cmp" / "arms" / name for name in "bc"]
    try:
        wait_for(lambda: all((f / "responses" / "arm.jsonl").exists() for f in folders), parent)
        parent.send_signal(sent)
        _, err = parent.communicate(timeout=60)
    finally:
        parent.kill()
    if sent != signal.SIGKILL:
        assert parent.returncode == 128 + sent
        (line,) = err.splitlines()
        assert line.startswith("setbacks: stopped") and "the same command" in line
    # The folders are free at once; or soon, where nobody could wait for the children.
    deadline = time.monotonic() + (10 if sent == signal.SIGKILL else 0)
    for folder in folders:
        while in_use(folder):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert len((folder / "responses" / "arm.jsonl").read_bytes().splitlines()) == 4


def in_use(folder):
    try:
        with RunFolder(folder):
            return False
    except InputError as error:
        assert "another setbacks process" in str(error)
        return True


def test_a_librarys_line_is_printed_once_and_not_said_to_be_ours(cli_in_process, monkeypatch):
    def app(**_):
        theirs = logging.getLogger("some_library")
        monkeypatch.setattr(theirs, "handlers", [logging.StreamHandler()])
        theirs.warning("theirs")
        logging.getLogger("setbacks.stages").info("ours")

    monkeypatch.setattr(cli_module, "app", app)
    assert cli_in_process("run").stderr == "theirs\nsetbacks: ours\n"


# Terminals, pipes and locales -------------------------------------------------------------------

# The locale of a bare container, and Python told to stay with its encoding, which is ASCII.
BARE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture
def shell(command, environment, tmp_path):
    """Run the command line in a shell, where `$@` is the command and its words."""

    def call(script, *words, **more):
        return subprocess.run(
            ["sh", "-c", script, "sh", *command, *map(str, words)],
            cwd=tmp_path,
            env=environment | more,
            capture_output=True,
            encoding="utf-8",
            timeout=120,
        )

    (tmp_path / "a.jsonl").write_text('{"prompt": "<a>", "response": "<b>"}\n', encoding="utf-8")
    return call


ANSWERED = ["evaluate", "a.jsonl", "--suite", "harmful=a.jsonl", "--judge", "refusal"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX locales")
def test_in_a_locale_of_ascii_names_and_texts_stay_what_they_are(shell, tmp_path):
    (tmp_path / "ünï 试").mkdir()
    (tmp_path / "a.jsonl").replace(tmp_path / "ünï 试" / "a.jsonl")
    source = "ünï 试/a.jsonl"
    words = ["evaluate", source, "--suite", f"harmful={source}", "--judge", "refusal"]
    ran = shell('exec "$@"', *words, "name=试验 café", "-q", **BARE)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.endswith("report: runs/试验 café/report.html\n")
    assert Recipe.load(tmp_path / "runs" / "试验 café" / "recipe.yaml").name == "试验 café"


@pytest.mark.slow
def test_in_a_locale_of_ascii_a_model_is_trained_and_exported(shell, tiny_recipe, tmp_path):
    (tmp_path / "small.yaml").write_text(tiny_recipe(name="试验 café").to_yaml(), encoding="utf-8")
    for words in (
        ["run", "small.yaml", "--out", "run", "judges=[refusal]", "-q"],
        ["export", "run", "--to", "out", "--merge"],
    ):
        ran = shell('exec "$@"', *words, **BARE)
        assert ran.returncode == 0, ran.stderr
    for card in ("run/adapter/README.md", "out/README.md"):
        assert "试验 café" in (tmp_path / card).read_text(encoding="utf-8")


def test_what_the_output_cannot_encode_is_written_in_escapes(shell):
    ran = shell('exec "$@"', *ANSWERED, "--out", "试验", "-q", PYTHONIOENCODING="ascii")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.endswith("report: \\u8bd5\\u9a8c/report.html\n")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell")
def test_closed_streams_are_no_matter(shell, tmp_path):
    ran = shell('"$@" <&- >&- 2>&-', *ANSWERED, "--out", "run")
    assert ran.returncode == 0
    files = sorted(path.name for path in (tmp_path / "run").iterdir())
    shell('exec "$@"', *ANSWERED, "--out", "other")
    assert files == sorted(path.name for path in (tmp_path / "other").iterdir())
    for name in ("responses/a.jsonl", "verdicts/a.refusal.jsonl"):
        one, other = ((tmp_path / run / name).read_bytes() for run in ("run", "other"))
        assert one == other, "nothing that was printed got into a file"


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell")
def test_a_reader_who_leaves_is_no_error_of_many_lines(shell):
    script = '{ sleep 0.5; "$@"; echo $? >code; } | true; cat code'
    ran = shell(script, "--version", PYTHONUNBUFFERED="")
    assert (ran.stdout, ran.stderr) == ("1\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_output_that_finds_no_room_is_told(shell):
    ran = shell('exec "$@" > /dev/full', "--version", PYTHONUNBUFFERED="")
    fails(ran, "the output cannot be written (No space left on device)", code=1)


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_a_umask_takes_nothing_from_the_owner(shell, tmp_path):
    ran = shell('umask 777; exec "$@"', *ANSWERED, "--out", "run", "-q")
    assert ran.returncode == 0, ran.stderr
    for path in (tmp_path / "run").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)


# Other commands ---------------------------------------------------------------------------------


def test_new_writes_a_recipe_and_never_over_one(cli_in_process, tmp_path):
    ran = cli_in_process("new", "mine.yaml")
    assert ran.returncode == 0 and "setbacks run mine.yaml" in ran.stdout
    assert Recipe.load(tmp_path / "mine.yaml") == Recipe(name="mine")
    (tmp_path / "mine.yaml").write_text("name: precious\n")
    fails(cli_in_process("new", "mine.yaml"), "mine.yaml", "exists")
    assert (tmp_path / "mine.yaml").read_text() == "name: precious\n"
    fails(cli_in_process("new", "no/such/folder/mine.yaml"), "cannot be written")


def test_doctor_says_what_there_is(cli_in_process):
    ran = cli_in_process("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(ran.stdout)}
    assert {"python", "torch", "engines", "smollm2-135m"} <= set(checks)
    assert checks["torch"]["ok"] and "rules" in checks["engines"]["found"]
    assert ran.returncode == (not all(c["ok"] for c in checks.values() if c["needed"]))
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(data["optional-dependencies"]) - {"test", "dev", "docs"}
    assert {name for name in checks if name.startswith("extra ")} == {f"extra {e}" for e in extras}


def test_doctor_tells_a_library_that_is_too_old_or_not_there():
    assert machine.problem(Requirement("pytest>=1")) == ""
    assert "pip install 'pytest>=999'" in machine.problem(Requirement("pytest>=999"))
    assert "not installed" in machine.problem(Requirement("no-such-library"))


# Review -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run", "serve", "plan"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["--plan", "--labels", "2"], ["plan", "RUN", "--labels", "2"]),
        (["--export", "FILE", "--format", "csv"], ["export", "RUN", "FILE", "--format", "csv"]),
        (["--export=FILE"], ["export", "RUN", "FILE"]),
        (["--import", "FILE", "--as", "Ada"], ["import", "RUN", "FILE", "--as", "Ada"]),
    ],
)
def test_the_old_spelling_of_review_does_the_same_and_says_the_new_one(
    cli_in_process, answered, tmp_path, name, old, new
):
    answered({arm: [("harmful", "<q>", f"<{arm}>")] for arm in ("vanilla", "sft")}).rename(name)
    label = {"instruction": "<q>", "response": "<sft>", "harmful": True}
    file = tmp_path / "labels.jsonl"

    def outcome(words):
        file.write_text(json.dumps(label))
        ran = cli_in_process("review", *(word.replace("FILE", str(file)) for word in words))
        left = file.read_text()
        shutil.rmtree(Path(name, "review"), ignore_errors=True)
        shutil.rmtree(Path(name, "verdicts"), ignore_errors=True)
        return ran, left

    before, left_before = outcome([name, *old])
    after, left_after = outcome([name if word == "RUN" else word for word in new])
    assert (before.returncode, before.stdout) == (after.returncode, after.stdout)
    assert left_before == left_after
    (line,) = set(before.stderr.splitlines()) - set(after.stderr.splitlines())
    shown = line.split("`")[1].removeprefix("setbacks review ").split()
    own = {"RUN": name, "FILE": str(file)}
    assert shown[0] == new[0]
    assert sorted(shown) == sorted(own.get(word, word) for word in new)


@pytest.mark.parametrize(
    ("words", "translated"),
    [
        (["runs/x"], ["serve", "runs/x"]),
        (["runs/x", "--port", "0"], ["serve", "runs/x", "--port", "0"]),
        (["--port", "0", "run"], ["serve", "--port", "0", "run"]),
        (["plan"], ["serve", "plan"]),
        (["serve", "serve"], None),
        (["plan", "plan"], None),
        (["export", "run", "file"], None),
        (["serve"], None),
        (["pln", "run"], None),
        (["--help"], None),
        ([], None),
    ],
)
def test_an_old_spelling_of_review_is_told_from_a_command(tmp_path, monkeypatch, words, translated):
    """Of the folders, `plan` is a run, and `run` is there too; `serve` is not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "recipe.yaml").touch()
    (tmp_path / "run").mkdir()
    old = judging.is_old_review(words, ("serve", "plan", "export", "import"))
    assert (judging.new_review(words) if old else None) == translated


def test_review_offers_each_command_its_own_options(cli_in_process):
    fails(cli_in_process("review", "serve", "run", "--metric", "x"), "No such option: --metric")
    fails(
        cli_in_process("review", "pln", "run"),
        'unknown command "pln" of setbacks review. Did you mean "plan"? Available: serve, plan',
    )
    fails(cli_in_process("review", "labels", "r1"), "Available: serve, plan, export, import")
    fails(cli_in_process("review", "plan", "run", "--arms", "a"), "--arms a: name two")
