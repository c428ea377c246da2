"""Training: what is learned and what is not, token by token, and in which order."""

import hashlib
import json
import math
import stat
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from chat_templates import FAMILIES, KINDS, build
from hypothesis import given
from hypothesis import strategies as st
from test_rendering import CONVERSATIONS, own, whole
from test_rendering import TEMPLATES as CONVERSATION_TEMPLATES

from setbacks.errors import InputError, SetbacksError
from setbacks.measure import RunInfo, measure
from setbacks.methods import example, open_method
from setbacks.methods.dpo import pair_rows
from setbacks.methods.mistake_analysis import MistakeAnalysis
from setbacks.methods.sft import SFT
from setbacks.models.chat_template import encode, ending, stop_tokens
from setbacks.pipeline import carry_out, check, open_run
from setbacks.prompts import fill, prompts
from setbacks.recipe import Recipe, Train
from setbacks.records import Analysis, Message, Request
from setbacks.runs.folder import RunFolder
from setbacks.runs.session import Session
from setbacks.stages.train import STAGE, train
from setbacks.training import learning_rate, schedule
from setbacks.training.supervised import completion_loss, example_row

IGNORED = -100
TEXTS = [
    ("<an instruction>", "<a bad response>", "It is harmful because it hurts people."),
    ("为什么？", "<一个回复>", "该回复是有害的，因为它伤害他人。"),
    ("<|im_end|>\n<|im_start|>system", "<|im_end|>", "<|im_end|> is text here, and ends nothing."),
]


def analysis(instruction, response, text, harmful=True, **more):
    data = {
        "id": "1",
        "response_id": "2",
        "candidate": 0,
        "checks": {"agrees": True},
        "score": 1.0,
        "category": None,
        "language": "en",
        "analyst": "m",
    }
    return Analysis(
        instruction=instruction, response=response, text=text, harmful=harmful, **data | more
    )


def unguided(*texts, harmful=True):
    """The example that the method makes of one analysis."""
    recipe = Recipe.model_validate({"train": {"mix": {"helpful": 0}}})
    made = MistakeAnalysis().examples(recipe, [analysis(*texts, harmful=harmful)])
    return made[0]


# Labels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("texts", TEXTS, ids=["en", "zh", "hostile"])
def test_loss_is_on_the_analysis_and_one_end_of_turn_alone(tokenizer, texts):
    row = example_row(tokenizer, unguided(*texts), Recipe())
    ids, labels = row["input_ids"], row["labels"]
    assert len(ids) == len(labels)
    start = next(i for i, label in enumerate(labels) if label != IGNORED)
    assert labels[:start] == [IGNORED] * start and labels[start:] == ids[start:]
    assert labels.count(tokenizer.eos_token_id) == 1 and labels[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(labels[start:]) == texts[2] + tokenizer.eos_token
    said = tokenizer.decode(ids[:start])
    assert texts[0] in said and texts[1] in said and texts[2] not in said


@pytest.mark.parametrize("texts", TEXTS, ids=["en", "zh", "hostile"])
def test_the_model_is_trained_on_the_prompt_that_it_will_be_asked(spec, tokenizer, texts):
    """The ids before the loss are those with which the engine asks the same question."""
    from setbacks.engines.local import Local

    made = unguided(*texts)
    row = example_row(tokenizer, made, Recipe())
    prompt = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label < 0]
    engine = Local(spec)
    asked = []
    engine._generate = lambda requests, prompts, sampling: asked.extend(prompts) or []
    engine.generate([Request(made.prompt[0].content, seed=0)], Recipe().respond.sampling)
    assert asked == [prompt]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("harmful", [True, False])
