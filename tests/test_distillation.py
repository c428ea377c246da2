"""Per-token distillation: the divergence, the tokens that it is on, the teacher, and training."""

import json

import pytest
import torch
from chat_templates import FAMILIES, KINDS, build
from hypothesis import given, settings
from hypothesis import strategies as st

from setbacks.errors import InputError
from setbacks.methods import example, open_method
from setbacks.models.chat_template import ending
from setbacks.models.loading import load_tokenizer
from setbacks.pipeline import check
from setbacks.recipe import Engine, Recipe
from setbacks.records import Example, Message, Teaching
from setbacks.runs.folder import RunFolder
from setbacks.runs.session import Session
from setbacks.training import learner
from setbacks.training.distillation import (
    Divergence,
    Teacher,
    jsd,
    log_probabilities,
    teacher_row,
)
from setbacks.training.supervised import collate, completion_loss, example_row

ANSWER = "I won't do this. It could hurt."
OPENING = "I won't do this. It could"


@pytest.fixture(scope="module")
def tokenizer(tiny):
    """The tokenizer of the tiny model."""
    return load_tokenizer(Engine(model=str(tiny)))


def teaching(text, **more):
    return Teaching(prompt=[Message(role="user", content=text)], **more)


def corrections(number=4, **more):
    """Examples whose teacher sees more than the student."""
    return [
        example(
            "correction",
            f"<q {i}>",
            f"<an answer, {i}>",
            [],
            teaching(f"Answer harmlessly, since it could hurt somebody: <q {i}>", **more),
        )
        for i in range(number)
    ]


def benign(number=4):
    """Examples whose teacher sees what the student sees."""
    return [
        example(
            "helpful", f"<a request, {i}>", f"<an answer, {i}>", [], teaching(f"<a request, {i}>")
        )
        for i in range(number)
    ]


# The divergence ---------------------------------------------------------------------------------


def drawn(seed, rows=5, vocabulary=40, scale=4.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, vocabulary, generator=generator)


def compared(student, teacher, beta, top_k):
    tokens = teacher.topk(top_k, dim=1).indices
    return jsd(log_probabilities(student, tokens), log_probabilities(teacher, tokens), beta)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9])
def test_with_the_whole_vocabulary_it_is_that_of_trl(beta, monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd import GKDTrainer

    student, teacher = drawn(0), drawn(1)
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, reduction="none")
    ours = compared(student, teacher, beta, top_k=40)
    assert torch.allclose(ours, theirs.sum(dim=1), atol=1e-5)
    assert (ours > 0.1).all()


@given(st.integers(0, 99), st.integers(1, 40), st.sampled_from([0.0, 0.3, 0.5]))
@settings(deadline=None)
def test_fewer_tokens_never_show_a_larger_difference(seed, top_k, beta):
    """All other tokens count as one, and what is merged cannot differ any more."""
    student, teacher = drawn(seed), drawn(seed + 100)
    whole = compared(student, teacher, beta, top_k=40)
    part = compared(student, teacher, beta, top_k)
    assert (part <= whole + 1e-4).all() and (part > -1e-5).all()


