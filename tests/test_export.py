"""Exports: an adapter or merged weights that others load, a card that says what was measured."""

import base64
import json
import os
import shutil
import stat
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from setbacks.errors import InputError, SetbacksError
from setbacks.export import export
from setbacks.export.card import card
from setbacks.export.push import push, token
from setbacks.files import appearing
from setbacks.measure import RunInfo, measure, to_json
from setbacks.methods import example
from setbacks.models.chat_template import encode
from setbacks.models.embedded import ALIAS, HUB_ID
from setbacks.prompts import prompts
from setbacks.recipe import Engine, Recipe
from setbacks.records import Arm, Example, Message, Response, Verdict
from setbacks.runs.folder import RunFolder

CANARY = "[a harmful answer\u2028stands here]"  # the separator ends no line of JSON Lines
PROMPT = "Why is the sky blue?"


def recipe_of(model, **more):
    train = {"method": "mistake_analysis"}
    return Recipe.model_validate({"name": "mine", "model": model, "train": train, **more})


def fill(folder, recipe, adapter):
    """Make a run folder as training and a report leave it, with a canary where mistakes are."""
    with RunFolder(folder, recipe) as run:
        shutil.copytree(adapter, run.path / "adapter")
        (run.path / "adapter" / "README.md").write_text("<the card inside the run>")
        (run.path / "mistakes.jsonl").write_text(CANARY)
        rows = [
            {"kind": kind, "completion": CANARY} for kind in ("analysis", "analysis", "helpful")
        ]
        for name, lines in (("training", rows), ("loss", [{"step": n} for n in range(5)])):
            text = "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines)
            (run.path / f"{name}.jsonl").write_text(text)
        (run.path / "metrics.json").write_text(json.dumps(metrics(recipe)))
    return folder


def metrics(recipe):
    responses, verdicts = {}, {}
    for arm, harmless in (("vanilla", 5), ("mistake_analysis", 8)):
        for i in range(20):
            r = Response(
                id=f"{arm}-{i}", arm=arm, suite="s", kind=("harmful", "safe")[i % 2],
                instruction_id=str(i), instruction="<x>", reference=None, category=None,
                language="en", guided=False, text=CANARY, model="m",
            )  # fmt: skip
            responses.setdefault(arm, []).append(r)
            said = Verdict(
                id=f"v-{r.id}", response_id=r.id, judge="probe", harmful=i // 2 >= harmless,
                refused=False,
            )  # fmt: skip
            verdicts.setdefault((arm, "probe"), []).append(said)
    run = RunInfo(name=recipe.name, method=recipe.train.method)
    arms = Arm.untrained(), Arm.of_method("mistake_analysis")
    by_arm = {arm: responses[arm.name] for arm in arms}
    return to_json(measure(run, responses=by_arm, verdicts=verdicts))


@pytest.fixture
def run(spec, lora, tmp_path):
    return fill(tmp_path / "run", recipe_of(spec.model_dump()), lora)


@pytest.fixture
def tiny_run(tiny, tmp_path):
    """A run on the tiny model whose adapter is a stand-in; for what never loads it."""
    folder = tmp_path / "stand-in"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tiny), "r": 2})
    )
    save_file({"weight": np.zeros(4)}, folder / "adapter_model.safetensors")
    return fill(tmp_path / "run", recipe_of(str(tiny)), folder)


@pytest.mark.parametrize(
    ("name", "form", "says"),
    [
        ("adapter/adapter_model.safetensors", "adapter", "damaged .* --from train"),
        ("adapter/adapter_model.safetensors", "merged", "damaged .* --from train"),
        ("adapter/adapter_config.json", "adapter", "damaged at line 1; .* --from train"),
        ("metrics.json", "adapter", "damaged at line 1; .* --from report"),
        ("training.jsonl", "trl", "its last line is incomplete"),
        ("responses/vanilla.jsonl", "inspect", "its last line is incomplete"),
    ],
)
def test_a_file_that_was_cut_is_not_exported(tiny_run, tmp_path, name, form, says):
    path = tiny_run / name
    if not path.exists():
        path.parent.mkdir()
        path.write_text('{"id": "a"}\n')
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=f"{name}: {says}") as error:
        export(tiny_run, tmp_path / "out", form)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def greedy(model, tokenizer):
    """The 12 likeliest new tokens, by plain transformers."""
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    made = model.generate(**ids, max_new_tokens=12, do_sample=False)
    return made[0, ids["input_ids"].shape[1] :].tolist()


