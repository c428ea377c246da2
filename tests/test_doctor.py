"""`setbacks doctor MODEL`: what will work with a model, and no traceback whatever it is."""

import json
import shutil

import pytest
import yaml
from chat_templates import CONVERSING, FAMILIES

from setbacks.cli.doctor import memory


def looked_at(ran):
    """The checks that a command printed as JSON, by name; several may share one."""
    checks = {}
    for check in json.loads(ran.stdout):
        checks.setdefault(check["name"], []).append(check)
    return checks


@pytest.fixture
def copied(tiny, tmp_path):
    """Make a copy of the tiny model's folder."""
    return lambda: shutil.copytree(tiny, tmp_path / "copy")


def small(*more):
    """Sizes that fit whatever a machine has free."""
    return ("model.device=cpu", "model.dtype=float32", "train.max_length=64", *more)


def test_all_that_works_is_said(cli_in_process, tiny):
    ran = cli_in_process("doctor", tiny, *small("train.lora.r=2"))
    assert ran.returncode == 0 and ran.stderr == ""
    lines = " ".join(ran.stdout.split())
    for words in (
        "ok model LlamaForCausalLM, 35,168 parameters",
        "ok weights complete",
        "ok chat template the tokenizer's own",
        "ok roles a system turn: yes, several turns: yes, two turns of one role: yes, tool turns: "
        "changed; a run says once what it changes",
        "ok end of turn '<|im_end|>' is learned; answers end at <|im_end|>",
        "ok padding <|pad|>",
        "ok special tokens in data they stay text",
        "ok training row the template's own rendering, token by token",
        "ok context 4,096 tokens",
        "ok LoRA 14 modules (mlp.down_proj, ",
        "ok method dpo possible",
        "ok method rlhf possible",
        "ok memory for weights 0 MiB in float32 of ",
        "agrees with plain forward passes",
        "- CUDA graphs not used: they need a CUDA GPU",
        "ok memory for answers at most about ",
        "ok memory for training at most about ",
        "ok export an adapter, merged weights",
    ):
        assert words in lines
    assert "MISSING" not in lines


def test_an_adapter_is_not_a_model(cli_in_process, tmp_path):
    (tmp_path / "adapter").mkdir()
    config = {"base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    ran = cli_in_process("doctor", "adapter")
    assert ran.returncode == 2 and ran.stdout == ""
    assert ran.stderr == (
        "setbacks: adapter: an adapter of smollm2-135m, not a model; check its model with "
        "`setbacks doctor smollm2-135m`, and try the adapter with `setbacks evaluate adapter`\n"
    )


def test_a_recipe_is_looked_at_with_what_it_trains(cli_in_process, tiny, tmp_path):
    recipe = {"model": str(tiny), "train": {"lora": {"targets": ["q_proj"]}, "max_length": 64}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    found = looked_at(cli_in_process("doctor", "mine.yaml", "model.device=cpu", "--json"))
    assert found["LoRA"][0]["found"].startswith("2 modules (self_attn.q_proj)")
    ran = cli_in_process(
        "doctor", f"model.model={tiny}", *small("train.lora.targets=[qproj]"), "--json"
    )
    (lora,) = looked_at(ran)["LoRA"]
    assert ran.returncode == 2 and lora["needed"] and not lora["ok"]
    assert 'no module qproj. Did you mean "' in lora["found"]


def test_an_adapter_to_continue_is_looked_at(cli_in_process, tiny, lora_of_tiny):
    start = f"train.start={lora_of_tiny}"
    found = looked_at(cli_in_process("doctor", tiny, *small(start), "--json"))
    assert found["LoRA"][0]["ok"] and "14 modules" in found["LoRA"][0]["found"]
    assert found["memory for training"][0]["ok"]


def test_a_model_without_a_chat_template_needs_alpaca(cli_in_process, copied):
    folder = copied()
    (folder / "chat_template.jinja").unlink()
    ran = cli_in_process("doctor", folder, *small(), "--json")
    (missing,) = [c for checks in looked_at(ran).values() for c in checks if not c["ok"]][:1]
    assert ran.returncode == 2 and missing["name"] == "chat template"
    assert "model.chat_template: alpaca" in missing["found"]
    ran = cli_in_process("doctor", folder, *small("model.chat_template=alpaca"), "--json")
    assert ran.returncode == 0
    assert looked_at(ran)["training row"][0]["found"].endswith("in the alpaca template")


def test_what_a_template_takes_of_a_conversation_is_said(cli_in_process, copied):
    """Gemma's style, without a system role; and one that takes calls of tools."""
    folder = copied()
    for template, says in (
        (FAMILIES["gemma"].template, "a system turn: changed, several turns: yes, two turns of one "
         "role: changed, tool turns: changed; a run says once what it changes"),
        (CONVERSING["command r7b"].template, "a system turn: yes, several turns: yes, two turns of "
         "one role: yes, tool turns: yes"),
    ):  # fmt: skip
        (folder / "chat_template.jinja").write_text(template)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<|pad|>"}))
        ran = cli_in_process("doctor", folder, *small(), "--json")
        (roles,) = looked_at(ran)["roles"]
        assert roles["found"].startswith(says)


def test_what_a_template_does_is_noted(cli_in_process, copied):
    folder = copied()
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant\n", "assistant\n<think>\n"))
    ran = cli_in_process("doctor", folder, *small(), "--json")
    template, *notes = looked_at(ran)["chat template"]
    assert ran.returncode == 0 and template["ok"]
    assert any("<think>" in note["found"] and not note["needed"] for note in notes)


def test_a_token_without_an_embedding_is_noted(cli_in_process, copied):
    from transformers import AutoTokenizer

    folder = copied()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    (found,) = looked_at(cli_in_process("doctor", folder, *small(), "--json"))["tokenizer"]
    assert not found["ok"] and "260 tokens, 259 embeddings" in found["found"]


def test_experts_and_methods_that_do_not_fit_are_noted(cli_in_process, tiny, tmp_path):
    """Mamba: transformers' `generate` alone is right for it, and no reward model is made of it."""
    import torch
    from transformers import AutoModelForCausalLM, MambaConfig

    folder = shutil.copytree(tiny, tmp_path / "mamba")
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=259, hidden_size=32, num_hidden_layers=2, state_size=8, eos_token_id=1
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    ran = cli_in_process("doctor", folder, *small(), "--json")
    found = looked_at(ran)
    assert ran.returncode == 0
    assert "(mixer.out_proj.weight): PEFT cannot adapt them" in found["LoRA"][1]["found"]
    assert not found["method rlhf"][0]["ok"] and found["method dpo"][0]["ok"]
    ran = cli_in_process("doctor", folder, *small("train.method=rlhf"), "--json")
    assert ran.returncode == 2 and looked_at(ran)["method rlhf"][0]["needed"]


def _without(*names):
    def spoil(folder):
        for name in names:
            (folder / name).unlink()

    return spoil


def _cut(name, size):
    def spoil(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:size])

    return spoil


def _config(**more):
    def spoil(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | more))

    return spoil


