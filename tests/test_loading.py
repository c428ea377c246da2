"""Loading: a checkpoint is whole and writes text, or it is refused before work begins."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from setbacks.engines.local import Local
from setbacks.errors import InputError
from setbacks.models.loading import (
    check_model,
    check_reward_model,
    context,
    load_config,
    load_model,
    load_reward_model,
    load_tokenizer,
)
from setbacks.pipeline import check
from setbacks.recipe import Engine, Recipe, Sampling
from setbacks.records import Request

VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
VISION |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 259}
MAMBA = {"state_size": 8, "conv_kernel": 4, "expand": 2, "time_step_rank": 4}
RECURRENT = {"lru_width": 32, "attention_window_size": 16, "conv1d_width": 4}
RECURRENT |= {"block_types": ["recurrent", "attention"], "num_hidden_layers": 2}
# Models that see, each with the rest of its configuration. transformers has a class for the text
# alone of the last one, and none for that of the others.
SEEING = {
    "llava": {
        "text_config": SIZES | {"model_type": "llama"},
        "vision_config": VISION | {"model_type": "clip_vision_model"},
    },
    "mistral3": {
        "text_config": SIZES | {"model_type": "mistral"},
        "vision_config": VISION | {"model_type": "pixtral", "head_dim": 16},
    },
    "gemma3": {
        "text_config": SIZES | {"model_type": "gemma3_text", "head_dim": 16},
        "vision_config": VISION,
        "mm_tokens_per_image": 4,
    },
    "llama4": {
        "text_config": SIZES
        | {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 48}
        | {"head_dim": 8},
        "vision_config": VISION
        | {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
    },
}


def spec_of(folder, **overrides):
    return Engine(model=str(folder), dtype="float32", device="cpu", **overrides)


def whole(folder):
    """Both looks at a model: without its weights, and with them."""
    check_model(spec_of(folder))
    return load_model(spec_of(folder)).eval()


def refused(folder, says):
    for look in (check_model, load_model):
        with pytest.raises(InputError, match=says) as error:
            look(spec_of(folder))
        assert "\n" not in str(error.value) and str(folder) in str(error.value)


def change(folder, do):
    """Change a checkpoint's tensors."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    do(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


# What a checkpoint lacks -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "auto", "says"),
    [
        ("llama", "AutoModel", r"saved as LlamaModel\) lacks lm_head.weight of LlamaForCausalLM"),
        (
            "llama",
            "AutoModelForSequenceClassification",
            "Classification, which does not generate text",
        ),
        ("bert", "AutoModel", "lacks cls.predictions.bias and"),
        ("bert", "AutoModelForMaskedLM", "BertForMaskedLM, which does not generate text"),
        ("bart", "AutoModelForSeq2SeqLM", "BartForConditionalGeneration is an encoder-decoder"),
        ("t5", "AutoModelForSeq2SeqLM", "T5ForConditionalGeneration is an encoder-decoder"),
        (
            "clip_vision_model",
            "AutoModel",
            'cannot generate text with models of type "clip_vision_model"',
        ),
    ],
)
def test_a_checkpoint_that_is_no_whole_language_model_is_refused(model_of, kind, auto, says):
    refused(model_of(kind, auto), says)