def test_merged_weights_answer_as_the_adapter_does_in_plain_transformers(run, spec, lora, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from setbacks.models.loading import load_model, load_tokenizer

    to = export(run, tmp_path / "out", "merged")
    tokenizer = AutoTokenizer.from_pretrained(to)
    model = AutoModelForCausalLM.from_pretrained(to, dtype="float32").eval()
    assert type(model).__name__ == "LlamaForCausalLM" and not hasattr(model, "peft_config")
    beside = PeftModel.from_pretrained(load_model(spec), lora).eval()
    assert greedy(model, tokenizer) == greedy(beside, load_tokenizer(spec))
    bare = load_model(spec).eval()
    assert greedy(model, tokenizer) != greedy(bare, tokenizer), "else the test could not fail"
    ids = torch.tensor([encode(tokenizer, [Message(role="user", content=PROMPT)])])
    with torch.inference_mode():
        # In float64: float32 by itself rounds the two orders of adding apart by more than 1e-3.
        made, held = (one.double()(ids).logits for one in (model, beside))
        assert torch.allclose(made, held, atol=1e-3)
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id]
    assert {path.name for path in to.iterdir()} >= {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "chat_template.jinja", "README.md",
    }  # fmt: skip
    assert not [path for path in to.iterdir() if path.suffix in (".bin", ".pt", ".pkl", ".jsonl")]


def test_an_exported_adapter_is_the_runs_own(run, spec, lora, tmp_path):
    from peft import PeftModel

    from setbacks.models.loading import load_model, load_tokenizer

    to = export(run, tmp_path / "out")
    assert {path.name for path in to.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "README.md",
    }  # fmt: skip
    base = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert (to / "adapter_model.safetensors").read_bytes() == base
    data = json.loads((to / "adapter_config.json").read_text())
    expected = HUB_ID if spec.model == ALIAS else Path(spec.model).name
    assert data["base_model_name_or_path"] == expected
    tokenizer = load_tokenizer(spec)
    answers = [
        greedy(PeftModel.from_pretrained(load_model(spec), folder).eval(), tokenizer)
        for folder in (to, lora)
    ]
    assert answers[0] == answers[1]


def test_a_base_model_gets_the_template_that_it_was_asked_in(tiny, lora_of_tiny, tmp_path):
    from transformers import AutoTokenizer

    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    (base / "chat_template.jinja").unlink()
    for language in ("en", "zh"):
        recipe = recipe_of({"model": str(base), "chat_template": "alpaca"}, language=language)
        run = fill(tmp_path / language, recipe, lora_of_tiny)
        made = AutoTokenizer.from_pretrained(export(run, tmp_path / f"out-{language}", "merged"))
        turns = [{"role": "user", "content": PROMPT}]
        said = made.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = encode(
            made, [Message(role="user", content=PROMPT)], template="alpaca", words=prompts(language)
        )
        assert said == made.decode(ids) and PROMPT in said
        with pytest.raises(Exception, match="one instruction"):
            made.apply_chat_template([*turns, *turns], tokenize=False)
        assert "Alpaca template" in (tmp_path / f"out-{language}" / "README.md").read_text()