def _without_a_weight(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (shutil.rmtree, "model"),
        (_without("config.json"), "model"),
        (_without("model.safetensors"), "model"),
        (_config(num_attention_heads=7), "model"),
        (_config(model_type="nothing-of-this-kind", architectures=["Nothing"]), "model"),
        (_config(hidden_size="wide"), "model"),
        (_config(model_type="t5", architectures=["T5ForConditionalGeneration"]), "model"),
        (_config(architectures=["LlamaForSequenceClassification"]), "model"),
        (_cut("config.json", 40), "model"),
        (_cut("model.safetensors", 900), "weights"),
        (_without_a_weight, "weights"),
        (_config(num_hidden_layers=3), "weights"),
        (_cut("tokenizer.json", 300), "tokenizer"),
    ],
)
def test_a_broken_folder_is_one_line(cli_in_process, copied, spoil, name):
    folder = copied()
    spoil(folder)
    ran = cli_in_process("doctor", folder, *small(), "--json")
    assert ran.returncode == 2 and "Traceback" not in ran.stdout + ran.stderr
    (missing,) = [c for checks in looked_at(ran).values() for c in checks if not c["ok"]][:1]
    assert missing["name"] == name and missing["needed"]
    assert "copy" in missing["found"], "an error of ours, with the folder's name"


def test_a_model_that_does_not_fit_is_not_loaded(cli_in_process, tiny, monkeypatch):
    monkeypatch.setattr(memory, "free", lambda place: 1000)
    monkeypatch.setattr("setbacks.cli.doctor.model.load_model", None)
    ran = cli_in_process("doctor", tiny, *small(), "--json")
    found = looked_at(ran)
    assert ran.returncode == 2 and "answers" not in found
    assert "name a smaller model" in found["memory for weights"][0]["found"]


def test_what_may_not_fit_is_noted(cli_in_process, tiny, monkeypatch):
    monkeypatch.setattr(memory, "free", lambda place: 2**20)
    ran = cli_in_process("doctor", tiny, *small("train.batch_size=64"), "--json")
    found = looked_at(ran)
    assert ran.returncode == 0, "an estimate for the longest texts is not a verdict"
    assert "lower model.batch_size" in found["memory for answers"][0]["found"]
    assert "lower train.batch_size" in found["memory for training"][0]["found"]


def test_a_model_on_a_server_is_refused(cli_in_process):
    ran = cli_in_process(
        "doctor", "far", "model.engine=endpoint", "model.endpoint.base_url=http://127.0.0.1:1/v1"
    )
    assert ran.returncode == 2 and "far is on a server" in ran.stderr


# Memory -----------------------------------------------------------------------------------------


def test_the_cache_is_measured(tiny):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny)
    each = 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, width, float32
    assert memory.of_cache(model, 3, 100) == memory.PEAK * 3 * 100 * each


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_what_training_keeps_is_scaled_to_longer_examples(tiny, attention):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny, attn_implementation=attention)
    model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    trained, _ = model.get_nb_trainable_parameters()
    rows, length = 4, 400
    kept = memory.kept_of_one(model, length)
    logits = 4 * length / 2 * 259
    expected = memory.ADAM * trained + rows * (memory.PEAK * kept + logits)
    assert memory.of_training(model, rows, length) == pytest.approx(expected, rel=0.02)


def test_a_container_has_less_than_its_machine(tmp_path):
    assert memory.left_in_container(tmp_path) == 2**63
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert memory.left_in_container(tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.left_in_container(tmp_path) == 2**63
