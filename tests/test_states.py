"""Hidden states of answers: those of the answer alone, whoever else is in the batch."""

import numpy as np
import pytest
import torch

from setbacks.engines import states as states_module
from setbacks.engines.local import Local
from setbacks.engines.states import LONGEST, StatesProbe, Text, answer_states
from setbacks.errors import InputError
from setbacks.messages import Message
from setbacks.models.chat_template import encode_answer
from setbacks.records import Request

ANSWERS = ["Yes.", "The capital of France is Paris, which lies on the Seine.", "", "Red, blue."]
DEPTHS = (0.5, 1.0)


def asked(answers=ANSWERS):
    return [Request(f"<question {n}>", 0, reply=text) for n, text in enumerate(answers)]


@pytest.fixture(scope="module")
def engine(spec):
    return Local(spec)


def expected(model, tokenizer, request):
    """The mean states of an answer that is read alone, token by token."""
    turns = [Message(role="user", content=request.prompt)]
    prompt, answer = encode_answer(tokenizer, turns, request.reply)
    with torch.inference_mode():
        layers = model(torch.tensor([prompt + answer]), output_hidden_states=True).hidden_states
    count = len(layers) - 1
    chosen = [layers[round(depth * count)][0, len(prompt) :] for depth in DEPTHS]
    return np.stack([layer.mean(0).numpy() for layer in chosen])


def test_a_state_is_the_mean_over_the_answer_and_blind_to_its_neighbors(
    engine, model, tokenizer, monkeypatch
):
    read = engine.states(asked(), DEPTHS)
    assert read.shape == (4, 2, model.config.hidden_size) and read.dtype == np.float32
    for states, request in zip(read, asked(), strict=True):
        assert states == pytest.approx(expected(model, tokenizer, request), abs=1e-3)
    monkeypatch.setitem(states_module.PART, "cpu", 1)  # each text is a part of its own
    assert engine.states(asked(), DEPTHS) == pytest.approx(read, abs=1e-3)


def test_a_model_that_a_batch_confuses_reads_answers_alone(tokenizer, model):
    texts = [Text([5, 6], [7]), Text([5], [6, 7, 8])]
    sizes = []
    hook = model.register_forward_pre_hook(
        lambda module, args, options: sizes.append(tuple(options["input_ids"].shape)),
        with_kwargs=True,
    )
    try:
        alone = answer_states(model, texts, DEPTHS, alone=True)
        assert sorted(sizes) == [(1, 3), (1, 4)]
        assert answer_states(model, texts, DEPTHS) == pytest.approx(alone, abs=1e-3)
        assert sizes[2:] == [(2, 4)]
    finally:
        hook.remove()


def test_a_batch_that_does_not_fit_into_memory_is_halved(engine, monkeypatch):
    whole = engine.states(asked(), DEPTHS)

    def small(model, texts, depths, *, alone):
        if len(texts) > 1:
            raise torch.OutOfMemoryError("full")
        return answer_states(model, texts, depths, alone=alone)

    monkeypatch.setattr("setbacks.engines.local.answer_states", small)
    assert engine.states(asked(), DEPTHS) == pytest.approx(whole, abs=1e-3)


def test_an_adapter_changes_the_states(engine, lora):
    plain = engine.states(asked(), DEPTHS)
    assert abs(engine.states(asked(), DEPTHS, lora) - plain).max() > 1e-2
    assert engine.states(asked(), DEPTHS) == pytest.approx(plain, abs=1e-5)


def test_a_conversation_is_read_to_its_end(engine):
    turns = [("user", "<q>"), ("assistant", "<a>"), ("user", "<more>")]
    conversation = tuple(Message(role=role, content=text) for role, text in turns)
    whole, last = (Request(prompt, 0, reply="Yes.") for prompt in (conversation, "<more>"))
    states = engine.states([whole, last], DEPTHS)
    assert abs(states[0] - states[1]).max() > 1e-3


def test_a_long_answer_is_cut_and_a_long_prompt_loses_its_beginning():
    text = Text([*range(100)], [*range(1000, 1400)])
    assert text.within(None) == Text(text.prompt, text.answer[:LONGEST])
    assert text.within(300) == Text(text.prompt[-44:], text.answer[:LONGEST])
    assert text.within(100) == Text([], text.answer[:100])


def test_an_engine_without_states_is_told(fake_engine, recipe):
    rules = fake_engine.Rules(recipe().model)
    assert Local.shows_states and not rules.shows_states
    with pytest.raises(InputError, match='the engine of "talker" gives no hidden states'):
        rules.states(asked(), DEPTHS)


def test_an_architecture_without_states_is_told(model, monkeypatch):
    class Silent(torch.nn.Module):
        config, device = model.config, model.device

        def forward(self, input_ids, attention_mask, output_hidden_states, use_cache):
            return type("Output", (), {"hidden_states": None})

    with pytest.raises(InputError, match="returns no hidden states; set respond.posterior.rank_by"):
        answer_states(Silent(), [Text([5], [6])], DEPTHS)


def test_a_probe_reads_its_layers_one_after_another(engine, monkeypatch):
    states = engine.states(asked(), DEPTHS).astype(float)
    weight = np.random.default_rng(0).normal(size=states[0].shape)
    figures = {"mistakes": 1, "harmless": 1, "prompts": 1}
    intervals = {"auc": [0.5, 0.4, 0.6], "auc_within_prompts": [0.5, 0.4, 0.6]}
    probe = StatesProbe(
        id="0" * 16,
        model="m",
        depths=[*DEPTHS],
        weight=[*weight.ravel()],
        bias=0.3,
        **figures,
        **intervals,
    )
    odds = (states * weight).sum(axis=(1, 2)) + 0.3
    assert probe.p_harmful(engine, asked()) == pytest.approx(1 / (1 + np.exp(-odds)), abs=1e-3)
    states[1, 0, 0] = np.nan
    monkeypatch.setattr(engine, "states", lambda requests, depths, adapter: states)
    assert probe.p_harmful(engine, asked())[1] == 1, "a draft with such states comes last"
