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
from setbacks.training import processes

CONFIGURATIONS = Path(__file__).resolve().parents[1] / "recipes/accelerate"


@pytest.fixture
def launched(tiny, data, tmp_path):
    """Train in a folder with two processes, or with one; return what the command said."""

    def call(folder, together, **train):
        told = {
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
        from setbacks.runs.folder import RunFolder

        with RunFolder(tmp_path / folder, Recipe.model_validate(told)):
            pass
        launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
        begin = [sys.executable, "-m", *(launch if together else [])]
        return subprocess.run(
            [*begin, "setbacks", "train", str(tmp_path / folder), "--quiet"],
            capture_output=True,
            text=True,
            timeout=240,
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"},
        )

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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"batch_size": 3}, "3 examples cannot be shared out evenly among 2 processes"),
        ({"method": "dpo"}, "dpo trains in one process alone"),
    ],
    ids=["odd", "dpo"],
)
def test_what_cannot_be_shared_out_is_told_in_one_line(launched, train, said):
    done = launched("run", True, **train)
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("setbacks:")]
    assert said in line


def test_a_step_is_shared_out_evenly(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes.share(Train(batch_size=8)) == 4
    with pytest.raises(InputError, match=r"train\.batch_size.*multiple of 2"):
        processes.share(Train(batch_size=7))


def test_a_rank_that_something_else_has_set_makes_no_follower(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert processes.rank() == 0


def test_quantized_weights_without_a_gpu_are_told(typed):
    done = typed("run", "train.quantize=4bit", "model.device=cpu", "--out", "run")
    assert done.returncode == 2
    assert done.stderr == "setbacks: train.quantize: 4bit needs a CUDA GPU; leave it out\n"


@pytest.mark.parametrize("path", sorted(CONFIGURATIONS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_configurations_are_such_as_accelerate_reads(path):
    from accelerate.commands.config.config_args import load_config_from_file

    told = load_config_from_file(str(path))
    assert told.num_processes == yaml.safe_load(path.read_text())["num_processes"] > 1
