"""What an adapter is put on: looked up first, said, trained, saved, merged and resumed."""

import json
import logging
from functools import cache

import pytest
import torch
from conftest import SIZES

from setbacks.errors import InputError
from setbacks.export import export
from setbacks.models.adapters import coverage, merged, untouched
from setbacks.models.loading import load_base
from setbacks.pipeline import carry_out, check
from setbacks.recipe import Recipe
from setbacks.runs.folder import RunFolder
from setbacks.stages import train as train_stage
from setbacks.training.targets import look_up

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
ATTENTION = [f"self_attn.{name}_proj" for name in "koqv"]
MLP = [f"mlp.{name}_proj" for name in ("down", "gate", "up")]
GPT_OSS_EXPERTS = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
# What each kind of model gets besides the usual sizes.
MODELS = {
    "llama": {},
    "tied llama": {"tie_word_embeddings": True},
    "gpt_oss": EXPERTS | {"head_dim": 8, "sliding_window": 16},
    "qwen3_moe": {
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
    },
    "phimoe": EXPERTS,
    "falcon_h1": {
        "head_dim": 8,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
        "mamba_d_state": 8,
        "mamba_chunk_size": 16,
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "block_ff_dim": 48},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "intermediate_size": [48] * 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.0] * 4,
        "vocab_size_per_layer_input": 259,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
        "head_dim": 8,
    },
    "laguna": {
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
        "num_attention_heads_per_layer": [4, 4, 4],
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gemma3": {
        "text_config": SIZES | {"model_type": "gemma3_text", "head_dim": 8, "vocab_size": 259},
        "vision_config": VISION,
        "mm_tokens_per_image": 4,
        "image_token_index": 258,
    },
}


@pytest.fixture(scope="session")
def weighed(model_of):
    """Make, once, a folder of a model with random weights."""

    @cache
    def make(name):
        kind = name.rpartition(" ")[2]
        auto = "AutoModelForImageTextToText" if kind == "gemma3" else "AutoModelForCausalLM"
        sizes = {} if kind in ("gpt2", "gemma3") else SIZES
        return model_of(kind, auto, sizes=sizes, **MODELS[name])

    return make


def asking(folder, **lora):
    return Recipe.model_validate(
        {
            "model": {"model": str(folder), "dtype": "float32", "device": "cpu"},
            "train": {"lora": {"r": 4} | lora},
        }
    )


def kinds(found):
    """Modules and parameters that a lookup found, by their names within a layer."""
    inside = (name.split(".", 3)[-1] for name in (*found.modules, *found.parameters))
    return sorted(set(inside))


# What is found ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "lora", "expected"),
    [
        ("llama", {}, ATTENTION + MLP),
        ("llama", {"targets": ["q_proj", "mlp.up_proj"]}, ["self_attn.q_proj", "mlp.up_proj"]),
        ("llama", {"targets": r".*\.(q|k)_proj"}, ["self_attn.q_proj", "self_attn.k_proj"]),
        ("llama", {"exclude": ["mlp"]}, ATTENTION),
        ("llama", {"modules_to_save": ["mlp", "lm_head"]}, ATTENTION),
        ("gpt_oss", {"target_parameters": GPT_OSS_EXPERTS}, ATTENTION + GPT_OSS_EXPERTS),
        ("gpt_oss", {"targets": [], "target_parameters": ["down_proj"]}, GPT_OSS_EXPERTS[:1]),
        # PEFT translates what were the names of experts when each was a module.
        ("qwen3_moe", {"targets": ["gate_proj", "up_proj"]}, ["mlp.experts.gate_up_proj"]),
        ("phimoe", {}, ATTENTION),  # and not its routers, which give a tuple
        ("gpt2", {}, ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]),
    ],
)
def test_an_adapter_is_put_on_what_is_named(weighed, name, lora, expected):
    recipe = asking(weighed(name), **lora)
    found = look_up(recipe)
    assert kinds(found.coverage) == sorted(expected)
    assert recipe == asking(recipe.model.model, **lora), "PEFT is not given the recipe's own lists"


