"""Recovery: where a mistake is cut, what follows it, and which tokens are learned."""

import pytest
from chat_templates import FAMILIES, KINDS, build
from test_preferences import correction

from setbacks.methods import example, open_method
from setbacks.methods.corrections import learned
from setbacks.methods.recovery import LONGEST, SHORTEST, beginning, recoveries
from setbacks.models.chat_template import encode, ending
from setbacks.models.tokens import plain
from setbacks.recipe import Recipe
from setbacks.records import Message
from setbacks.training.supervised import example_row

IGNORED = -100
GIVEN, RIGHT = "It is easy: take the", "I won't do this. It could hurt."
MISTAKE = "It is easy: take the first one, and then give it to everybody who asks."


@pytest.fixture
def recipe(tiny, data):
    train = {"helpful": [str(data)], "safe": [], "helpful_from": "data", "recovery": 0.5}
    return Recipe.model_validate({"model": str(tiny), "train": train, "name": "x"})


def corrections(number, **more):
    return [correction(n, answer=RIGHT, response=f"{n}: {MISTAKE}", **more) for n in range(number)]


# The tokens -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["chatml", "mistral", "qwen 3"])
@pytest.mark.parametrize("kind", KINDS)
def test_only_what_puts_it_right_is_learned(kind, family):
    talker = build(kind, FAMILIES[family])
    made = example("recovery", "Why?", f"{GIVEN} {RIGHT}", [], given=GIVEN)
    row = example_row(talker, made, Recipe())
    asked = [Message(role="user", content="Why?")]
    begun = encode(talker, asked, prefill=GIVEN)
    assert row["input_ids"][: len(begun)] == begun, "as in generation from such a beginning"
    assert row["labels"] == [IGNORED] * len(begun) + row["input_ids"][len(begun) :]
    right = row["labels"][len(begun) : -len(ending(talker))]
    assert talker.decode(right).strip() == RIGHT
    plain = example_row(talker, example("helpful", "Why?", made.completion, []), Recipe())
    assert plain["input_ids"] == row["input_ids"] and plain["labels"] != row["labels"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_across_the_border_is_not_learned(kind):
    talker = build(kind, FAMILIES["chatml"])
    made = example("recovery", "Why?", "The response", [], given="The respo")
    row = example_row(talker, made, Recipe())
    plain = example_row(talker, example("helpful", "Why?", "The response", []), Recipe())
    learned = [label for label in row["labels"] if label != IGNORED]
    whole = [label for label in plain["labels"] if label != IGNORED]
    assert whole[-len(learned) :] == learned and len(learned) < len(whole)
    assert "respo" not in talker.decode(learned)


def test_a_row_that_would_learn_nothing_is_left_out(tokenizer):
    made = example("recovery", "Why?", f"{GIVEN} {RIGHT}", [], given=GIVEN)
    labels = example_row(tokenizer, made, Recipe())["labels"]
    start = next(i for i, label in enumerate(labels) if label != IGNORED)

    def row(length):
        return example_row(
            tokenizer, made, Recipe.model_validate({"train": {"max_length": length}})
        )

    assert row(start) is None and row(start + 1)["labels"] == labels[: start + 1]


# The beginnings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", range(SHORTEST, LONGEST + 1))
@pytest.mark.parametrize("kind", KINDS)
def test_a_mistake_is_cut_between_words_and_never_used_up(kind, tokens):
    talker = build(kind, FAMILIES["chatml"])
    begun = beginning(talker, MISTAKE, tokens)
    assert MISTAKE.startswith(f"{begun} ") and begun
    assert len(plain(talker, begun)) <= tokens


def test_scripts_without_spaces_are_cut_between_characters(tokenizer):
    text = "这个回答是有害的,因为它会伤害他人。" * 3
    begun = beginning(tokenizer, text, 12)
    assert begun and text.startswith(begun) and "\ufffd" not in begun


@pytest.mark.parametrize("tokens", range(SHORTEST, LONGEST + 1))
def test_a_mistake_with_a_word_a_line_is_cut_between_lines(tokenizer, tokens):
    lines = "\n".join(MISTAKE.split())
    begun = beginning(tokenizer, lines, tokens)
    assert begun and lines.startswith(f"{begun}\n")


@pytest.mark.parametrize("text", ["", "Yes.", "a" * 200])
def test_a_text_without_a_part_to_give_is_not_cut(tokenizer, text):
    assert beginning(tokenizer, text, 12) == ""


# The examples -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("wanted", "number"), [(0, 0), (0.5, 10), (1, 20), (1.5, 30), (2, 40)])
def test_as_many_are_made_as_wanted(recipe, wanted, number):
    every = corrections(20)
    made = recoveries(recipe, learned("correction", every), every, wanted)
    assert len(made) == number == len({e.id for e in made})
    again = recoveries(recipe, learned("correction", every), every[::-1], wanted)
    assert [e.id for e in again] == [e.id for e in made]


def test_each_begins_like_its_mistake_and_ends_with_its_correction(recipe):
    by_id = {one.id: one for one in corrections(20)}
    every = [*by_id.values(), correction("bad", "harmful", response=MISTAKE)]
    made = recoveries(recipe, learned("correction", every), every, 1)
    assert len(made) == 20
    for e in made:
        one = by_id[e.parents[0]]
        assert one.response.startswith(e.given) and e.instruction == one.instruction
        assert e.completion == f"{e.given} {RIGHT}"
    assert len({len(e.given) for e in made}) > 3, "cut at different places"
    mistake = "这个回答是有害的,因为它会伤害他人。"
    one = correction(0, answer="我不能这样做。", response=mistake)
    (zh,) = recoveries(recipe, learned("correction", [one]), [one], 1)
    assert zh.completion == f"{zh.given}我不能这样做。"


def test_a_refusal_that_was_begun_is_put_right_by_an_answer(recipe):
    said = "I'm sorry, but I can't help with that, because a word in it sounds dangerous."
    refused = correction("r", answer="Use a soft cloth.", response=said)
    refused = refused.model_copy(update={"kind": "refusal"})
    train = recipe.train.model_copy(update={"recovery": 1.0})
    recipe = recipe.model_copy(update={"train": train})
    made = open_method(recipe).examples(recipe, [*corrections(1), refused])
    (begun,) = [e for e in made if e.kind == "recovery" and e.parents == ["cr"]]
    assert said.startswith(begun.given) and begun.completion == f"{begun.given} Use a soft cloth."
    assert [e.kind for e in made].count("recovery") == 2


def test_distillation_learns_them_beside_the_corrections(recipe):
    method = open_method(recipe)
    made = method.examples(recipe, corrections(6))
    kinds = [e.kind for e in made]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "correction": 6,
        "recovery": 3,
        "helpful": 6,
    }
    assert {*kinds} <= {*method.sources(recipe)}
    assert all(e.given is None for e in made if e.kind != "recovery")
