"""Each model says through the engine what it says in plain forward passes, or it is refused."""

import logging

import numpy as np
import pytest
import torch
from architectures import ALL, ALONE, KINDS, MORE_KINDS, OURS, THEIRS, spec_of
from transformers import DynamicCache

from setbacks.engines import answering, decoding, fidelity, graphs, local, reading
from setbacks.engines.answering import SideBySide, forward
from setbacks.engines.local import Local, pick
from setbacks.errors import InputError
from setbacks.models.attention import attend_by_products
from setbacks.models.chat_template import stop_tokens
from setbacks.models.loading import load_model
from setbacks.recipe import Sampling
from setbacks.records import Request

PROMPTS = [
    torch.randint(3, 200, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (1, 2, 3, 5, 8, 13, 21, 34)
]
ASKED = [*PROMPTS, PROMPTS[4]]
GREEDY = Sampling(max_new_tokens=20)
REQUESTS = [Request("Say yes.", 0), Request("Name three colors, and nothing else.", 1)]


def loaded(folder):
    """An engine whose model is in memory, and the same model as transformers loads it."""
    engine = Local(spec_of(folder))
    engine._load(None)
    return engine, load_model(engine.spec).eval()


def generated(engine, prompts, seeds, sampling):
    """The tokens that an engine generates after prompts, and whether the model ended them."""
    stops = stop_tokens(engine._model, engine._tokenizer, engine.spec.chat_template)
    most = sampling.max_new_tokens
    draws = np.stack([np.random.default_rng(seed).random(most) for seed in seeds])

    def picked(logits, rows, step):
        return pick(logits, torch.as_tensor(draws[rows, step], dtype=torch.float32), sampling)

    return engine._answering.answer(prompts, [most] * len(prompts), stops, picked)


def check_answers(model, answers):
    """Each token must be the likeliest after what is before it, read whole and without a cache."""
    ends = set(model.generation_config.eos_token_id)
    for prompt, (tokens, stopped) in zip(ASKED, answers, strict=True):
        assert stopped or len(tokens) == GREEDY.max_new_tokens
        for at, token in enumerate([*tokens, None] if stopped else tokens):
            logits = forward(model, prompt + tokens[:at], 1)[0]
            chosen = max(float(logits[end]) for end in ends) if token is None else logits[token]
            assert float(logits.max() - chosen) < 1e-4 * float(logits.std()), (len(prompt), at)


def way_of(engine):
    return local._checked[engine._source.model_dump_json()].name


def own_lines(caplog):
    """What we logged: other libraries warn about the tiny models."""
    return [record for record in caplog.records if record.name.startswith("setbacks")]


@pytest.mark.parametrize(("kind", "data", "way"), ALL)
def test_a_model_answers_in_batches_as_it_does_in_plain_forward_passes(
    model_of, caplog, kind, data, way
):
    engine, model = loaded(model_of(kind, **data))
    assert way_of(engine) == way
    assert bool(own_lines(caplog)) is (way != OURS), "whoever falls back says so"
    assert all("\n" not in record.getMessage() for record in caplog.records)
    answers = generated(engine, ASKED, [0] * len(ASKED), GREEDY)
    assert len({len(tokens) for tokens, _ in answers}) > 1, "or no row ends before another"
    check_answers(model, answers)
    options = [[[5], [6, 7, 8], [6, 9]]] * len(ASKED)
    made = engine._answering.log_probabilities(ASKED, options)
    right = answering.OneByOne(model, 2).log_probabilities(ASKED, options)
    torch.testing.assert_close(made.cpu(), right, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["mamba", "phi3"])
def test_a_draw_is_its_own_in_every_way(model_of, kind):
    """One by one, and in batches with some rows apart, a row has its own random numbers."""
    engine, _ = loaded(model_of(kind, **KINDS[kind][0]))
    drawn = Sampling(max_new_tokens=10, temperature=1.0)
    together = generated(engine, PROMPTS, list(range(len(PROMPTS))), drawn)
    assert together == [
        generated(engine, [prompt], [seed], drawn)[0] for seed, prompt in enumerate(PROMPTS)
    ]
    assert together != generated(engine, PROMPTS, [7] * len(PROMPTS), drawn)


REPLAYED = {
    "llama": (KINDS["llama"][0], True),
    "gemma2": (MORE_KINDS["gemma2"][0] | {"sliding_window": 512}, True),
    "gpt_oss": (MORE_KINDS["gpt_oss"][0] | {"sliding_window": 512}, True),
    "gptj": (MORE_KINDS["gptj"][0], True),
    "codegen": (MORE_KINDS["codegen"][0], True),
    "gpt_neo": (MORE_KINDS["gpt_neo"][0], False),
    "mpt": (MORE_KINDS["mpt"][0], False),
    "bloom": (MORE_KINDS["bloom"][0], False),
    "falcon": (MORE_KINDS["falcon"][0], False),
    "qwen3_next": (KINDS["qwen3_next"][0], False),
}


@pytest.mark.parametrize(
    ("kind", "data", "replays"), [(kind, *of) for kind, of in REPLAYED.items()], ids=[*REPLAYED]
)
def test_steps_that_a_gpu_would_replay_are_right_or_not_taken(
    model_of, monkeypatch, kind, data, replays
):
    # On a GPU the cache is transformers' own until the graphs take over.
    monkeypatch.setattr(reading, "cache_for", lambda model: DynamicCache(config=model.config))
    model = load_model(spec_of(model_of(kind, **data))).eval()
    attend_by_products(model, queries=1)
    way = SideBySide(model, 2, graphs.Graphs(model))
    ends = model.generation_config.eos_token_id
    most = [GREEDY.max_new_tokens] * len(ASKED)
    answers = way.answer(ASKED, most, ends, lambda logits, *_: logits.argmax(dim=-1))
    assert bool(way.graphs._steps) is replays
    check_answers(model, answers)


# What is wrong is found ------------------------------------------------------------------------


class Leaking(decoding.Running):
    """Padding is attended to once tokens are drawn."""

    def __init__(self, *data):
        super().__init__(*data)
        self.mask = torch.ones_like(self.mask)


class Displaced(decoding.Running):
    """Positions are one too high."""

    def __init__(self, *data):
        super().__init__(*data)
        self.position = self.position + 1


class Mixed(decoding.Running):
    """A row that leaves takes another's place with it."""

    def select(self, rows):
        super().select(rows)
        decoding.select_rows(self.cache, torch.arange(len(rows)).roll(1))


@pytest.mark.parametrize("wrong", [Leaking, Displaced, Mixed])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_loop_is_found_and_not_used(model_of, monkeypatch, caplog, wrong, dtype):
    monkeypatch.setattr(answering, "Running", wrong)
    engine = Local(spec_of(model_of("llama")).model_copy(update={"dtype": dtype}))
    engine._load(None)
    assert way_of(engine) == ALONE
    (record,) = own_lines(caplog)
    assert record.levelno == logging.WARNING
    assert "answered one at a time" in record.getMessage() and OURS in record.getMessage()
    if dtype == "float32":
        answers = generated(engine, ASKED, [0] * len(ASKED), GREEDY)
        check_answers(load_model(engine.spec).eval(), answers)


class Swapped(SideBySide):
    """The options' probabilities are taken for each other's."""

    def log_probabilities(self, prompts, options):
        return super().log_probabilities(prompts, options).flip(1)


@pytest.mark.parametrize("then", [THEIRS, ALONE])
def test_what_is_wrong_in_choosing_alone_gives_way_to_the_next(model_of, monkeypatch, then):
    for way in [*fidelity.WAYS][: [*fidelity.WAYS].index(then)]:
        monkeypatch.setitem(fidelity.WAYS, way, Swapped)
    engine, model = loaded(model_of("llama"))
    assert way_of(engine) == then
    check_answers(model, generated(engine, ASKED, [0] * len(ASKED), GREEDY))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [(lambda *_: 1 / 0, "it fails .ZeroDivisionError"), (lambda *_: [([4], True)] * 4, "lost")],
)
def test_a_model_without_a_right_way_is_refused_in_one_line(model_of, monkeypatch, wrong, says):
    for way in (SideBySide, answering.OneByOne):
        monkeypatch.setattr(way, "answer", wrong)
    with pytest.raises(InputError, match=says) as error:
        Local(spec_of(model_of("llama"))).generate(REQUESTS, GREEDY)
    assert "\n" not in str(error.value) and "its answers would be wrong" in str(error.value)