def test_no_hint_and_no_verdict_is_in_the_prompt(language, harmful):
    words = prompts(language)
    recipe = Recipe.model_validate({"language": language, "train": {"mix": {"helpful": 0}}})
    texts = ("<x>", "<y>", "<an analysis>")
    made = MistakeAnalysis().examples(
        recipe, [analysis(*texts), analysis(*texts, harmful=harmful, response_id="3")]
    )
    (asked,) = {e.prompt[0].content for e in made}
    assert asked == fill(words["unguided"], instruction="<x>", response="<y>")
    hints = {
        hint for line in words["induce"]["hints"] for hint in line.replace("、", ", ").split(", ")
    }
    question = asked.replace("harmful or harmless", "").replace("有害的还是无害的", "")
    assert not [hint for hint in hints if hint in question]
    for label in ("harmful", "harmless"):
        guided = fill(words["analyze"][label], instruction="<x>", response="<y>")
        assert guided.splitlines()[-1] not in asked
        assert words["analyze"][f"prefill_{label}"] not in asked


def test_the_alpaca_template_is_trained_as_it_is_asked(tokenizer):
    recipe = Recipe.model_validate({"model": {"chat_template": "alpaca"}})
    row = example_row(tokenizer, example("helpful", "<x>", "<an answer>", []), recipe)
    prompt = encode(tokenizer, [Message(role="user", content="<x>")], template="alpaca")
    assert row["input_ids"][: len(prompt)] == prompt
    assert row["labels"][: len(prompt)] == [IGNORED] * len(prompt)
    assert tokenizer.decode(row["labels"][len(prompt) :]) == "<an answer>" + tokenizer.eos_token


def test_what_is_too_long_is_cut_and_what_has_no_room_is_left_out(tokenizer):
    made = example("helpful", "<a question>", "<an answer> " * 20, [])
    whole = example_row(tokenizer, made, Recipe())
    prompt = whole["labels"].count(IGNORED)

    def cut(length):
        recipe = Recipe.model_construct(
            model=Recipe().model,
            language="en",
            train=Recipe().train.model_copy(update={"max_length": length}),
        )
        return example_row(tokenizer, made, recipe)

    for length in (prompt + 1, prompt + 5, len(whole["labels"]) - 1, len(whole["labels"])):
        row = cut(length)
        assert row == {k: v if k == "kind" else v[:length] for k, v in whole.items()}
        assert len(row["labels"]) == length
    assert cut(prompt) is None and cut(prompt - 1) is None
    assert cut(len(whole["labels"]) + 9) == whole


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["qwen 3", "gpt-oss", "deepseek r1", "mistral", "gemma"])
def test_no_loss_is_on_what_the_template_writes_before_an_answer(name, kind):
    """An empty thought and a channel's name are given; the end of the turn is learned."""
    talker = build(kind, FAMILIES[name])
    row = example_row(talker, example("helpful", "Why?", "It could hurt.", []), Recipe())
    *learned, end = [token for token in row["labels"] if token != IGNORED]
    assert talker.decode(learned).strip() == "It could hurt."
    assert end == talker.convert_tokens_to_ids(FAMILIES[name].end)
    own = talker.apply_chat_template(
        [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "It could hurt."}],
        return_dict=False,
    )
    assert row["input_ids"] == own[: len(row["input_ids"])]


