"""The cluster engine: the bytes of one process, also where a worker is killed in mid-work."""

import json
import os
import signal
import threading

import pytest

pytest.importorskip("ray")

from setbacks.engines import open_engine
from setbacks.errors import InputError
from setbacks.pipeline import carry_out
from setbacks.recipe import Engine, Recipe, Sampling
from setbacks.records import Request
from setbacks.runs.folder import RunFolder

pytestmark = pytest.mark.slow  # each worker is a process that loads torch

ANIMALS = "badger otter heron lizard salmon beetle gnat owl newt crane mole carp".split()
DRAWN = Sampling(max_new_tokens=8, temperature=1.0, top_p=0.95)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """A Ray of two cores of this machine, whatever runs on it besides."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def far(spec, **ray):
    data = {"engine": "ray", "ray": {"workers": 2} | ray, "batch_size": 2}
    return Engine.model_validate(spec.model_dump() | data)


def requests(number):
    return [Request(f"Write {n + 1} words on the {ANIMALS[n % 12]}.", n) for n in range(number)]


def pids(engine):
    """The processes of an engine's workers."""
    import ray

    asked = [worker.__ray_call__.remote(lambda _: os.getpid()) for worker in engine._workers]
    return ray.get(asked)


def test_a_group_is_whole_batches_of_one_process(spec):
    """The same batches in the same order, or the texts could differ in near-ties."""
    asked = requests(40)
    engine = far(spec)
    groups = open_engine(engine).plan(asked)
    alone = open_engine(engine.model_copy(update={"engine": "local", "ray": None})).plan(asked)
    assert [n for group in groups for n in group] == [n for batch in alone for n in batch]
    assert all(len(group) % 2 == 0 for group in groups) and len(groups) < len(alone)


def test_a_worker_that_is_killed_loses_nothing(spec):
    engine, here = open_engine(far(spec)), open_engine(spec)
    asked, long = requests(12), DRAWN.model_copy(update={"max_new_tokens": 40})
    engine.generate(asked[:4], Sampling(max_new_tokens=1))  # from here on the models are loaded
    before = pids(engine)
    # Stopped first: it gets its work, and cannot have finished it when it is killed.
    os.kill(before[0], signal.SIGSTOP)
    thread = threading.Timer(0.3, os.kill, (before[0], signal.SIGKILL))
    thread.start()
    made = engine.generate(asked, long)
    thread.join()
    after = pids(engine)
    assert before[0] != after[0] and before[1] == after[1]
    alone = [here.generate(asked[n : n + 2], long) for n in range(0, 12, 2)]
    assert made == [completion for batch in alone for completion in batch]


def test_a_run_lands_in_the_same_bytes(spec, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"text": r.prompt}) + "\n" for r in requests(12)))

    def respond(name, model):
        data = {
            "evaluate": [{"name": "arm", "model": model.model_dump()}],
            "respond": {
                "guidance": False,
                "sampling": DRAWN.model_dump(),
                "suites": [{"name": "s", "kind": "harmful", "sources": [str(prompts)]}],
            },
            "judges": [{"judge": "refusal"}],
        }
        with RunFolder(tmp_path / name, Recipe.model_validate(data)) as run:
            carry_out(run, "respond")
        return (tmp_path / name / "responses/arm.jsonl").read_bytes()

    near = spec.model_copy(update={"batch_size": 2})
    bytes_ = respond("ray", far(spec))
    assert bytes_ == respond("local", near) and bytes_.count(b"\n") == 12


def test_groups_that_are_under_way_together_come_back_in_their_places(spec):
    engine, here = open_engine(far(spec)), open_engine(spec)
    asked = requests(8)
    waits = [engine.start(asked[n : n + 4], DRAWN) for n in (0, 4)]
    assert engine.choose(asked[:2], ["yes", "no"]).shape == (2, 2)  # beside them
    made = [wait() for wait in waits[::-1]][::-1]
    alone = [here.generate(asked[n : n + 2], DRAWN) for n in range(0, 8, 2)]
    assert [x for group in made for x in group] == [x for batch in alone for x in batch]


def test_what_fails_leaves_an_engine_that_goes_on(spec, tmp_path):
    engine = open_engine(far(spec))
    whole = engine.generate(requests(4), DRAWN)
    waits = [engine.start(requests(4), DRAWN, place) for place in (None, tmp_path / "nowhere")]
    with pytest.raises(InputError, match="not an adapter"):
        [wait() for wait in waits]
    assert engine.generate(requests(4), DRAWN) == whole


def test_probabilities_are_those_of_one_process(spec):
    import numpy as np

    asked = requests(5)
    there = open_engine(far(spec)).choose(asked, ["yes", "no"])
    near = open_engine(spec)
    here = [near.choose(asked[n : n + 2], ["yes", "no"]) for n in range(0, 5, 2)]
    assert np.array_equal(there, np.concatenate(here))


def test_what_a_worker_says_is_one_line(spec, tmp_path):
    with pytest.raises(InputError, match="not an adapter .adapter_config.json and") as caught:
        open_engine(far(spec)).generate(requests(2), DRAWN, tmp_path / "nowhere")
    assert "\n" not in str(caught.value) and "ray::" not in str(caught.value)


def test_more_workers_than_there_is_room_for(spec):
    with pytest.raises(InputError, match="ray.workers: 99, but the cluster has room for 2"):
        open_engine(far(spec, workers=99)).plan(requests(2))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"ray": {"workers": 2}}, "an option of ray, not of local"),
        ({"engine": "ray", "vllm": {"memory": 0.5}}, "the section vllm needs ray.engine: vllm"),
        ({"engine": "ray", "ray": {"workers": 0}}, "workers"),
    ],
)
def test_a_recipe_that_cannot_be_right_is_refused(data, said):
    with pytest.raises(InputError, match=said):
        Recipe.parse({"model": data}, "recipe.yaml")