@pytest.mark.parametrize("scale", [0.1, 4.0, 60.0])
@pytest.mark.parametrize("top_k", [1, 7, 40])
def test_the_probabilities_that_are_compared_sum_to_one(scale, top_k):
    logits = drawn(2, scale=scale)
    log_probs = log_probabilities(logits, logits.topk(top_k, dim=1).indices)
    assert log_probs.shape == (5, min(top_k + 1, 40)) and log_probs.isfinite().all()
    assert torch.allclose(log_probs.exp().sum(dim=1), torch.ones(5), atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("top_k", [7, 40])
@pytest.mark.parametrize("scale", [4.0, 60.0])
def test_equal_models_have_no_divergence_and_no_gradient(beta, top_k, scale):
    student = drawn(3, scale=scale).requires_grad_()
    value = compared(student, drawn(3, scale=scale), beta, top_k)
    value.sum().backward()
    assert torch.allclose(value, torch.zeros(5), atol=1e-5)
    assert student.grad.abs().max() < 1e-5


@pytest.mark.parametrize("top_k", [3, 40])
def test_the_gradient_of_the_forward_kl_is_the_difference_of_the_probabilities(top_k):
    student, teacher = drawn(4, scale=1.0).requires_grad_(), drawn(5, scale=1.0)
    compared(student, teacher, 0.0, top_k).sum().backward()
    tokens = teacher.topk(top_k, dim=1).indices
    expected = student.softmax(1) - teacher.softmax(1)
    assert torch.allclose(student.grad.gather(1, tokens), expected.gather(1, tokens), atol=1e-5)
    assert student.grad.sum(dim=1).abs().max() < 1e-5


# The tokens -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["chatml", "mistral", "qwen 3"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_teacher_did_not_choose_is_learned_as_text(kind, family):
    talker, recipe = build(kind, FAMILIES[family]), Recipe()

    def taught(**more):
        made = example("correction", "Why?", ANSWER, [], teaching("Be kind. Why?", **more))
        row = example_row(talker, made, recipe)
        row |= teacher_row(talker, made, row, recipe)
        for ids, mask in (("input_ids", "taught"), ("teacher_ids", "teacher_taught")):
            assert len(row[ids]) == len(row[mask])
        chosen, same = (
            [i for i, mine in zip(row[ids], row[mask], strict=True) if mine]
            for ids, mask in (("input_ids", "taught"), ("teacher_ids", "teacher_taught"))
        )
        assert chosen == same, "both models are compared at the same tokens"
        assert "Be kind." in talker.decode(row["teacher_ids"])
        assert all(label >= 0 for label, t in zip(row["labels"], row["taught"], strict=True) if t)
        return chosen

    end = [*ending(talker)]
    assert talker.decode(taught()[: -len(end)]).strip() == ANSWER
    assert taught()[-len(end) :] == end
    assert taught(cut=True) == taught()[: -len(end)]
    after = taught(opening=OPENING)
    assert talker.decode(after[: -len(end)]).strip() == "hurt." and after[-len(end) :] == end
    assert taught(opening=OPENING, cut=True) == after[: -len(end)]


def test_an_example_that_is_cut_is_taught_as_far_as_it_goes(tokenizer):
    (made,) = corrections(1, cut=True)
    whole = example_row(tokenizer, made, Recipe())
    whole |= teacher_row(tokenizer, made, whole, Recipe())
    prompt = whole["labels"].count(-100)

    def cut(length):
        recipe = Recipe.model_validate({"train": {"max_length": length}})
        row = example_row(tokenizer, made, recipe)
        return row | teacher_row(tokenizer, made, row, recipe)

    for left in (1, 5):
        row = cut(prompt + left)
        assert row["taught"] == whole["taught"][: prompt + left] and sum(row["taught"]) == left
        assert row["teacher_ids"] == whole["teacher_ids"][: len(row["teacher_ids"])]
        assert sum(row["teacher_taught"]) == left


@pytest.mark.parametrize("teacher", [None, teaching("Be kind. Why?", opening=ANSWER, cut=True)])
def test_where_nothing_is_left_to_teach_the_teacher_is_not_asked(tokenizer, teacher):
    made = example("correction", "Why?", ANSWER, [], teacher)
    row = example_row(tokenizer, made, Recipe())
    row |= teacher_row(tokenizer, made, row, Recipe())
    assert not any(row["taught"]) and row["teacher_ids"] == row["teacher_taught"] == []
    assert collate([row], 0).keys() == {*collate([example_row(tokenizer, made, Recipe())], 0)} | {
        "taught"
    }


# The teacher ------------------------------------------------------------------------------------


@pytest.fixture
def recipe_of(tiny):
    """Make a recipe of per-token distillation on the tiny model."""

    def make(adapter=None, **train):
        train = {
            "method": "mistake_distillation",
            "distill": "forward_kl",
            "helpful": [],
            "batch_size": 4,
            "epochs": 5,
            "warmup": 0,
            "learning_rate": 0.01,
            "lora": {"r": 4},
        } | train
        model = {"model": str(tiny), "dtype": "float32", "device": "cpu"}
        adapter = adapter and str(adapter)
        return Recipe.model_validate({"model": model, "adapter": adapter, "train": train})

    return make


def loss_of(recipe, examples, divergence, tokenizer):
    """Return the loss of the first step, and the model with its gradients."""
    from peft import get_peft_model

    model, new = learner(recipe)
    model = model if new is None else get_peft_model(model, new)
    teacher = Teacher(model, recipe, divergence)
    model.train()
    rows = [example_row(tokenizer, e, recipe) for e in examples]
    rows = [r | teacher_row(tokenizer, e, r, recipe) for r, e in zip(rows, examples, strict=True)]
    batch = collate(rows, 0)
    kinds, asked = batch.pop("kinds"), batch.pop("teacher")
    targets = teacher.targets(model, **asked)
    assert model.training and any(p.requires_grad for p in model.parameters())
    loss = completion_loss(model, **batch, targets=targets)
    loss.value.backward()
    return loss, loss.by_kind(kinds), model


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("top_k", [8, None])
def test_before_training_benign_answers_have_no_loss_and_no_gradient(
    recipe_of, tokenizer, beta, top_k
):
    divergence = Divergence(beta, top_k)
    loss, means, model = loss_of(recipe_of(), benign(), divergence, tokenizer)
    assert abs(loss.value.item()) < 1e-5
    assert means["loss_helpful"] > 1 and abs(means["divergence_helpful"]) < 1e-5
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert gradients and max(float(g.abs().max()) for g in gradients) < 1e-5
    loss, means, model = loss_of(recipe_of(), corrections(), divergence, tokenizer)
    assert loss.value.item() > 0.01 and means["divergence_correction"] > 0.01
    assert max(float(p.grad.abs().max()) for p in model.parameters() if p.requires_grad) > 1e-3


def test_the_loss_is_text_where_there_is_no_teacher_and_divergence_elsewhere(recipe_of, tokenizer):
    plain = example("safe", "<q>", "<a safe answer>", [])
    loss, means, _ = loss_of(
        recipe_of(), [plain, *corrections(2)], Divergence(0.0, None), tokenizer
    )
    assert means.keys() == {"loss_safe", "loss_correction", "divergence_correction"}
    safe, correction = loss.counts[0], loss.counts[1:].sum()
    assert loss.taught.tolist() == [0, *loss.counts[1:].tolist()]
    expected = safe * means["loss_safe"] + correction * means["divergence_correction"]
    assert loss.value.item() == pytest.approx(float(expected / (safe + correction)), rel=1e-5)


def test_the_teacher_of_a_model_with_an_adapter_has_that_adapter(
    recipe_of, lora_of_tiny, tokenizer
):
    """The adapter of the recipe belongs to the untrained model; that of `train.start` does not."""
    both = Divergence(0.0, None)
    _, aligned, model = loss_of(recipe_of(lora_of_tiny), benign(), both, tokenizer)
    assert abs(aligned["divergence_helpful"]) < 1e-5
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and not any(".teacher." in name for name in trained)
    _, started, _ = loss_of(recipe_of(start=str(lora_of_tiny)), benign(), both, tokenizer)
    assert started["divergence_helpful"] > 0.01


def test_the_teacher_has_no_dropout(model_of, tokenizer, recipe_of):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4}
    data = recipe_of().model_dump(mode="json")
    data["model"]["model"] = str(model_of("gpt2", sizes=sizes, resid_pdrop=0.5))
    recipe = Recipe.model_validate(data)
    from peft import get_peft_model

    model, new = learner(recipe)
    model = get_peft_model(model, new).train()
    teacher = Teacher(model, recipe, Divergence(0.0, 5))
    rows = [example_row(tokenizer, e, recipe) for e in corrections()]
    rows = [
        r | teacher_row(tokenizer, e, r, recipe) for r, e in zip(rows, corrections(), strict=True)
    ]
    asked = collate(rows, 0)["teacher"]
    one, two = (teacher.targets(model, **asked).log_probs for _ in range(2))
    assert torch.equal(one, two)