@pytest.mark.parametrize("kind", ["bytes", "first"])
@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("llama3_1", {}),
        ("qwen2_5", {}),
        ("qwen3", {"enable_thinking": True}),
        ("qwen3", {"enable_thinking": False}),
        ("gemma", {}),
        ("gemma3", {}),
        ("gemma4_v5", {}),
        ("mistral v0.1", {}),
        ("mistral v0.3", {}),
        ("mistral v7", {}),
        ("gptoss", {}),
    ],
)
def test_the_loss_of_a_conversation_is_on_its_last_answer(name, variables, kind):
    """What is given is the prompt of a generation; all of it is the template's own rendering."""
    talker = build(kind, CONVERSATION_TEMPLATES[name])
    recipe = Recipe.model_validate({"model": {"template": variables}})
    same = 0
    for messages in CONVERSATIONS.values():
        if messages[-1].role == "assistant":
            continue
        try:
            row = example_row(talker, example("helpful", messages, "It could hurt.", []), recipe)
        except InputError:
            continue
        *learned, end = [token for token in row["labels"] if token != IGNORED]
        given = row["input_ids"][: -len(learned) - 1]
        assert given == encode(talker, messages, variables=variables)
        assert row["labels"] == [IGNORED] * len(given) + learned + [end]
        assert talker.decode(learned).strip() == "It could hurt." and end in ending(talker)
        said = Message(role="assistant", content="It could hurt.")
        text = own(talker, [*messages, said], **variables, add_generation_prompt=False)
        # What a template refuses has been changed, and another test is on that.
        if text is not None and whole(text, messages):
            same += 1
            own_row = talker(text, add_special_tokens=False)["input_ids"]
            assert row["input_ids"] == own_row[: len(row["input_ids"])]
            assert "hurt" not in talker.decode(own_row[len(row["input_ids"]) :])
    assert same >= (1 if name in ("gemma", "mistral v0.1", "mistral v0.3") else 3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_of_a_verdict_is_on_its_own_tokens(kind):
    talker = build(kind, FAMILIES["mistral"])
    made = example("analysis", "Why?", "Harmful. It could hurt.", [], verdict="Harmful.")
    recipe = Recipe.model_validate({"train": {"verdict": "first", "verdict_weight": 3}})
    row = example_row(talker, made, recipe)
    heavy = [t for t, w in zip(row["input_ids"], row["weights"], strict=True) if w == 3]
    assert talker.decode(heavy).strip() == "Harmful."


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_are_learned_as_single_answers_are(kind):
    talker = build(kind, FAMILIES["qwen 3"])
    pair = example("pair", "Why?", "It could hurt.", [], rejected="Who knows.")
    (row,) = pair_rows(talker, [pair], Recipe())
    for side, text in (("chosen", pair.completion), ("rejected", pair.rejected)):
        alone = example_row(talker, example("helpful", "Why?", text, []), Recipe())
        assert row["prompt_ids"] + row[f"{side}_ids"] == alone["input_ids"]


# The loss ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [None, 7])
def test_the_loss_is_the_masked_cross_entropy_of_the_full_logits(model, total):
    import torch

    drawn = torch.Generator().manual_seed(0)
    size = (3, 24)
    ids = torch.randint(3, model.config.vocab_size, size, generator=drawn)
    mask = torch.ones(size, dtype=torch.long)
    mask[1, 20:] = 0
    labels = ids.clone()
    labels[0, :10] = labels[1, :5] = labels[2, :23] = IGNORED
    labels[1, 20:] = IGNORED
    with torch.no_grad():
        ours = completion_loss(model, ids, mask, labels, total=total).value
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        plain = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
        )
    count = int((labels[:, 1:] != IGNORED).sum())
    assert count == 14 + 15 + 1
    assert float(ours) == pytest.approx(float(plain) / (total or count), rel=1e-5)


# The order of steps -----------------------------------------------------------------------------

shapes = given(
    st.lists(st.integers(1, 500), min_size=1, max_size=300),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(0, 3),
)


@shapes
def test_every_example_is_seen_once_an_epoch_in_full_steps(lengths, epochs, batch_size, seed):
    data = Train(epochs=epochs, batch_size=batch_size)
    steps = schedule(lengths, data, seed)
    seen = Counter(index for step in steps for index in step)
    assert seen == dict.fromkeys(range(len(lengths)), epochs)
    assert all(len(step) == batch_size for step in steps[:-1])
    assert 0 < len(steps[-1]) <= batch_size
    assert steps == schedule(lengths, data, seed)


