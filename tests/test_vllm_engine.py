"""The vLLM engine, where vLLM is installed; what it is told of adapters and of want, everywhere."""

import json

import pytest

from setbacks.engines import open_engine
from setbacks.errors import InputError
from setbacks.recipe import Engine, Recipe, Sampling
from setbacks.records import Request


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"vllm": {"memory": 0.5}}, "an option of vllm, ray, not of local"),
        ({"engine": "vllm", "vllm": {"memory": 2}}, "memory"),
        ({"engine": "vllm", "ray": {"workers": 2}}, "an option of ray, not of vllm"),
    ],
)
def test_a_recipe_that_cannot_be_right_is_refused(data, said):
    with pytest.raises(InputError, match=said):
        Recipe.parse({"model": data}, "recipe.yaml")


@pytest.mark.parametrize(
    ("data", "rank"),
    [
        ({"peft_type": "LORA", "r": 2}, 8),
        ({"peft_type": "LORA", "r": 8, "rank_pattern": {"q_proj": 33}}, 64),
        ({"peft_type": "LORA", "r": 1024}, None),
        ({"peft_type": "IA3"}, None),
    ],
)
def test_an_adapter_gets_the_least_room_that_it_fits_in(tmp_path, data, rank):
    pytest.importorskip("vllm")
    from setbacks.engines.vllm import _rank

    (tmp_path / "adapter_config.json").write_text(json.dumps(data))
    if rank is None:
        with pytest.raises(InputError, match="use engine: local"):
            _rank(tmp_path)
    else:
        assert _rank(tmp_path) == rank


@pytest.mark.slow
def test_greedy_texts_are_those_of_the_local_engine():
    """In float32, on short answers: no two tokens are as likely there."""
    pytest.importorskip("vllm")
    near = Engine(dtype="float32", device="cpu")
    data = dict(memory=0.15, max_length=1024)  # of the machine: weights, work and cache
    far = near.model_copy(update={"engine": "vllm", "vllm": data})
    asked = [Request(p, n) for n, p in enumerate(["What is a badger?", "Name three colors."])]
    sampling = Sampling(max_new_tokens=16)
    assert open_engine(far).generate(asked, sampling) == open_engine(near).generate(asked, sampling)