def test_a_missing_layer_is_told_and_tied_embeddings_are_not_missing(model_of):
    folder = model_of("llama")
    change(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    refused(folder, "lacks model.layers.1.mlp.up_proj.weight of LlamaForCausalLM")
    tied = model_of("llama", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    assert whole(tied)
    assert whole(model_of("llama", "AutoModel", tie_word_embeddings=True))  # nothing to add


def test_weights_without_a_place_are_named_once(model_of, caplog):
    folder = model_of("llama")
    change(folder, lambda tensors: tensors.update({"more.weight": torch.ones(2)}))
    whole(folder)
    whole(folder)
    (record,) = caplog.records
    assert "ignored more.weight, which LlamaForCausalLM does not use" in record.getMessage()


def test_what_a_recipe_names_is_looked_at_before_work_begins(model_of, tiny_recipe):
    recipe = tiny_recipe().model_dump()
    check(Recipe.model_validate(recipe))
    headless = str(model_of("llama", "AutoModel"))
    for change in (
        {"model": {**recipe["model"], "model": headless}},
        {"analyze": {**recipe["analyze"], "analyst": spec_of(headless).model_dump()}},
    ):
        with pytest.raises(InputError, match="lacks lm_head.weight"):
            check(Recipe.model_validate(recipe | change))


# Models that see -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SEEING)
def test_a_model_that_sees_is_loaded_whole_and_answers(model_of, kind):
    folder = model_of(kind, "AutoModelForImageTextToText", sizes={}, **SEEING[kind])
    model = whole(folder)
    kept = load_file(folder / "model.safetensors")
    assert sum(p.numel() for p in model.parameters()) >= sum(t.numel() for t in kept.values())
    assert any("vision" in name for name, _ in model.named_parameters())
    engine = Local(spec_of(folder))
    (made,) = engine.generate([Request("Say yes.", 0)], Sampling(max_new_tokens=4))
    assert made.tokens or made.finish == "stop"


def test_a_text_model_out_of_one_that_sees_stays_text(model_of):
    """Such as Llama 4's, saved by its own class: it has no vision weights to be missed."""
    folder = model_of("llama4_text", **SEEING["llama4"]["text_config"])
    assert type(whole(folder)).__name__ == "Llama4ForCausalLM"


# A head that scores ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "granite", "cohere"])
def test_a_reward_model_is_the_language_models_body_and_a_new_head(model_of, kind):
    """transformers has a class for the first of them only."""
    folder = model_of(kind)
    spec, tokenizer = spec_of(folder), load_tokenizer(spec_of(folder))
    check_reward_model(spec)
    torch.manual_seed(0)
    scorer, writer = load_reward_model(spec, tokenizer).eval(), load_model(spec).eval()
    ids = torch.tensor([[9, 8, 7, 6, *[tokenizer.pad_token_id] * 2], [5, 4, 3, 9, 8, 7]])
    with torch.inference_mode():
        scores = scorer(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).logits
        states = [
            writer.base_model(row[None]).last_hidden_state[0, -1] for row in (ids[0, :4], ids[1])
        ]
        right = scorer.score(torch.stack(states))
    torch.testing.assert_close(scores, right, atol=1e-5, rtol=1e-4)
    assert scores[0] != scores[1]


def test_rlhf_is_refused_where_no_reward_model_can_be_made(model_of, tiny_recipe):
    recipe = tiny_recipe().model_dump()
    recipe["train"] |= {"method": "rlhf"}
    check(Recipe.model_validate(recipe))
    for kind, sizes in (("mamba", MAMBA), ("recurrent_gemma", RECURRENT)):
        recipe["model"] |= {"model": str(model_of(kind, **sizes))}
        with pytest.raises(
            InputError, match=f"{kind} cannot become a reward model; choose another"
        ):
            check(Recipe.model_validate(recipe))


def test_a_reward_model_without_its_body_is_refused(model_of):
    folder = model_of("llama")
    change(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(InputError, match="llama cannot become a reward model"):
        check_reward_model(spec_of(folder))


# Context and padding ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "data", "limit"),
    [
        ("llama", {"max_position_embeddings": 64}, 64),
        ("gpt2", {"sizes": {"n_embd": 32, "n_layer": 1, "n_head": 4}, "n_positions": 48}, 48),
        ("mpt", {"sizes": {"d_model": 32, "n_heads": 4, "n_layers": 1}, "max_seq_len": 32}, 32),
        ("bloom", {"sizes": {"hidden_size": 32, "n_layer": 1, "n_head": 4}}, None),
        (
            "qwen2",
            {"max_position_embeddings": 64}
            | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
            256,
        ),
        (
            "llama",
            {"max_position_embeddings": 64}
            | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
            64,
        ),
    ],
)
def test_the_context_is_what_the_configuration_says(model_of, kind, data, limit):
    assert context(load_config(spec_of(model_of(kind, **data)))) == limit


def test_a_padding_token_without_an_embedding_is_replaced(model_of):
    """A tokenizer that was given a token for padding, and a model that was not made larger."""
    folder = model_of("llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    requests = [Request("Say yes.", 0), Request("Name three colors, and nothing else.", 1)]
    before = Local(spec_of(folder)).generate(requests, Sampling(max_new_tokens=8))
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == load_model(spec_of(folder)).config.vocab_size
    tokenizer.save_pretrained(folder)
    assert load_tokenizer(spec_of(folder)).pad_token == tokenizer.eos_token
    assert Local(spec_of(folder)).generate(requests, Sampling(max_new_tokens=8)) == before


def test_a_padding_token_of_the_model_is_kept(tiny):
    data = json.loads((tiny / "tokenizer_config.json").read_text())
    assert load_tokenizer(spec_of(tiny)).pad_token == data["pad_token"]