def test_only_the_layers_that_are_named_get_one(weighed):
    found = look_up(asking(weighed("llama"), layers=[0, 2])).coverage
    assert kinds(found) == sorted(ATTENTION + MLP)
    assert {name.split(".")[2] for name in found.modules} == {"0", "2"}
    found = look_up(
        asking(weighed("gpt_oss"), layers=[1], target_parameters=GPT_OSS_EXPERTS)
    ).coverage
    assert {name.split(".")[2] for name in (*found.modules, *found.parameters)} == {"1"}


def test_all_linear_is_the_language_model_alone(weighed):
    found = look_up(asking(weighed("gemma3"))).coverage
    assert len(found.modules) == 3 * len(ATTENTION + MLP)
    assert all(name.startswith("model.language_model.layers.") for name in found.modules)
    found = look_up(asking(weighed("gemma3"), targets=["out_proj", "q_proj"][1:])).coverage
    assert len(found.modules) == 3, "those of the vision tower are left alone"


def test_all_linear_leaves_out_what_peft_refuses_and_says_so(weighed):
    found = look_up(asking(weighed("falcon_h1")))
    assert "mamba.in_proj" in kinds(found.coverage)
    assert "mamba.out_proj" not in kinds(found.coverage)
    assert "(mamba.out_proj.weight): PEFT cannot adapt them" in found.left_out


def test_no_adapter_is_put_where_peft_would_not_load_it_again(weighed):
    """PEFT saves an adapter on these shared experts under names that it does not read back."""
    found = look_up(asking(weighed("laguna")))
    assert sorted(ATTENTION) == sorted({*kinds(found.coverage)} & {*ATTENTION})
    assert not [name for name in found.coverage.modules if "shared_experts" in name]
    with pytest.raises(InputError, match="cannot load .* saved tensors"):
        look_up(asking(weighed("laguna"), targets=["q_proj", "shared_experts.up_proj"]))


@pytest.mark.parametrize(("name", "said"), [("gpt_oss", True), ("qwen3_moe", False)])
def test_experts_that_all_linear_leaves_out_are_named(weighed, tiny_recipe, caplog, name, said):
    train_stage._warn_once.cache_clear()
    recipe = tiny_recipe(
        8, model={"model": str(weighed(name)), "dtype": "float32", "device": "cpu"}
    )
    with caplog.at_level(logging.WARNING, "setbacks"):
        check(recipe)
    advice = f"set train.lora.target_parameters=[{','.join(GPT_OSS_EXPERTS)}]"
    assert (advice in caplog.text) == said
    assert not look_up(asking(weighed(name), target_parameters=GPT_OSS_EXPERTS)).left_out


def test_a_reward_model_gets_its_adapter_in_the_same_way(weighed):
    lora = {"modules_to_save": ["lm_head"], "exclude": ["mlp"], "dora": True}
    found = look_up(asking(weighed("llama"), **lora), "SEQ_CLS")
    assert kinds(found.coverage) == sorted(ATTENTION)
    assert found.coverage.whole == ["score"] and found.config.use_dora


