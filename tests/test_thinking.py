"""Thoughts of reasoning models: their markers, prompts that leave room for them, and training."""

import pytest
from chat_templates import FAMILIES, KINDS, Family, build

from setbacks.errors import InputError
from setbacks.measure.substance import answer
from setbacks.models.chat_template import encode, encode_answer, encode_request, ending
from setbacks.models.template_checks import chat_notes
from setbacks.models.thinking import STYLES, Markers, thinking_of
from setbacks.prompts import prompts
from setbacks.recipe import Engine, Recipe
from setbacks.records import Message, Request

GEMMA_4 = Family(
    "{{ bos_token }}{% for m in messages %}<|turn>{{ m.role }}\n"
    "{% if m.role == 'assistant' and m.reasoning_content %}<|channel>thought\n"
    "{{ m.reasoning_content }}\n<channel|>{% endif %}{{ m.content | trim }}<turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn>assistant\n{% if not enable_thinking %}"
    "<|channel>thought\n<channel|>{% endif %}{% endif %}",
    "<bos> <eos> <|turn> <turn|> <|channel> <channel|>",
    "<turn|>",
    "<turn|> <eos>",
    "<eos>",
    "<bos>",
)
# What a model writes before a thought and between the thought and its answer.
THINK = ("<think>\n", "\n</think>\n\n")
THINKERS = {
    "qwen 3": THINK,
    "qwen 3 that always thinks": ("", "\n</think>\n\n"),
    "deepseek r1": ("", "\n</think>\n\n"),
    "glm 4.5": THINK,
    "gpt-oss": (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    "command a": ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
}
SILENT = [
    "llama 3", "llama 2", "mistral", "gemma", "chatml", "zephyr", "phi 3", "plain text"
]  # fmt: skip
RENDERS = ["qwen 3", "qwen 3 that always thinks", "gpt-oss", "command a"]  # its own thoughts
OFF = {"qwen 3": "<think>\n\n</think>\n\n", "glm 4.5": "\n<think></think>\n"}
SPEC = Engine(model="m")
WORDS = prompts("en")
NOT_THINKING = Engine(model="m", template={"enable_thinking": False})


def user(text):
    return [Message(role="user", content=text)]


def rendered(tokenizer, question, *reply, thought=None, **options):
    """The template's own rendering of a question and perhaps an answer, as ids."""
    turns = [{"role": "user", "content": question}]
    turns += [
        {"role": "assistant", "content": r, "reasoning_content": thought, "thinking": thought}
        for r in reply
    ]
    return tokenizer.apply_chat_template(turns, return_dict=False, **options)


def without_spaces(text):
    """Llama 2's kind of tokenizer decodes a space after each special token."""
    return text.replace(" ", "").strip()


# Markers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", THINKERS)
def test_a_template_tells_how_its_model_thinks(name):
    thinking = thinking_of(build("bytes", FAMILIES[name]), SPEC)
    assert (thinking.before, thinking.between) == THINKERS[name]
    assert thinking.opened == (THINKERS[name][0] == "")


@pytest.mark.parametrize("name", SILENT)
def test_a_template_without_markers_has_no_thoughts(name):
    assert thinking_of(build("bytes", FAMILIES[name]), SPEC) is None


@pytest.mark.parametrize("name", OFF)
def test_a_variable_of_the_template_turns_thinking_off(name):
    assert thinking_of(build("bytes", FAMILIES[name]), NOT_THINKING) is None


def test_a_variable_of_the_template_turns_thinking_on():
    tokenizer = build("bytes", GEMMA_4)
    assert thinking_of(tokenizer, SPEC) is None
    on = thinking_of(tokenizer, Engine(model="m", template={"enable_thinking": True}))
    assert (on.before, on.between, on.opened) == ("<|channel>thought\n", "\n<channel|>", False)


@pytest.mark.parametrize("template", ["own", "alpaca"])
def test_a_recipe_can_name_the_markers(template):
    tokenizer = build("bytes", FAMILIES["chatml"])
    spec = Engine(model="m", thinking=("<why>\n", "</why>"), chat_template=template)
    thinking = thinking_of(tokenizer, spec)
    assert (thinking.style.start, thinking.style.end) == ("<why>", "</why>")
    assert (thinking.before, thinking.between) == ("<why>\n", "</why>")


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.start)
def test_texts_from_elsewhere_are_parted_at_the_same_markers(style):
    """An answer from a file is not parted when it is generated, but when it is judged."""
    parted = answer(f"{style.opening}A thought.{style.closing}An answer.")
    assert parted.endswith("An answer.") and "A thought." not in parted


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"template": {"add_generation_prompt": False}}, "add_generation_prompt"),
        ({"template": {"chat_template": "x"}}, "chat_template"),
        ({"thinking": ["<a>", " "]}, "not blank"),
        ({"thinking": ["<a>"]}, "thinking"),
    ],
)
def test_a_section_that_cannot_be_right_is_rejected(section, says):
    with pytest.raises(InputError, match=says):
        Recipe.parse({"model": section}, "recipe.yaml")


def test_a_variable_that_the_template_does_not_use_is_reported():
    notes = chat_notes(build("bytes", FAMILIES["chatml"]), NOT_THINKING)
    assert notes == ["its chat template does not use enable_thinking (model.template)"]
    assert not chat_notes(build("bytes", FAMILIES["qwen 3"]), NOT_THINKING)