# Training ---------------------------------------------------------------------------------------


def trained(folder, recipe, examples, on_progress=lambda *_: None):
    """Train on examples; return the lines of the loss curve."""
    with RunFolder(folder, recipe) as open_folder, Session(open_folder, on_progress) as run:
        open_method(recipe).fit(run, examples, run.path / "adapter")
    return [json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("distill", ["forward_kl", "jsd"])
def test_the_divergence_from_the_teacher_falls(recipe_of, tmp_path, distill):
    recipe = recipe_of(distill=distill, epochs=12)
    curve = trained(tmp_path / "run", recipe, corrections(8))
    first, last = (
        sum(row["divergence_correction"] for row in rows) / len(rows)
        for rows in (curve[:3], curve[-3:])
    )
    assert last < 0.7 * first
    assert all(row["loss"] == pytest.approx(row["divergence_correction"]) for row in curve)


def test_texts_are_learned_as_before_whatever_the_examples_say(recipe_of, tmp_path):
    """Examples of a run that distilled can be replayed in one that does not."""
    plain = [e.model_copy(update={"teacher": None}) for e in corrections()]
    recipe = recipe_of(distill="text", epochs=1)
    with_teacher = trained(tmp_path / "one", recipe, corrections())
    without = trained(tmp_path / "two", recipe, plain)
    assert with_teacher == without and "divergence_correction" not in without[0]


@pytest.mark.parametrize(
    "adapter", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["base", "adapter"]
)
def test_a_training_that_is_cut_off_ends_with_the_same_bytes(
    recipe_of, lora_of_tiny, tmp_path, adapter
):
    class Crash(Exception):
        pass

    def crash(what, done, total):
        if what == "train" and done == 5:
            raise Crash

    recipe = recipe_of(
        lora_of_tiny if adapter else None,
        checkpoint_every=2,
        lora={"r": 4, "dropout": 0.1},
        batch_size=3,
    )
    examples = [*corrections(3, opening="<an"), *benign(2), example("safe", "<q>", "<no>", [])]
    trained(tmp_path / "whole", recipe, examples)
    with pytest.raises(Crash):
        trained(tmp_path / "cut", recipe, examples, crash)
    trained(tmp_path / "cut", recipe, examples)
    assert "resuming from checkpoint-4" in (tmp_path / "cut/run.log").read_text()
    for name in ("loss.jsonl", "trained.json", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    left = {path.name for path in (tmp_path / "whole/adapter").iterdir()}
    assert left == {"README.md", "adapter_config.json", "adapter_model.safetensors"}


def test_a_teacher_that_reads_more_than_the_context_is_told(recipe_of, model_of, tmp_path):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4}
    data = recipe_of().model_dump(mode="json")
    data["model"]["model"] = str(model_of("gpt2", sizes=sizes, n_positions=80))
    with pytest.raises(InputError, match=r"teacher's prompt .* context of 80 .*train.distill=text"):
        trained(tmp_path / "run", Recipe.model_validate(data), corrections())


# The recipe -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"distill": "reverse_kl"}, "train.distill"),
        ({"top_k": 0}, "train.top_k"),
        ({"jsd_beta": 0}, "train.jsd_beta"),
        ({"jsd_beta": 1}, "train.jsd_beta"),
    ],
)
def test_wrong_options_are_refused(tmp_path, option, message):
    path = tmp_path / "recipe.yaml"
    train = {"method": "mistake_distillation", "distill": "jsd"} | option
    path.write_text(json.dumps({"train": train}))
    with pytest.raises(InputError, match=message):
        Recipe.load(path)


@pytest.mark.parametrize("name", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_a_sharded_model_is_refused_before_any_work(recipe_of, monkeypatch, name):
    monkeypatch.setenv(name, "true")
    with pytest.raises(InputError, match=r"train.distill: only `text` .*ddp.yaml"):
        check(recipe_of())
    check(recipe_of(distill="text"))


def test_examples_of_earlier_versions_open_and_stay_the_same():
    line = (
        '{"id":"ce8b8b8a5d0e0b0a","v":2,"kind":"safe","prompt":[{"role":"user","content":"<q>"}],'
        '"completion":"<a>","parents":[],"verdict":null,"rejected":null}'
    )
    assert Example.model_validate_json(line).model_dump_json() == line
