"""Private by default, and several processes: what a whole run leaves, and who may read it when."""

import os
import stat
import subprocess
import sys
import time

import pytest
import yaml

from setbacks.files import write_atomic
from setbacks.pipeline import carry_out, open_run
from setbacks.recipe import Recipe
from setbacks.runs.folder import RunFolder

CANARY = "canary-5b1e0c77"


def test_what_a_run_leaves_is_its_owners_alone(recipe, fake_model, tmp_path):
    """Whatever the user's umask: mistakes, analyses, answers, verdicts, the report."""
    previous = os.umask(0)
    try:
        with RunFolder(tmp_path / "drawn", recipe()) as run:
            carry_out(run, "analyze")
        judged = recipe(evaluate=[{"name": "a", "model": fake_model("talker")}])
        with RunFolder(tmp_path / "judged", judged) as run:
            carry_out(run, "report")
        with open_run(tmp_path / "judged", judged, redo="judge"):
            pass
    finally:
        os.umask(previous)
    made = [path for name in ("drawn", "judged") for path in (tmp_path / name).rglob("*")]
    assert {"mistakes.jsonl", "analyses.jsonl", "a.jsonl", "a.llm.jsonl", "report.html"} <= {
        path.name for path in made
    }
    for path in made:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_secrets_of_the_environment_are_in_no_file_and_no_line(
    cli, cli_in_process, environment, recipe_data, tmp_path, monkeypatch
):
    """Not the keys that the run uses (`test_endpoint.py` has these): any that are there."""
    names = ("HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "PGPASSWORD")
    for name in names:
        environment[name] = f"{CANARY}-{name}"
        monkeypatch.setenv(name, environment[name])
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_data("broken")))
    (tmp_path / "sound.yaml").write_text(yaml.safe_dump(recipe_data()))
    ran = [
        cli("run", "recipe.yaml", "--out", "run", "--debug"),
        cli("run", "sound.yaml", "--out", "sound", "analyze.min_words=190", "--debug"),
        cli_in_process("doctor"),
        cli_in_process("doctor", "--json"),
    ]
    assert "Traceback" in ran[0].stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "mistakes.jsonl" for path in files)
    for text in [*(done.stdout + done.stderr for done in ran), *(p.read_text() for p in files)]:
        assert CANARY not in text


# Several processes ------------------------------------------------------------------------------

WRITE = """
import sys
from pathlib import Path
from setbacks.files import write_atomic
for number in range(300):
    write_atomic(Path(sys.argv[1]), b"%d\\n" % number * 20_000)
"""


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "report.html"
    write_atomic(path, b"0\n" * 20_000)
    seen = set()
    with subprocess.Popen([sys.executable, "-c", WRITE, str(path)]) as writer:
        while writer.poll() is None:
            lines = path.read_bytes().splitlines()
            assert len(lines) == 20_000 and len(set(lines)) == 1
            seen.add(lines[0])
    assert writer.returncode == 0 and len(seen) > 1


START = """
import sys
from pathlib import Path
from setbacks.errors import InputError
from setbacks.recipe import Recipe
from setbacks.runs.folder import RunFolder
sys.stdin.readline()
try:
    with RunFolder(Path(sys.argv[1]), Recipe(seed=int(sys.argv[2]))) as run:
        print("mine", flush=True)
        sys.stdin.readline()
except InputError as error:
    print(error)
"""


def test_of_several_that_start_at_once_one_has_the_folder(tmp_path):
    """They race for a folder that is not there yet; its recipe is the winner's, whole."""
    folder = tmp_path / "run"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", START, str(folder), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(4)
    ]
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    said = {seed: racer.stdout.readline() for seed, racer in enumerate(racers)}
    for racer in racers:
        racer.communicate("\n", timeout=60)
        assert racer.returncode == 0
    (winner,) = [seed for seed, line in said.items() if line == "mine\n"]
    others = [line for seed, line in said.items() if seed != winner]
    assert all("another setbacks process" in line for line in others), others
    assert Recipe.load(folder / "recipe.yaml").seed == winner


def test_a_second_comparison_of_a_folder_is_refused(
    cli, command, environment, recipe_data, tmp_path
):
    """And so is a run in the folder of an arm at work; the first one goes on."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_data("sleeper")))
    words = ["compare", "recipe.yaml", "--methods", "mistake_analysis,sft", "--out", "both", "-q"]
    first = subprocess.Popen([*command, *words], cwd=tmp_path, env=environment)
    try:
        arm = tmp_path / "both/arms/mistake_analysis.0"
        while not (arm / "recipe.yaml").exists():
            assert first.poll() is None
            time.sleep(0.1)
        for other in (words, ["report", arm]):
            ran = cli(*other)
            (line,) = ran.stderr.splitlines()
            assert ran.returncode == 2 and "another setbacks process" in line, line
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()


@pytest.mark.parametrize(
    "words", [["chat", "run", "--prompt", "<x>"], ["export", "run", "--to", "o"]]
)
def test_who_only_reads_beside_a_run_is_told_what_is_missing(cli, tmp_path, recipe_data, words):
    """No lock is needed to read; what is not there yet is said in one line."""
    with RunFolder(tmp_path / "run", Recipe.model_validate(recipe_data())):
        ran = cli(*words)
    assert ran.returncode == 2 and len(ran.stderr.splitlines()) == 1, ran.stderr
    assert "adapter" in ran.stderr