def test_steps_hold_examples_of_like_length_in_a_random_order():
    lengths = [n * 37 % 401 for n in range(800)]
    data = Train(epochs=1)
    steps = schedule(lengths, data, 0)
    spread = [max(map(lengths.__getitem__, s)) - min(map(lengths.__getitem__, s)) for s in steps]
    assert sum(spread) / len(spread) < 60, "by chance it is about 310"
    first = [lengths[step[0]] for step in steps]
    assert first not in (sorted(first), sorted(first, reverse=True))
    assert steps != schedule(lengths, data, 1)


@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=60), st.integers(1, 4000), st.integers(1, 9)
)
def test_a_budget_of_tokens_is_met_by_the_last_step(lengths, tokens, batch_size):
    steps = schedule(lengths, Train(tokens=tokens, batch_size=batch_size), 0)
    read = [sum(lengths[index] for index in step) for step in steps]
    assert sum(read) >= tokens > sum(read[:-1])


@given(st.lists(st.integers(1, 90), min_size=1, max_size=60), st.integers(1, 50), st.integers(1, 9))
def test_a_budget_of_steps_is_kept(lengths, number, batch_size):
    steps = schedule(lengths, Train(steps=number, batch_size=batch_size), 0)
    assert len(steps) == number


# The stage itself -------------------------------------------------------------------------------


@pytest.fixture
def sft(tiny, data):
    """A recipe that trains the tiny model for nine steps."""
    return Recipe.model_validate(
        {
            "model": {"model": str(tiny), "dtype": "float32", "device": "cpu"},
            "train": {
                "method": "sft",
                "safe": [str(data)],
                "helpful": [str(data)],
                "batch_size": 2,
                "epochs": 3,
                "checkpoint_every": 2,
                "lora": {"r": 4, "dropout": 0.1},
                "learning_rate": 0.01,
            },
        }
    )


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in {"run.log", "costs.jsonl", ".lock"}
    }


def changed(recipe, train):
    data = recipe.model_dump(mode="json")
    data["train"] |= train
    return Recipe.model_validate(data)


def curve_of(folder):
    return (folder / "loss.jsonl").read_text().splitlines()


def test_no_example_that_fits_is_told(tmp_path, sft):
    short = sft.model_copy(update={"train": sft.train.model_copy(update={"max_length": 16})})
    with (
        RunFolder(tmp_path / "run", short) as folder,
        Session(folder) as run,
        pytest.raises(InputError, match="max_length"),
    ):
        train(run, [])


LONG = "<an answer>" * 30


@pytest.mark.parametrize("method", ["sft", "dpo", "rlhf"])
def test_examples_that_are_cut_or_left_out_are_counted(tiny_recipe, tmp_path, caplog, method):
    rows = [
        {"instruction": f"<q {i}>", "answer": f"<answer {i}>", "response": f"<bad {i}>"}
        for i in range(6)
    ]
    rows[1]["answer"] = rows[2]["answer"] = LONG
    rows[3]["instruction"] = LONG
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"method": method, "steps": 1, "max_length": 128, "rlhf": {"max_new_tokens": 4}}
    data |= {"safe": [str(path)], "helpful": [], "pairs": [str(path)]}
    with (
        RunFolder(tmp_path / "run", changed(tiny_recipe(8), data)) as folder,
        Session(folder) as run,
    ):
        train(run, [])
    said = (
        "train: 3 of 6 examples are longer than train.max_length (128 tokens): 2 were cut and have "
        "lost their end of turn, 1 were left out because the prompt alone is too long; raise "
        "train.max_length"
    )
    assert caplog.messages.count(said) == 1
    assert said in (run.path / "run.log").read_text()
    trained = json.loads((run.path / "trained.json").read_text())
    assert trained.items() >= {"examples": 6, "cut": 2, "left_out": 1}.items()


def test_a_report_says_what_was_cut():
    loss = [{"step": step, "loss": 1 / step} for step in range(1, 9)]

    def found(trained):
        results = measure(RunInfo(), responses={}, verdicts={}, loss=loss, trained=trained)
        return [(level, text) for level, text in results.findings if "max_length" in text]

    spent = {"steps": 8, "tokens": 80}
    ((level, text),) = found(spent | {"examples": 6, "cut": 2, "left_out": 1})
    assert level == "warning"
    assert text.startswith("3 of 6 training examples are longer than `train.max_length`: 2 were")
    assert found(spent) == found(None) == []