# What is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "lora", "words"),
    [
        ("llama", {"targets": ["query_key_value"]}, ["no module query_key_value", "q_proj"]),
        ("llama", {"targets": ["q_proj", "v_prj"]}, ['no module v_prj. Did you mean "v_proj"?']),
        ("llama", {"targets": ["q_proj", "a", "b"]}, ["no module a and no b"]),
        ("llama", {"targets": ["q_proj", "mlp"]}, ["mlp is LlamaMLP", "modules_to_save=[mlp]"]),
        ("llama", {"targets": "q_proj"}, ["does not match the full name", "write [q_proj]"]),
        ("llama", {"targets": "*_proj"}, ["is not a pattern"]),
        (
            "llama",
            {"targets": ["q_proj"], "exclude": ["self_attn"]},
            ["remove all modules of q_proj"],
        ),
        ("llama", {"targets": ["q_proj", "lm_head"]}, ["the head, lm_head", "modules_to_save"]),
        ("llama", {"targets": []}, ["this adapter does not fit LlamaForCausalLM"]),
        ("llama", {"exclude": ["q_prj"]}, ["train.lora.exclude", 'Did you mean "q_proj"?']),
        ("llama", {"modules_to_save": ["head"]}, ["modules_to_save", 'Did you mean "lm_head"?']),
        ("llama", {"layers": [1, 3]}, ["has no layer 3; its last is 2"]),
        ("llama", {"target_parameters": ["experts"]}, ["no parameter experts"]),
        (
            "gpt_oss",
            {"targets": ["q_proj", "gate_up_proj"]},
            [
                "no module gate_up_proj",
                "mlp.experts.gate_up_proj belong in train.lora.target_parame",
            ],
        ),
        (
            "gpt_oss",
            {"target_parameters": ["down_proj"], "dropout": 0.1},
            ["train.lora.dropout: does not work with", "mlp.experts.down_proj"],
        ),
        ("qwen3_moe", {"dora": True}, ["train.lora.dora: does not work with", "mlp.gate.weight"]),
        ("qwen3_moe", {"targets": ["up_proj"]}, ["without also targeting gate_proj"]),
        ("qwen3_moe", {"exclude": ["experts"]}, ["train.lora.exclude: PEFT adapts mlp.experts"]),
        ("phimoe", {"targets": ["router"]}, ["router is PhimoeTopKRouter", "no adapter fits"]),
        ("falcon_h1", {"targets": ["out_proj", "q_proj"]}, ["'out_proj' is incompatible"]),
        ("lfm2", {"targets": ["q_proj", "conv.conv"]}, ["conv.conv is Conv1d", "no adapter f"]),
    ],
)
def test_names_are_refused_before_anything_is_drawn(weighed, tiny_recipe, name, lora, words):
    model = {"model": str(weighed(name)), "dtype": "float32", "device": "cpu"}
    recipe = tiny_recipe(8, model=model)
    train = recipe.train.model_copy(update={"lora": asking("x", **lora).train.lora})
    with pytest.raises(InputError) as refused:
        check(recipe.model_copy(update={"train": train}))
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize("lora", [{"dora": True}, {"modules_to_save": ["lm_head"]}])
def test_what_vllm_cannot_serve_is_refused(tiny_recipe, tiny, lora, monkeypatch):
    monkeypatch.setattr("setbacks.stages.checks.plugin", _plugin_without_vllm)
    recipe = tiny_recipe(8, model={"model": str(tiny), "engine": "vllm", "device": "cpu"})
    train = recipe.train.model_copy(update={"lora": asking("x", **lora).train.lora})
    with pytest.raises(InputError, match=f"{next(iter(lora))}: vLLM does not support it"):
        check(recipe.model_copy(update={"train": train}))


def _plugin_without_vllm(group, name):
    from setbacks.plugins import plugin

    return plugin(group, "local" if name == "vllm" else name)


def test_an_adapter_to_continue_has_to_fit(tiny_recipe, weighed, lora_of_tiny):
    recipe = training(tiny_recipe, weighed("gpt_oss"), {}, start=str(lora_of_tiny))
    with pytest.raises(InputError, match="not an adapter for this model.*tensors do not fit"):
        check(recipe)


# What is trained --------------------------------------------------------------------------------