def test_a_model_that_looks_ahead_is_refused(model_of):
    """An encoder with a language model head, which reads in both directions."""
    folder = model_of("bert", tie_word_embeddings=False)
    with pytest.raises(InputError, match="its answers would be wrong"):
        Local(spec_of(folder)).generate(REQUESTS, GREEDY)


def test_a_model_whose_logits_are_no_numbers_is_refused(model_of, tmp_path):
    folder = model_of("llama")
    model = load_model(spec_of(folder))
    model.lm_head.weight.data.fill_(float("nan"))
    model.save_pretrained(folder)
    with pytest.raises(InputError, match="not numbers in torch.float32; set model.dtype"):
        Local(spec_of(folder)).generate(REQUESTS, GREEDY)


# What is said and what it costs ----------------------------------------------------------------


def test_the_run_log_says_how_a_model_is_answered(model_of, open_session, caplog):
    run = open_session()
    for folder in (model_of("llama"), model_of("mamba", **KINDS["mamba"][0])):
        run.engine(spec_of(folder)).generate(REQUESTS, Sampling(max_new_tokens=1))
    lines = (run.path / "run.log").read_text().splitlines()[-2:]
    assert f"answered {OURS}: this agrees with plain forward passes" in lines[0]
    assert f"answered {ALONE}: {OURS} its logits differ" in lines[1]
    assert len(own_lines(caplog)) == 1  # the second alone is a warning


def test_a_model_is_checked_once(model_of, monkeypatch):
    checked = []
    real = fidelity.Check.__init__
    monkeypatch.setattr(
        fidelity.Check, "__init__", lambda *data: (checked.append(1), real(*data))[1]
    )
    folder = model_of("llama")
    for _ in range(2):
        Local(spec_of(folder)).generate(REQUESTS, GREEDY)
    assert len(checked) == 1
    Local(spec_of(folder, batch_size=1).model_copy(update={"dtype": "bfloat16"})).generate(
        REQUESTS, GREEDY
    )
    assert len(checked) == 2


def test_a_check_changes_no_answer(spec):
    """Nothing of it is left in the model: the same logits, to the last bit."""
    checked, plain = Local(spec), load_model(spec).eval()
    checked._load(None)
    way = fidelity.prepare(plain, way_of(checked), 2)
    found = [
        one.log_probabilities(PROMPTS, [[[5], [6, 7]]] * len(PROMPTS))
        for one in (checked._answering, way)
    ]
    assert torch.equal(*found)