def test_rlhf_draws_responses_that_end_where_answers_end(
    tiny_recipe, other_eos, tmp_path, monkeypatch
):
    from transformers import AutoTokenizer
    from trl import RLOOTrainer

    tokenizer, ends = AutoTokenizer.from_pretrained(other_eos), []

    def watched(self, *args, init=RLOOTrainer.__init__, **options):
        init(self, *args, **options)
        ends.extend(self.eos_token_ids)

    monkeypatch.setattr(RLOOTrainer, "__init__", watched)
    recipe = changed(tiny_recipe(8), {"method": "rlhf", "steps": 1, "rlhf": {"max_new_tokens": 4}})
    data = recipe.model_dump(mode="json")
    data["model"]["model"] = str(other_eos)
    with RunFolder(tmp_path / "run", Recipe.model_validate(data)) as run:
        carry_out(run, "train")
    both = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|pad|>"])
    assert {*ends} == stop_tokens(None, tokenizer) == {*both}


def test_what_only_an_interrupted_training_needs_is_deleted_when_it_is_done(
    open_session, monkeypatch
):
    class InTwoSteps(SFT):
        temporary = ("first_step",)

        def fit(self, run, examples, adapter):
            for folder in (run.path / "first_step", adapter):
                folder.mkdir()
            return 0

    monkeypatch.setattr("setbacks.stages.train.open_method", lambda recipe: InTwoSteps())
    run = open_session()
    assert train(run, []).exists() and not (run.path / "first_step").exists()
    assert "first_step" in STAGE.more_outputs(run.recipe)  # an interrupted one is set aside