def test_a_merged_model_that_sees_keeps_its_eyes(model_of, tmp_path):
    """The weights of the vision tower, the files that prepare its images, and how to load it."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file
    from transformers import AutoModelForMultimodalLM

    from setbacks.models.loading import load_model

    text = {"model_type": "mistral", "vocab_size": 259, "hidden_size": 32, "intermediate_size": 48}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    vision = {"model_type": "pixtral", "hidden_size": 32, "intermediate_size": 48, "head_dim": 16}
    vision |= {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    data = {"text_config": text, "vision_config": vision}
    base = model_of("mistral3", "AutoModelForImageTextToText", sizes={}, **data)
    for name in ("preprocessor_config.json", "processor_config.json"):
        (base / name).write_text(json.dumps({"of": name}))
    spec = Engine(model=str(base), dtype="float32", device="cpu")
    config = LoraConfig(
        r=2, target_modules=r".*language_model.*\.[qv]_proj", init_lora_weights=False
    )
    get_peft_model(load_model(spec), config).save_pretrained(tmp_path / "lora")
    run = fill(tmp_path / "run", recipe_of(spec.model_dump()), tmp_path / "lora")
    to = export(run, tmp_path / "out", "merged")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, to))
    assert before.keys() == after.keys()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert len(changed) == 4 and all("language_model" in name for name in changed)
    assert type(AutoModelForMultimodalLM.from_pretrained(to)).__name__.startswith("Mistral3")
    for name in ("preprocessor_config.json", "processor_config.json"):
        assert (to / name).read_bytes() == (base / name).read_bytes()
    for folder in (to, export(run, tmp_path / "adapter")):
        assert "AutoModelForMultimodalLM.from_pretrained" in (folder / "README.md").read_text()


def test_what_is_exported_is_for_others_and_holds_no_mistake_and_no_path(tiny_run, tiny, tmp_path):
    to = export(tiny_run, tmp_path / "out")
    assert to.stat().st_mode & 0o777 == 0o755
    for path in to.iterdir():
        held = path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o644
        assert CANARY.encode() not in held and str(tmp_path).encode() not in held
        assert str(tiny.parent).encode() not in held


# The folder -------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", ["folder", "empty folder", "file", "dangling link"])
def test_nothing_is_overwritten(tiny_run, tmp_path, taken):
    to = tmp_path / "out"
    if taken == "file":
        to.write_text("precious")
    elif taken == "dangling link":
        to.symlink_to(tmp_path / "nowhere")
    else:
        to.mkdir()
        if taken == "folder":
            (to / "thesis.tex").write_text("precious")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(InputError, match="nothing is overwritten"):
        export(tiny_run, to)
    assert sorted(os.listdir(tmp_path)) == before
    if taken == "folder":
        assert (to / "thesis.tex").read_text() == "precious"


def test_what_fails_on_the_way_leaves_nothing(tiny_run, tmp_path):
    """The stand-in weights are no weights: merging them fails after the folder was begun."""
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(InputError, match="not an adapter for this model"):
        export(tiny_run, tmp_path / "out", "merged")
    assert sorted(os.listdir(tmp_path)) == before
    with (
        pytest.raises(SetbacksError, match="out: cannot be written"),
        appearing(tmp_path / "out") as place,
    ):
        (place / "a").write_text("<a>")
        (place / "no" / "b").write_text("<b>")
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda run: shutil.rmtree(run / "adapter"), "no adapter yet"),
        (lambda run: (run / "recipe.yaml").unlink(), "not a run folder"),
        (
            lambda run: (run / "recipe.yaml").write_text("evaluate: [{name: x, answers: [y]}]"),
            "an evaluation",
        ),
    ],
)
def test_what_cannot_be_exported_is_told(tiny_run, tmp_path, change, says):
    change(tiny_run)
    with pytest.raises(InputError, match=says):
        export(tiny_run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_format(tiny_run, tmp_path):
    with pytest.raises(InputError, match='Did you mean "merged"'):
        export(tiny_run, tmp_path / "out", "merge")


# The card ---------------------------------------------------------------------------------------


def front(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_training_examples_are_exported_as_messages(tiny, tmp_path, notices):
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl.data_utils import is_conversational, maybe_apply_chat_template

    turns = [
        Message(role="system", content="Be brief."),
        Message(role="user", content="<a>"),
        Message(role="assistant", content="<b>"),
        Message(role="user", content="<c>"),
    ]
    rows = [
        Example(id="1", kind="helpful", prompt=turns, completion="<d>", parents=[]),
        Example(id="2", kind="pair", prompt=turns[1:2], completion="<e>", rejected="<f>",
                thought="<why>", parents=[]),
        # Its beginning is a mistake and has no loss, which the format cannot say.
        Example(id="3", kind="recovery", prompt=turns[1:2], completion="<bad> <good>",
                given="<bad>", parents=[]),
    ]  # fmt: skip
    folder = tmp_path / "run"
    with RunFolder(folder, recipe_of({"model": str(tiny), "system": "Be kind."})) as run:
        with pytest.raises(InputError, match="no training examples yet.*setbacks train"):
            export(folder, tmp_path / "out", "trl")
        run.journal("training.jsonl", Example).write(rows)
    to = export(folder, tmp_path / "out", "trl")
    assert "left out 1 of 3 examples that go on from the beginning of a mistake" in notices[-1]
    assert stat.S_IMODE(to.stat().st_mode) == 0o700
    (train,), (pair,) = (
        load_dataset("json", data_files=str(to / f"{name}.jsonl"), split="train",
                     cache_dir=str(tmp_path / "cache"))
        for name in ("train", "preferences")
    )  # fmt: skip
    assert [turn["content"] for turn in train["prompt"]] == [
        "Be kind.\n\nBe brief.", "<a>", "<b>", "<c>",
    ]  # fmt: skip
    assert train["completion"] == [{"role": "assistant", "content": "<d>"}]
    assert [turn["content"] for turn in pair["prompt"]] == ["Be kind.", "<a>"]
    assert pair["chosen"][0]["reasoning_content"] == "<why>"
    assert pair["rejected"] == [{"role": "assistant", "content": "<f>"}]
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    for row, end in ((train, "completion"), (pair, "rejected")):
        assert is_conversational(row)
        assert row[end][0]["content"] in maybe_apply_chat_template(row, tokenizer)[end]


def test_the_card_holds_the_measured_table(tiny_run, tmp_path):
    text = (export(tiny_run, tmp_path / "out") / "README.md").read_text()
    rows = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("| ")}
    assert "50.0 [23.7, 76.3], n 10" in rows["| untrained"]
    assert "80.0 [49.0, 94.3], n 10" in rows["| mistake analysis"]
    assert "| – |" in rows["| untrained"], "there were no helpful prompts"
    assert "has not been measured against people" in text
    assert "| analysis | 2 | builtin:redteam |" in text
    assert "| helpful | 1 | builtin:helpful |" in text
    assert "5 steps of 8 examples," in text
    assert front(text)["library_name"] == "peft" and "base_model" not in front(text)


def test_the_card_of_one_step_of_one_example_is_in_the_singular(tiny_run, tiny):
    (tiny_run / "loss.jsonl").write_text('{"step": 1}\n')
    recipe = recipe_of(str(tiny), train={"method": "sft", "batch_size": 1})
    assert "1 step of 1 example, seed" in card(recipe, tiny_run, "adapter")


def test_the_card_shows_the_rates_that_its_findings_are_about(tiny_run, tiny):
    """A finding warns about rates corrected by calibration, so the table has them."""
    path = tiny_run / "metrics.json"
    data = json.loads(path.read_text())
    row = data["judges"]["probe"]["arms"][0]
    row["calibrated"] = {
        "harmless_rate": {"value": 0.4, "low": 0.1, "high": 0.7, "n": 10, "sources": ["<labels>"]}
    }
    path.write_text(json.dumps(data))
    text = card(recipe_of(str(tiny)), tiny_run, "adapter")
    assert "50.0 [23.7, 76.3], n 10; by calibration 40.0 [10.0, 70.0] |" in text
    assert text.count("by calibration 40.0") == 1
    del row["calibrated"]  # as an earlier version stored it
    path.write_text(json.dumps(data))
    assert "by calibration" not in card(recipe_of(str(tiny)), tiny_run, "adapter")


def test_the_card_says_who_answered_the_helpful_prompts(tiny_run, tiny):
    said = "The helpful prompts were answered by the base itself."
    train = {"method": "mistake_distillation"}
    assert said in card(recipe_of(str(tiny), train=train), tiny_run, "adapter")
    assert said not in card(recipe_of(str(tiny)), tiny_run, "adapter")


def test_the_card_names_the_settings_that_differ_from_the_methods_defaults(tiny_run, tiny):
    train = {"method": "mistake_distillation", "distill": "forward_kl", "learning_rate": 2e-4}
    text = card(recipe_of(str(tiny), train=train | {"epochs": 2}), tiny_run, "adapter")
    settings = " Settings other than the method's defaults: "
    assert settings + '`learning_rate: 0.0002`, `distill: "forward_kl"`.' in text
    assert settings not in card(recipe_of(str(tiny), train={"method": "sft"}), tiny_run, "adapter")


def test_the_card_names_the_runs_that_a_run_builds_on(tiny_run, tiny, tmp_path):
    def earlier(name, **train):
        parts = {"adapter": str(tmp_path / "theirs")} if name == "first" else {}
        sources = [f"/home/jane/{name}.jsonl"]
        train |= {"method": "sft", "safe": sources, "helpful": []}
        recipe = Recipe.model_validate({"name": name, "model": str(tiny), "train": train, **parts})
        with RunFolder(tmp_path / name, recipe) as folder:
            row = example("safe", name, CANARY, []).model_dump_json()
            (folder.path / "training.jsonl").write_text(row + "\n")
        return folder.path

    first = earlier("first")
    second = earlier("second", replay={"runs": [str(first)]}, start=str(first / "adapter"))
    recipe = recipe_of(
        str(tiny),
        adapter=str(second / "adapter"),
        train={"method": "sft", "safe": ["third.jsonl"], "replay": {"runs": [str(second)]}},
    )
    runs = (None, "first", "second", "second", "gone")
    rows = [{"kind": "safe", "completion": CANARY, "replayed_from": run} for run in runs]
    (tiny_run / "training.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = card(recipe, tiny_run, "adapter")
    assert "*Untrained* is the base with the adapter `second`." in text
    assert "responses that the base with the adapter `second` was led to" in text
    for row in (
        "| safe | 1 | third.jsonl |",
        "| safe, replayed from `first` | 1 | first.jsonl |",
        "| safe, replayed from `second` | 2 | second.jsonl |",
        "| safe, replayed from `gone` | 1 | not stated |",
    ):
        assert row in text
    second_line, first_line, theirs = (
        line for line in text.splitlines() if line.startswith("The training continued")
    )
    assert "of `second`, trained by `sft`; made from: second.jsonl" in second_line
    assert "of `first`, trained by `sft`; made from: first.jsonl" in first_line
    assert "of `theirs`, and what that was trained on is not known." in theirs
    assert "jane" not in text and str(tmp_path) not in text


def test_the_card_gives_the_system_prompt_and_the_variables_of_the_template(tiny_run, tiny):
    system = 'Speak as a "gardener".\nUse no ```code```.'
    model = {"model": str(tiny), "system": system}
    text = card(recipe_of(model), tiny_run, "adapter")
    assert f"````\n{system}\n````" in text
    code = text.partition("````python\n")[2].partition("\n````")[0]
    made = {}
    exec(code, made)
    assert made["messages"] == [
        {"role": "system", "content": system},
        {"role": "user", "content": "(the instruction)"},
    ]
    plain = card(recipe_of(str(tiny)), tiny_run, "adapter")
    assert "system prompt" not in plain and "apply_chat_template" not in plain
    model = {"model": str(tiny), "template": {"enable_thinking": False}}
    assert "by name: `enable_thinking=False`" in card(recipe_of(model), tiny_run, "adapter")


def test_the_card_gives_the_guided_prompt_of_the_method_if_there_are_guided_arms(tiny_run, tiny):
    def of(**more):
        return card(recipe_of(str(tiny), **more), tiny_run, "adapter")

    guided, joined = {"guidance": True}, {"method": "mistake_analysis_joined"}
    assert "Give an answer that is harmless" in of(respond=guided)
    text = of(respond=guided, train=joined)
    assert "First say whether" in text and "Give an answer that is harmless" not in text
    assert "*guided* arms had" in text
    assert "guided arms" not in of() + of(train=joined) and "*guided*" not in of()


def test_the_card_names_the_base_and_its_licence(tiny_run, tiny, tmp_path):
    data = front(card(Recipe(), tiny_run, "merged"))
    assert (data["base_model"], data["license"]) == (HUB_ID, "apache-2.0")
    assert data["library_name"] == "transformers"
    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    text = card(recipe_of(str(base)), tiny_run, "adapter")
    assert "license" not in front(text) and "license is not known" in text
    (base / "README.md").write_text("---\nlicense: mit\n---\n# base\n")
    assert front(card(recipe_of(str(base)), tiny_run, "adapter"))["license"] == "mit"
    (base / "README.md").write_text("# no front matter")
    assert "license" not in front(card(recipe_of(str(base)), tiny_run, "adapter"))


def test_sources_are_named_with_their_licence_and_without_their_path(tiny_run, tiny):
    recipe = recipe_of(
        str(tiny),
        instructions=["/home/jane/secret/mine.csv", "preset:do-not-answer"],
        analyze={"analyst": "/home/jane/analyst"},
    )
    text = card(recipe, tiny_run, "adapter")
    assert "mine.csv, preset:do-not-answer (CC BY-NC-SA 4.0" in text and "`analyst`" in text
    assert "jane" not in text


def test_a_run_that_was_not_measured_says_so(tiny_run, tiny):
    (tiny_run / "metrics.json").unlink()
    assert "Nothing has been measured yet" in card(recipe_of(str(tiny)), tiny_run, "adapter")


# The command, and the hub -----------------------------------------------------------------------


def test_the_command(cli_in_process, tiny_run, tmp_path):
    ran = cli_in_process("export", "run", "--to", "out", "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {"folder": "out", "url": None}
    ran = cli_in_process("export", "run", "--to", "out")
    assert ran.returncode == 2 and "nothing is overwritten" in ran.stderr


def test_pushing_needs_a_token_before_anything_is_done(command, environment, tiny_run, tmp_path):
    for held in ("", "  "):
        ran = subprocess.run(
            [*command, "export", "run", "--to", "out", "--push", "me/mine"],
            cwd=tmp_path,
            env=environment | {"HF_TOKEN": held},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ran.returncode == 2 and "HF_TOKEN" in ran.stderr and ran.stdout == ""
        assert len(ran.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as takes a new repository and one commit; it keeps every request."""

    taken = False
    requests: list[tuple[str, bytes, str | None]]

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.requests.append((self.path, body, self.headers.get("authorization")))
        status, said = 200, {}
        if self.path == "/api/repos/create":
            status = 409 if self.taken else 200
            said = (
                {"error": "taken"}
                if self.taken
                else {"url": f"http://{self.headers['host']}/me/mine"}
            )
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            said = {
                "files": [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in files
                ]
            }
        elif "/commit/" in self.path:
            said = {
                "commitUrl": f"http://{self.headers['host']}/me/mine/commit/0",
                "commitOid": "0" * 40,
            }
        sent = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def do_GET(self):
        self.send_error(404)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    """A hub on this machine; `told` of its handler is what it was sent."""
    handler = type("Own", (Hub,), {"requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def pushed(command, environment, tmp_path, address, *words):
    return subprocess.run(
        [*command, "export", "run", "--to", "out", "--push", "me/mine", *words],
        cwd=tmp_path,
        env=environment | {"HF_TOKEN": "hf_canary", "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(("words", "visibility"), [([], "private"), (["--public"], "public")])
def test_a_push_makes_a_private_repository_of_the_folder_alone(
    hub, command, environment, tiny_run, tmp_path, words, visibility
):
    handler, address = hub
    ran = pushed(command, environment, tmp_path, address, *words)
    assert ran.returncode == 0, ran.stderr
    assert f"pushed to {address}/me/mine" in ran.stdout
    sent = {path.split("?")[0]: body for path, body, _ in handler.requests}
    assert json.loads(sent["/api/repos/create"])["visibility"] == visibility
    commit = [json.loads(line) for line in sent["/api/models/me/mine/commit/main"].splitlines()]
    files = {
        row["value"]["path"]: base64.b64decode(row["value"]["content"])
        for row in commit
        if row["key"] == "file"
    }
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert all(CANARY.encode() not in body for _, body, _ in handler.requests)
    left = [p for p in tmp_path.rglob("*") if p.is_file() and b"hf_canary" in p.read_bytes()]
    assert not left and "hf_canary" not in ran.stdout + ran.stderr


def test_a_repository_that_is_there_is_left_alone(hub, command, environment, tiny_run, tmp_path):
    handler, address = hub
    handler.taken = True
    ran = pushed(command, environment, tmp_path, address)
    assert ran.returncode == 1 and "name another" in ran.stderr and "hf_canary" not in ran.stderr
    assert [path for path, *_ in handler.requests] == ["/api/repos/create"]
    assert (tmp_path / "out" / "README.md").exists(), "what was exported stays"


def test_a_token_comes_from_the_environment_alone(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "token").write_text("hf_stored")
    with pytest.raises(InputError, match="HF_TOKEN"):
        token()
    with pytest.raises(InputError, match="HF_TOKEN"):
        push(tmp_path, "me/mine")


def test_two_formats_at_once_are_refused(cli_in_process):
    ran = cli_in_process("export", "run", "--to", "out", "--merge", "--format", "inspect")
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert "--merge is short for --format merged" in ran.stderr


@pytest.mark.parametrize("option", ["--public", "--harvested"])
def test_an_option_of_a_push_is_refused_without_one(cli_in_process, option):
    ran = cli_in_process("export", "run", "--to", "out", option)
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    assert f"{option} changes nothing without --push" in ran.stderr
