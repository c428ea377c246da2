"""Conversations that a template refuses, and what is made of them; each change is said once."""

import logging

import pytest
from chat_templates import CONVERSING, FAMILIES, build, published
from test_rendering import ASK, OPENS, answer, calls, own, result, system, user

from setbacks import notices
from setbacks.errors import InputError
from setbacks.messages import Message
from setbacks.models.chat_template import encode
from setbacks.models.fitting import fitted

TEMPLATES = FAMILIES | CONVERSING | published()
OPENAI = calls(("call_0123456789ab", "N1n", {"k": "v"}), ("call_x", "N2n", {}))


def joined(*texts):
    return user("\n\n".join(texts))


@pytest.mark.parametrize(
    ("name", "messages", "same"),
    [
        # As Gemma's makers do it: before the user's text, after a blank line.
        ("gemma", [system(), user(), answer(), user("Q2q")],
         [joined("S1s", "Q1q"), answer(), user("Q2q")]),
        ("mistral v0.1", [system(), system("S2s"), user()], [joined("S1s", "S2s", "Q1q")]),
        ("gemma3", [user(), answer(), system(), user("Q2q")],
         [user(), answer(), joined("S1s", "Q2q")]),
        # As mistral-common does it: turns of one role become one.
        ("mistral v0.1", [user(), user("Q2q")], [joined("Q1q", "Q2q")]),
        ("llama 2", [user(), answer(), answer("A2a"), user("Q2q")],
         [user(), answer("A1a\n\nA2a"), user("Q2q")]),
        ("gemma", [system(), user(), user("Q2q")], [joined("S1s", "Q1q", "Q2q")]),
        # As vLLM does it: the last nine characters of an id; here one that is too short gets a new
        # one.
        ("mistral v7",
         [user(), OPENAI, result("R1r", "call_0123456789ab", None), result("R2r", "call_x", None)],
         [user(), calls(("3456789ab", "N1n", {"k": "v"}), ("call00001", "N2n", {})),
          result("R1r", "3456789ab"), result("R2r", "call00001")]),
        ("mistral v0.3",
         [user(), calls((None, "N1n", {})), Message(role="tool", content="R1r")],
         [user(), calls(("call00000", "N1n", {})), result("R1r", "call00000")]),
    ],
)  # fmt: skip
def test_what_a_template_does_not_take_is_changed_as_its_makers_do(name, messages, same):
    talker = build("bytes", TEMPLATES[name])
    assert own(talker, messages) is None, "otherwise nothing has to be changed"
    assert fitted(talker, messages, OPENS).notes and not fitted(talker, same, OPENS).notes
    assert talker.decode(encode(talker, messages, thinks=True)) == own(talker, same)


@pytest.mark.parametrize(
    ("name", "in_user_turn"), [("chatml", False), ("phi3", True), ("mistral v0.1", True)]
)
def test_tools_are_in_words_where_a_template_knows_none(name, in_user_turn):
    talker = build("bytes", TEMPLATES[name])
    call = answer('[calls N1n({"k": "v"})]')
    back = user("Tool N1n: R1r") if in_user_turn else result("R1r")
    messages = [user(), calls(("abcdefgh1", "N1n", {"k": "v"})), result("R1r")]
    notes = fitted(talker, messages, OPENS).notes
    assert "knows no calls of tools; they are written as text" in notes
    assert any("knows no results" in note for note in notes) is in_user_turn
    assert talker.decode(encode(talker, messages, thinks=True)) == own(talker, [user(), call, back])


def test_as_little_as_possible_is_changed():
    """This template has a system role, and only wants turns to alternate."""
    talker = build("bytes", TEMPLATES["llama 2"])
    fit = fitted(talker, [system(), user(), user("Q2q")], OPENS)
    assert len(fit.notes) == 1 and "joined" in fit.notes[0]
    assert "<<SYS>>\nS1s\n<</SYS>>\n\nQ1q\n\nQ2q [/INST]" in talker.decode(
        encode(talker, [system(), user(), user("Q2q")])
    )


def test_a_system_prompt_stays_where_the_template_puts_it():
    """In Mistral v0.3 that is the last turn; where an answer follows, the template drops it."""
    talker = build("bytes", TEMPLATES["mistral v0.3"])
    messages = [system(), user(), answer(), user("Q2q")]
    assert fitted(talker, messages, OPENS).notes == ()
    said = talker.decode(encode(talker, messages))
    assert said == "<s>[INST] Q1q[/INST] A1a</s>[INST] S1s\n\nQ2q[/INST]"


@pytest.mark.parametrize(
    ("name", "messages", "says"),
    [
        ("gemma", [answer(), user()], r"refuses a conversation of assistant, user \(.*alternate"),
        ("mistral v0.1", [user(), system()], "refuses a conversation of user, system"),
        ("llama3_1", [user(), OPENAI, result(), result()], "only supports single tool-calls"),
        ("gptoss", [user(), OPENAI, result(), result()], "does not write every call of a tool"),
    ],
)
def test_what_cannot_be_changed_is_one_line_with_the_roles_and_a_remedy(name, messages, says):
    talker = build("bytes", TEMPLATES[name])
    with pytest.raises(InputError, match=says) as error:
        encode(talker, messages)
    assert "\n" not in str(error.value)
    assert "leave such rows out" in str(error.value) or "alpaca" in str(error.value)


def test_a_change_is_said_once(caplog):
    notices._warn.cache_clear()
    kept = []
    notices.keep_notices(kept.append)
    talker = build("bytes", TEMPLATES["gemma"])
    try:
        with caplog.at_level(logging.WARNING):
            for text in ("Q1q", " Q2q"):
                encode(talker, [system(), user(text)])
    finally:
        notices.drop_notices(kept.append)
    assert caplog.text.count("takes no such system turn") == 1
    assert len(set(kept)) == 1


def test_the_text_beside_a_call_is_said_to_be_left_out():
    """Llama 3.1's template writes the call alone."""
    talker = build("bytes", TEMPLATES["llama3_1"])
    messages = [user(), calls(ASK, text="T1t"), result()]
    (note,) = fitted(talker, messages, OPENS).notes
    assert "leaves out the text" in note
    assert talker.decode(encode(talker, messages)) == own(talker, messages)