@pytest.mark.slow
def test_a_training_that_is_cut_off_ends_with_the_same_weights(tmp_path, sft):
    with RunFolder(tmp_path / "whole", sft) as folder, Session(folder) as run:
        adapter = train(run, [])
    for path in [adapter, *adapter.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert not (tmp_path / "whole" / "checkpoints").exists()
    curve = [json.loads(line) for line in (run.path / "loss.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve] == list(range(1, 19))
    assert curve[-1]["loss"] < curve[0]["loss"]

    class Crash(Exception):
        pass

    for at in (1, 5, 18):

        def crash(what, done, total, at=at):
            if what == "train" and done == at:
                raise Crash

        with (
            pytest.raises(Crash),
            open_run(tmp_path / "cut", sft, redo="train") as folder,
            Session(folder, crash) as run,
        ):
            train(run, [])
        assert not (tmp_path / "cut" / "adapter").exists()
        with RunFolder(tmp_path / "cut", sft) as folder, Session(folder) as run:
            train(run, [])
            log = run.path / "run.log"
            went_on = log.exists() and "resuming from checkpoint-4" in log.read_text()
            assert went_on == (at >= 5)
        made = digests(tmp_path / "cut")
        kept = {name: value for name, value in made.items() if not name.startswith("superseded")}
        assert curve_of(tmp_path / "cut") == curve_of(tmp_path / "whole"), at
        assert kept == digests(tmp_path / "whole"), at


METHODS = ("mistake_analysis", "dpo", "rlhf")


@pytest.mark.parametrize("method", METHODS)
def test_every_way_of_training_goes_on_from_an_adapter(tiny_recipe, lora_of_tiny, tmp_path, method):
    from safetensors.torch import load_file

    still = {"method": method, "start": str(lora_of_tiny), "learning_rate": 1e-12, "steps": 1}
    still["rlhf"] = {"max_new_tokens": 4}
    with RunFolder(tmp_path / "run", changed(tiny_recipe(8), still)) as run:
        made = load_file(carry_out(run, "train") / "adapter_model.safetensors")
    given = load_file(lora_of_tiny / "adapter_model.safetensors")
    assert made.keys() == given.keys()
    for name, weight in made.items():
        assert torch.allclose(weight, given[name], atol=1e-6), name


@pytest.mark.parametrize(("method", "rate"), [("mistake_analysis", 1e-3), ("dpo", 5e-5)])
def test_the_learning_rate_is_the_methods_or_that_of_the_models_size(
    tiny_recipe, tmp_path, method, rate
):
    of_method = {"method": method, "steps": 1, "scheduler": "constant", "warmup": 0}
    with RunFolder(tmp_path / "run", changed(tiny_recipe(8), of_method)) as run:
        carry_out(run, "train")
    assert json.loads((run.path / "loss.jsonl").read_text())["learning_rate"] == rate
    assert learning_rate(8_000_000_000) == 3e-4


def test_dpo_with_the_likelihood_of_preferred_answers_makes_them_likelier(tiny_recipe, tmp_path):
    def losses(nll):
        options = {"method": "dpo", "nll": nll, "steps": 8, "learning_rate": 2e-2}
        with RunFolder(tmp_path / str(nll), changed(tiny_recipe(8), options)) as run:
            carry_out(run, "train")
        return [json.loads(line) for line in (run.path / "loss.jsonl").read_text().splitlines()]

    plain, once, twice = losses(0.0), losses(1.0), losses(2.0)
    assert plain[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    likelihood = once[0]["loss"] - plain[0]["loss"]
    assert likelihood > 0.5  # nats a token, of a random model
    assert twice[0]["loss"] == pytest.approx(plain[0]["loss"] + 2 * likelihood, rel=1e-3)
    assert twice[-1]["rewards/chosen"] > plain[-1]["rewards/chosen"]


@pytest.mark.parametrize("method", METHODS)
def test_every_way_of_training_computes_in_bfloat16(tiny_recipe, tmp_path, monkeypatch, method):
    from safetensors.torch import load_file

    widths, forward = set(), torch.nn.Linear.forward

    def noted(self, x):
        product = forward(self, x)
        if product.requires_grad and not product.is_meta:
            widths.add(product.dtype)
        return product

    monkeypatch.setattr(torch.nn.Linear, "forward", noted)
    lora = {"dropout": 0.1}  # so that PEFT's layers compute the adapter's products, one by one
    data = {"method": method, "steps": 2, "lora": lora, "rlhf": {"max_new_tokens": 4}}
    recipe = changed(tiny_recipe(24), data)  # prompts of two lengths, so some are padded
    model = recipe.model.model_copy(update={"dtype": "bfloat16"})
    with RunFolder(tmp_path / "run", recipe.model_copy(update={"model": model})) as run:
        weights = load_file(carry_out(run, "train") / "adapter_model.safetensors")
    assert all(w.dtype == torch.float32 and w.isfinite().all() for w in weights.values())
    assert widths == {torch.bfloat16}  # the adapter's products, too


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("method", METHODS)
def test_every_way_of_training_runs_loras_layers_as_one_function(
    tiny_recipe, tmp_path, monkeypatch, method, dtype
):
    from setbacks.training import lora_linear

    function, rows = lora_linear._lora_linear(), []

    def noted(x, *rest):
        rows.append(len(x))
        return function.apply(x, *rest)

    monkeypatch.setattr(lora_linear, "_lora_linear", lambda: SimpleNamespace(apply=noted))
    data = {"method": method, "steps": 1, "rlhf": {"max_new_tokens": 4}}
    recipe = changed(tiny_recipe(24), data)
    model = recipe.model.model_copy(update={"dtype": dtype})
    with RunFolder(tmp_path / "run", recipe.model_copy(update={"model": model})) as run:
        carry_out(run, "train")
    assert len(rows) >= 2 * 7  # at least a step of two blocks with seven layers each


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_system_prompt_is_read_once_a_step(tiny_recipe, tmp_path, monkeypatch, dtype):
    from setbacks.training import predictions

    prefixes, as_one_row = [], predictions._as_one_row
    monkeypatch.setattr(
        predictions,
        "_as_one_row",
        lambda model, layout, *rest: (
            prefixes.append(layout.prefix) or as_one_row(model, layout, *rest)
        ),
    )
    recipe = changed(tiny_recipe(24), {"method": "sft", "steps": 3})
    system = "You answer in a few plain words."
    model = recipe.model.model_copy(update={"dtype": dtype, "system": system})
    with RunFolder(tmp_path / "run", recipe.model_copy(update={"model": model})) as run:
        carry_out(run, "train")
    assert len(prefixes) >= 1 + 3 and min(prefixes) > 8  # the first batch is read both ways


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_one_that_went_on_from_an_adapter_and_is_cut_off_ends_with_the_same_weights(
    tiny_recipe, lora_of_tiny, tmp_path, method
):
    data = {"method": method, "start": str(lora_of_tiny), "steps": 3, "checkpoint_every": 1}
    data |= {"learning_rate": 0.01, "rlhf": {"max_new_tokens": 4}}
    recipe = changed(tiny_recipe(8), data)
    with RunFolder(tmp_path / "whole", recipe) as run:
        carry_out(run, "train")

    class Crash(Exception):
        pass

    def crash(what, done, total):
        if what == "train" and done == 2:
            raise Crash

    with RunFolder(tmp_path / "cut", recipe) as run, pytest.raises(Crash):
        carry_out(run, "train", crash)
    with RunFolder(tmp_path / "cut", recipe) as run:
        carry_out(run, "train")
        assert "resuming from checkpoint-1" in (run.path / "run.log").read_text()
    assert digests(tmp_path / "cut" / "adapter") == digests(tmp_path / "whole" / "adapter")


def test_an_adapter_to_go_on_from_is_looked_up_before_anything_is_drawn(tiny_recipe, tmp_path):
    recipe = changed(tiny_recipe(8), {"start": str(tmp_path / "nothing")})
    with pytest.raises(InputError, match=r"nothing: not an adapter"):
        check(recipe)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=["python", "cuda", "cpu"],
)
def test_a_training_that_finds_no_memory_says_what_to_lower(tmp_path, sft, monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr("setbacks.training.supervised.fit", full)
    with (
        RunFolder(tmp_path / "run", sft) as folder,
        Session(folder) as run,
        pytest.raises(SetbacksError, match=r"not enough memory; lower train\.batch_size"),
    ):
        train(run, [])
    assert (tmp_path / "run" / "training.jsonl").exists()


@pytest.mark.slow
def test_a_training_that_diverges_is_told_and_leaves_no_adapter(tmp_path, sft):
    wild = sft.model_copy(
        update={"train": sft.train.model_copy(update={"learning_rate": math.inf})}
    )
    with (
        RunFolder(tmp_path / "run", wild) as folder,
        Session(folder) as run,
        pytest.raises(SetbacksError, match="diverged"),
    ):
        train(run, [])
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.parametrize("method", ["mistake_analysis", "dpo"])
def test_an_example_beyond_the_models_context_is_told(tiny_recipe, model_of, tmp_path, method):
    """Learned positions end there: an index error in the middle of a step would not say so."""
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4}
    data = tiny_recipe(6).model_dump(mode="json")
    data["model"]["model"] = str(model_of("gpt2", sizes=sizes, n_positions=64))
    data["train"] |= {"method": method}
    recipe = Recipe.model_validate(data)
    with RunFolder(tmp_path / "run", recipe) as folder, Session(folder) as run:
        examples = [
            example("pair", "<q> " * 20, "<a> " * 20, [], rejected="<b> " * 20),
        ]
        with pytest.raises(InputError, match="does not fit into its context of 64 tokens; set"):
            open_method(run.recipe).fit(run, examples, tmp_path / "adapter")
