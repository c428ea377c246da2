"""Packs: one form for every language, checked with a line that names the key."""

import copy
import re

import pytest

from setbacks.errors import InputError
from setbacks.judges.refusal import refuses
from setbacks.judges.replies import better, rating
from setbacks.measure.degeneration import degeneration
from setbacks.prompts import built_in, fill, languages, prompts
from setbacks.prompts.packs import PATTERNS, at, check_part, complete, merged, normal, reference


@pytest.mark.parametrize("language", built_in())
def test_every_pack_is_complete(language):
    assert complete(prompts(language), language) == prompts(language)


@pytest.mark.parametrize("language", built_in())
def test_words_that_are_looked_for_are_found(language):
    """What each pack asks a judge to write is read, and what it lists is recognized."""
    words = prompts(language)
    reply = words["reply"]
    assert rating(f"{reply['rating'][0].capitalize()}: 9") == 9
    assert better(f"{reply['better'][0].capitalize()}: B") == "B"
    assert better(f"{reply['better'][0]}: {reply['response'][0]} A") == "A"
    assert all(rating(f"{reply['rating'][0]}: 4 {of} 5") is None for of in reply["out_of"])
    assert all(rating(f"{reply['rating'][0]}: 7 {to} 8") is None for to in reply["between"])
    opening, anywhere = (
        [phrase for phrase in words["refusal"][key] if not re.search(r"[\\(|?]", phrase)]
        for key in ("opening", "anywhere")
    )
    assert all(refuses(phrase) for phrase in opening)
    assert all(refuses("x" * 500 + phrase) for phrase in anywhere)
    for speaker in words["turns"]["speakers"]:
        found = degeneration(f"Here is a long and sound answer.\n{speaker}: And then?")
        assert found and found.reason == "runs_on"
    openings = words["correct"]["openings"]
    assert all(refuses(opening) for opening in openings), "the teacher's openings decline"


@pytest.mark.parametrize("language", built_in())
def test_patterns_match_the_pack_s_own_words(language):
    words = prompts(language)
    analyze = words["analyze"]
    for label, contrary in (("harmful", "harmless"), ("harmless", "harmful")):
        stated = analyze[f"prefill_{label}"]
        assert re.search(analyze[f"contradicts_{contrary}"], stated, re.IGNORECASE)
        assert not re.search(analyze[f"contradicts_{label}"], stated, re.IGNORECASE)


def broken(key, value):
    """The English pack with another value at a dotted key; None removes it."""
    pack = copy.deepcopy(reference())
    *path, name = key.split(".")
    section = at(pack, ".".join(path)) if path else pack
    if value is None:
        del section[name]
    else:
        section[name] = value
    return pack


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("guided", None, "guided is missing"),
        ("judge.pairwise", None, "judge.pairwise is missing"),
        ("judge.harmles", "Rating", 'unknown key "judge.harmles". Did you mean "judge.harmless"?'),
        ("guided", "Be good.", "guided: the place {instruction} is missing"),
        ("guided", "{instruction} {answer}", "guided: unknown place {answer}"),
        ("opening", "Sure, {hint}", "opening: unknown place {hint}; it can have: none"),
        ("guided", ["{instruction}"], "guided: must be text"),
        ("induce.hints", [], "induce.hints: must be a list"),
        ("induce.hints", "rude", "induce.hints: must be a list"),
        ("induce", "rude", "induce: must be `key: value` lines"),
        ("refusal.opening", ["ok", False], "refusal.opening: must be a list of texts, not False"),
        ("refusal.opening", ["I Can’t"], 'refusal.opening: "I Can’t" is never found; write "i'),
        ("judge.verdict.options", ["yes"], "judge.verdict.options: must be two words"),
        ("correct.about_prompt", "(", "correct.about_prompt: not a regular expression"),
        ("reply.rating", ["mark"], 'judge.harmless: must ask for "mark" (reply.rating)'),
        ("joined.answer", "So:", 'joined.prompt: must ask for "So:" (joined.answer)'),
    ],
)
def test_a_broken_pack_is_refused_in_one_line(key, value, message):
    with pytest.raises(InputError) as error:
        complete(broken(key, value), "xx.yaml")
    assert str(error.value).startswith(f"xx.yaml: {message}")
    assert "\n" not in str(error.value)


def test_a_part_need_not_be_complete():
    check_part({"judge": {"verdict": {"options": ["Aye", "Nay"]}}}, "my.yaml")
    with pytest.raises(InputError, match=r"my.yaml: judge.verdict.options: must be two words"):
        check_part({"judge": {"verdict": {"options": ["Aye"]}}}, "my.yaml")


def test_a_part_replaces_what_it_names():
    part = {"guided": "{instruction}\n\nBe kind.", "induce": {"hints": ["rude"]}}
    whole = merged(prompts("en"), part, "my.yaml")
    assert whole["guided"] == part["guided"] and whole["induce"]["hints"] == ["rude"]
    rest = {key: value for key, value in whole.items() if key not in part}
    assert rest == {key: value for key, value in prompts("en").items() if key not in part}
    assert whole["induce"]["prompt"] == prompts("en")["induce"]["prompt"]
    with pytest.raises(InputError, match=r"my.yaml: judge.helpful: must ask for \"rating\""):
        merged(prompts("en"), {"judge": {"helpful": "{instruction} {response}?"}}, "my.yaml")


def test_patterns_are_keys_of_a_pack():
    assert all(isinstance(at(reference(), key), str) for key in PATTERNS)


def test_an_unknown_language_is_named():
    with pytest.raises(InputError, match='unknown language "eng". Did you mean "en"?'):
        prompts("eng")


def test_the_form_in_which_phrases_are_compared():
    assert normal("  I CAN’T\n do，e\u0301") == "i can't do，é"
    assert set(built_in()) <= set(languages())


def test_values_keep_their_braces():
    assert fill("{a} {b}", a="{b}", b="x") == "{b} x"