# Prompts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", THINKERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_thinks_gets_the_templates_own_generation_prompt(name, kind):
    tokenizer = build(kind, FAMILIES[name])
    ids = encode_request(tokenizer, Request("Why?", 0), SPEC, WORDS)
    assert ids == rendered(tokenizer, "Why?", add_generation_prompt=True)


@pytest.mark.parametrize("name", OFF)
@pytest.mark.parametrize("kind", KINDS)
def test_with_thinking_turned_off_the_answer_follows_an_empty_thought(name, kind):
    tokenizer = build(kind, FAMILIES[name])
    ids = encode_request(tokenizer, Request("Why?", 0), NOT_THINKING, WORDS)
    assert without_spaces(tokenizer.decode(ids)).endswith(without_spaces(OFF[name]))
    variables = {"enable_thinking": False}
    prompt, learned = encode_answer(tokenizer, user("Why?"), "So.", variables=variables)
    assert prompt == ids
    assert tokenizer.decode(learned).startswith("So.")
    if FAMILIES[name].end is not None:
        whole = rendered(tokenizer, "Why?", "So.", **variables)
        assert prompt + learned == whole[: len(prompt + learned)]


@pytest.mark.parametrize("name", THINKERS)
def test_an_answer_with_a_given_beginning_has_no_thought(name):
    tokenizer = build("bytes", FAMILIES[name])
    begun = encode_request(tokenizer, Request("Why?", 0, prefill="It is"), SPEC, WORDS)
    assert begun == encode(tokenizer, user("Why?"), prefill="It is")
    chosen = encode_request(tokenizer, Request("Why?", 0), SPEC, WORDS, "It is")
    assert chosen == begun


LOUD = {"tone": "loud"}


def test_other_variables_reach_the_template():
    tokenizer = build("bytes", FAMILIES["chatml"])
    tokenizer.chat_template = "{{ tone }}: " + tokenizer.chat_template
    spec = Engine(model="m", template={"tone": "calm"})
    assert tokenizer.decode(encode_request(tokenizer, Request("x", 0), spec, WORDS)).startswith(
        "calm"
    )
    other = Request("x", 0, template={"tone": "loud"})
    assert tokenizer.decode(encode_request(tokenizer, other, spec, WORDS)).startswith("loud")


# Training ----------------------------------------------------------------------------------------

ANSWERS = ["It could hurt people.", "No.\n\n1) a\n2) b", "因为它伤害他人。"]
THOUGHT = "The user asks why.\n\nI should say it."


@pytest.mark.parametrize("name", [*THINKERS, *SILENT])
@pytest.mark.parametrize("kind", KINDS)
def test_no_part_of_a_thought_is_learned_with_an_answer_alone(name, kind):
    tokenizer = build(kind, FAMILIES[name])
    end = ending(tokenizer)
    for text in ANSWERS:
        prompt, learned = encode_answer(tokenizer, user("Why?"), text)
        assert learned[-len(end) :] == end
        assert tokenizer.decode(learned[: -len(end)]).strip() == text
        if FAMILIES[name].end is not None:
            whole = rendered(tokenizer, "Why?", text)
            assert prompt + learned == whole[: len(prompt + learned)]


@pytest.mark.parametrize("name", THINKERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_thought_is_learned_as_the_model_would_write_it(name, kind):
    tokenizer = build(kind, FAMILIES[name])
    thinking, end = thinking_of(tokenizer, SPEC), ending(tokenizer)
    before, between = THINKERS[name]
    for text in ANSWERS:
        prompt, learned = encode_answer(
            tokenizer, user("Why?"), text, thought=THOUGHT, thinking=thinking
        )
        assert prompt == rendered(tokenizer, "Why?", add_generation_prompt=True)
        written = tokenizer.decode(learned[: -len(end)])
        assert without_spaces(written) == without_spaces(f"{before}{THOUGHT}{between}{text}")
        assert learned[-len(end) :] == end
        if name in RENDERS:
            whole = rendered(tokenizer, "Why?", text, thought=THOUGHT)
            assert prompt + learned == whole[: len(prompt + learned)]


@pytest.mark.parametrize("name", THINKERS)
def test_markers_in_a_thought_stay_text(name):
    family = FAMILIES[name]
    tokenizer = build("bytes", family)
    thinking = thinking_of(tokenizer, SPEC)
    names = family.special.split() + family.unflagged.split()
    controls = {*tokenizer.all_special_ids, *tokenizer.convert_tokens_to_ids(names)}

    def structure(thought):
        ids = sum(encode_answer(tokenizer, user("x"), "y", thought=thought, thinking=thinking), [])
        return [token for token in ids if token in controls]

    assert structure("a " + " ".join(names) + " b") == structure("an ordinary thought")


# Generated tokens --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", THINKERS)
@pytest.mark.parametrize("kind", ["bytes", "first", "never"])
def test_what_a_model_writes_is_parted_where_its_thought_ends(name, kind):
    tokenizer = build(kind, FAMILIES[name])
    markers = Markers(tokenizer, thinking_of(tokenizer, SPEC))
    _, ids = encode_answer(tokenizer, user("x"), "So.", thought=THOUGHT, thinking=markers.thinking)
    end = next(n for n in range(1, len(ids) + 1) if markers.ends(ids[:n]))
    assert markers.part(ids[:end]) == (THOUGHT, "")
    assert tokenizer.decode(ids[end:], skip_special_tokens=True).strip() == "So."