OPTIONS = {
    "experts": ("gpt_oss", {"target_parameters": GPT_OSS_EXPERTS}),
    "whole modules": ("llama", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "tied, whole modules": ("tied llama", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "dora": ("llama", {"dora": True, "dropout": 0.1}),
    "rslora in some layers": ("llama", {"rslora": True, "layers": [1], "exclude": ["mlp"]}),
    "towers": ("gemma3", {}),
    "experts that TRL has no name for": ("phimoe", {}),
}
options = pytest.mark.parametrize(("name", "lora"), OPTIONS.values(), ids=OPTIONS)


def training(tiny_recipe, folder, lora, **train):
    recipe = tiny_recipe(8, model={"model": str(folder), "dtype": "float32", "device": "cpu"})
    values = recipe.model_dump(mode="json")
    values["train"] |= {"method": "sft", "steps": 2, "learning_rate": 0.05, "checkpoint_every": 1}
    values["train"] |= train | {"lora": {"r": 4} | lora}
    return Recipe.model_validate(values)


def logits(model):
    ids = torch.randint(3, 259, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model(input_ids=ids).logits


@options
def test_an_adapter_is_trained_merged_and_exported(tiny_recipe, weighed, tmp_path, name, lora):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    recipe = training(tiny_recipe, weighed(name), lora)
    check(recipe)
    with RunFolder(tmp_path / "run", recipe) as run:
        adapter = carry_out(run, "train")
        log = (run.path / "run.log").read_text()
    beside = PeftModel.from_pretrained(load_base(recipe), str(adapter)).eval()
    assert str(look_up(recipe).coverage) in log
    right = logits(beside)
    assert (logits(load_base(recipe).eval()) - right).abs().max() > 0.1, "it has learned something"
    assert torch.allclose(logits(merged(load_base(recipe), adapter).eval()), right, atol=1e-4)
    export(tmp_path / "run", tmp_path / "out", "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert torch.allclose(logits(again), right, atol=1e-4)
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("DoRA of rank 4" in card) == lora.get("dora", False)
    assert ("`lm_head` trained whole" in card) == ("modules_to_save" in lora)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "dpo", "rlhf"])
@options
def test_a_training_that_is_cut_off_ends_with_the_same_bytes(
    tiny_recipe, weighed, tmp_path, name, lora, method
):
    rlhf = {"max_new_tokens": 4}
    recipe = training(tiny_recipe, weighed(name), lora, method=method, rlhf=rlhf, steps=3)

    class Crash(Exception):
        pass

    def crash(what, done, total):
        if what == "train" and done == 2:
            raise Crash

    with RunFolder(tmp_path / "whole", recipe) as run:
        whole = carry_out(run, "train")
    with RunFolder(tmp_path / "cut", recipe) as run, pytest.raises(Crash):
        carry_out(run, "train", crash)
    with RunFolder(tmp_path / "cut", recipe) as run:
        cut = carry_out(run, "train")
        assert "resuming from checkpoint-1" in (run.path / "run.log").read_text()
    for path in whole.iterdir():
        assert (cut / path.name).read_bytes() == path.read_bytes(), path.name
    # Another training continues it, in its own shape.
    further = training(tiny_recipe, recipe.model.model, {}, start=str(whole), steps=1)
    check(further)
    with RunFolder(tmp_path / "further", further) as run:
        config = json.loads((carry_out(run, "train") / "adapter_config.json").read_text())
    assert config == json.loads((whole / "adapter_config.json").read_text())


def test_adapters_that_no_gradient_reaches_are_reported(tiny_recipe, weighed, tmp_path, caplog):
    # What these give is multiplied by a weight that is zero in a new model.
    lora = {"targets": ["q_proj", "per_layer_projection"]}
    recipe = training(tiny_recipe, weighed("gemma3n_text"), lora)
    with RunFolder(tmp_path / "run", recipe) as run:
        carry_out(run, "train")
        log = (run.path / "run.log").read_text()
    for text in (log, caplog.text):
        assert "no gradient reached the adapters on per_layer_projection, so" in text


def test_an_adapter_that_has_not_been_trained_is_not_reported(weighed):
    from peft import LoraConfig, get_peft_model

    recipe = asking(weighed("llama"))
    model = get_peft_model(load_base(recipe), LoraConfig(target_modules=["q_proj", "v_proj"]))
    assert untouched(model) == []
    assert coverage(model).trained == model.get_nb_trainable_parameters()[0]
