"""Training in two processes learns what one process learns; the run folder has one writer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from setbacks.errors import InputError
from setbacks.recipe import Recipe, Train
from setbacks.runs.folder import RunFolder
from setbacks.training import processes

CONFIGURATIONS = Path(__file__).resolve().parents[1] / "recipes/accelerate"


# What follows the run is for the one process that has a report.
SCRIPT = """
import atexit
import sys

import torch

import setbacks

atexit.register(lambda: print(f"connected: {torch.distributed.is_initialized()}"))
report = setbacks.run(setbacks.Recipe.load(sys.argv[1]), sys.argv[2])
print(f"reported in {report.path}")
"""


@pytest.fixture
def recipe_data(tiny, data):
    def make(**train):
        return {
            "model": {"model": str(tiny), "dtype": "float32", "device": "cpu"},
            "train": {
                "method": "sft",
                "safe": [str(data)],
                "helpful": [str(data)],
                "batch_size": 4,
                "epochs": 3,
                "checkpoint_every": 2,
                "learning_rate": 0.01,
            }
            | train,
        }

    return make


def launch(words, together=True):
    """Run Python with two processes, or with one; return what they printed."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [sys.executable, *(torchrun if together else []), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"},
    )


@pytest.fixture
def launched(recipe_data, tmp_path):
    """Train in a folder with two processes, or with one; return what the command printed."""

    def call(folder, together, **train):
        with RunFolder(tmp_path / folder, Recipe.model_validate(recipe_data(**train))):
            pass
        return launch(["-m", "setbacks", "train", tmp_path / folder, "--quiet"], together)

    return call


def curve(folder):
    lines = (folder / "loss.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(launched, tmp_path):
    from safetensors.torch import load_file

    for folder, together in (("one", False), ("two", True)):
        said = launched(folder, together)
        assert said.returncode == 0, said.stderr
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert len(one) == len(two) == 9
    assert two == pytest.approx(one, rel=1e-3)
    assert one[-1] < 0.9 * one[0]
    weights = [
        load_file(tmp_path / folder / "adapter/adapter_model.safetensors")
        for folder in ("one", "two")
    ]
    for name, value in weights[0].items():
        assert (value - weights[1][name]).abs().max() < 1e-2 * value.abs().max(), name
    left = {path.name for path in (tmp_path / "two").iterdir()}
    assert left == {path.name for path in (tmp_path / "one").iterdir()}


# One example of four has a teacher, so that in some steps only one process asks it.
DISTILL = """
import sys
from pathlib import Path

from setbacks.methods import example, open_method
from setbacks.recipe import Recipe
from setbacks.records import Message, Teaching
from setbacks.runs.folder import RunFolder
from setbacks.runs.session import Session
from setbacks.training import processes
from setbacks.training.follower import Follower

recipe, folder = Recipe.load(sys.argv[1]), Path(sys.argv[2])
teacher = Teaching(prompt=[Message(role="user", content="Answer harmlessly: <q>")])
examples = [example("correction", "<q>", "<an answer>", [], teacher)]
examples += [example("safe", f"<q {i}>", "<an answer>", []) for i in range(3)]


def fit(run):
    open_method(recipe).fit(run, examples, folder / "adapter")


if processes.rank():
    processes.meet()
    fit(Follower(folder))
else:
    with RunFolder(folder, recipe) as opened, Session(opened) as run:
        processes.meet()
        fit(run)
processes.part()
"""


@pytest.mark.slow
def test_two_processes_learn_a_teachers_distributions_as_one_does(recipe_data, tmp_path):
    recipe, script = tmp_path / "recipe.yaml", tmp_path / "script.py"
    data = recipe_data(method="mistake_distillation", distill="forward_kl", epochs=6)
    recipe.write_text(yaml.safe_dump(data))
    script.write_text(DISTILL)
    for folder, together in (("one", False), ("two", True)):
        result = launch([script, recipe, tmp_path / folder], together)
        assert result.returncode == 0, result.stderr
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert len(one) == 6 and two == pytest.approx(one, rel=1e-3)
    rows = [json.loads(line) for line in (tmp_path / "one/loss.jsonl").read_text().splitlines()]
    mixed = {"loss_safe", "divergence_correction"}
    assert any(mixed <= row.keys() for row in rows), "a step in which one process has no teacher"


@pytest.fixture
def whole(recipe_data, data, tmp_path):
    """A recipe of the whole method, from training to a report, in a file."""
    recipe = recipe_data(epochs=1) | {
        "decontaminate": None,  # the same rows are learned and tested
        "respond": {
            "guidance": False,
            "sampling": {"max_new_tokens": 4},
            "suites": [{"name": "s", "kind": "safe", "sources": [str(data)]}],
        },
        "judges": ["llm"],
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.slow
def test_a_script_in_two_processes_does_what_the_command_does(whole, tmp_path):
    """One process writes the folder and returns; the other trains along and ends."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = launch(["-m", "setbacks", "run", whole, "--out", tmp_path / "by_command", "--quiet"])
    assert command.returncode == 0, command.stderr
    called = launch([script, whole, tmp_path / "by_script"])
    assert called.returncode == 0, called.stderr
    assert called.stdout.count("reported in") == 1
    assert called.stdout.count("connected: False") == 2, "a process that ends connected can abort"
    by_command, by_script = (contents(tmp_path / name) for name in ("by_command", "by_script"))
    assert by_script == by_command
    assert {"metrics.json", "report.html"} <= {p.name for p in (tmp_path / "by_script").iterdir()}


def contents(folder):
    """Every file whose bytes tell neither the time nor the place."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name not in ("costs.jsonl", "run.log", "metrics.json", "report.html")
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"batch_size": 3}, "3 examples cannot be divided evenly among 2 processes"),
        ({"method": "dpo"}, "dpo trains only in one process"),
    ],
    ids=["odd", "dpo"],
)
def test_what_cannot_be_shared_out_is_told_in_one_line(launched, train, said):
    done = launched("run", True, **train)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("setbacks:")]
    assert said in lines[-1] and len(lines) <= 2  # a line before says which stages run first


def test_a_step_is_shared_out_evenly(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes.share(Train(batch_size=8)) == 4
    with pytest.raises(InputError, match=r"train\.batch_size.*multiple of 2"):
        processes.share(Train(batch_size=7))


def test_processes_that_never_met_have_nothing_to_end(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # set by a scheduler, without what connects them
    processes.part()


def test_a_rank_that_something_else_has_set_makes_no_follower(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert processes.rank() == 0


def test_quantized_weights_without_a_gpu_are_told(cli_in_process):
    done = cli_in_process("run", "train.quantize=4bit", "model.device=cpu", "--out", "run")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]  # after lines on the model, if it had to be fetched
    assert last == "setbacks: train.quantize: 4bit needs a CUDA GPU; remove the option"


@pytest.mark.parametrize("path", sorted(CONFIGURATIONS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_configurations_are_such_as_accelerate_reads(path):
    from accelerate.commands.config.config_args import load_config_from_file

    data = load_config_from_file(str(path))
    assert data.num_processes == yaml.safe_load(path.read_text())["num_processes"] > 1
