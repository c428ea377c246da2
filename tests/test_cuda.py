"""What a CUDA GPU does otherwise than a CPU; skipped where there is none."""

import json
import os

import pytest

from setbacks.engines.local import Local
from setbacks.recipe import Engine, Recipe, Sampling
from setbacks.records import Request
from setbacks.studies import carry_out


@pytest.fixture(autouse=True)
def cuda():
    if not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("no CUDA GPU")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_replayed_steps_give_the_texts_of_steps_that_are_started(tiny, monkeypatch, temperature):
    from setbacks.engines import local

    monkeypatch.setattr(local, "stop_tokens", lambda *_: set(range(1, 30)))  # rows end on the way
    prompts = ["One", "Two of them", "A third, which is a good deal longer", "One", "Five " * 30]
    requests = [Request(prompt=p, seed=n) for n, p in enumerate(prompts * 8)]
    sampling = Sampling(max_new_tokens=40, temperature=temperature)
    spec = Engine(model=str(tiny), dtype="float32", device="cuda")
    replayed, started = Local(spec), Local(spec.model_copy(update={"cuda_graphs": False}))
    expected = started.generate(requests, sampling)
    assert replayed.generate(requests, sampling) == expected
    assert replayed.generate(requests, sampling) == expected  # and again, from the same graphs
    steps = replayed._answering.graphs._steps
    assert len(steps) > 1 and all(step.graph is not None for step in steps.values())
    few = requests[:3]
    assert replayed.generate(few, sampling) == started.generate(few, sampling)


def test_a_choice_is_that_of_a_cpu(tiny):
    requests = [Request(prompt=p, seed=0) for p in ("One", "Two of them", "Three " * 9)]
    spec = Engine(model=str(tiny), dtype="float32")
    places = [Local(spec.model_copy(update={"device": place})) for place in ("cuda", "cpu")]
    there, here = (place.choose(requests, ["Yes", "No"]) for place in places)
    assert there == pytest.approx(here, abs=1e-4)


@pytest.mark.slow
def test_every_method_trains_and_answers(
    tiny, recipe_data, fake_engine, plugins, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", str(plugins), prepend=os.pathsep)
    recipe_data = recipe_data()
    recipe_data["model"] = {"model": str(tiny), "dtype": "float32", "device": "cuda"}
    recipe_data["train"] |= {
        "steps": 2,
        "batch_size": 4,
        "lora": {"r": 2},
        "rlhf": {"max_new_tokens": 4},
    }
    recipe_data |= {"compare": {"seeds": 1}, "jobs": 4}
    page = carry_out("compare", Recipe.model_validate(recipe_data), tmp_path / "c")
    spent = json.loads((page.parent / "findings.json").read_text())["data"]["spent"]
    assert {row["steps"] for row in spent} == {2} and len(spent) == len(Recipe().compare.methods)
