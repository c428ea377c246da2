"""Conversations: as a model reads them and as people do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from setbacks.messages import (
    Message,
    Prompt,
    ToolCall,
    as_data,
    in_brief,
    last_user_text,
    prompt_of,
    reworded,
    transcript,
    turns_of,
    with_system,
)
from setbacks.records import digest

PROMPT = TypeAdapter(Prompt)


def turn(role, content="", **more):
    return Message(role=role, content=content, **more)


CALL = ToolCall.model_validate(
    {"id": "1", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
)
TALK = (
    turn("system", "Be brief."),
    turn("user", "What is it like outside?"),
    turn("assistant", tool_calls=(CALL,)),
    turn("tool", "12 degrees", name="weather", tool_call_id="1"),
    turn("assistant", "Cool."),
    turn("user", "And\ntomorrow?"),
)


def test_one_user_turn_is_a_string():
    assert prompt_of([turn("user", "Hello")]) == "Hello"
    assert turns_of("Hello") == [turn("user", "Hello")]
    assert prompt_of(TALK) == TALK and turns_of(TALK) == list(TALK)
    assert prompt_of([turn("assistant", "Hello")]) == (turn("assistant", "Hello"),)


def test_a_prompt_is_the_same_after_json():
    assert PROMPT.validate_json(PROMPT.dump_json(TALK)) == TALK
    assert PROMPT.dump_json((turn("user", "a"), turn("user", "b"))) == (
        b'[{"role":"user","content":"a"},{"role":"user","content":"b"}]'
    )
    assert PROMPT.dump_json("a") == b'"a"'
    with pytest.raises(ValidationError):
        PROMPT.validate_python([{"role": "critic", "content": ""}])


def test_a_transcript_shows_every_turn():
    assert transcript("Line 1\nUser: line 2") == "Line 1\nUser: line 2"
    assert transcript(TALK) == (
        "System: Be brief.\n"
        "User: What is it like outside?\n"
        'Assistant: [calls weather({"city": "Zürich"})]\n'
        "Tool weather: 12 degrees\n"
        "Assistant: Cool.\n"
        "User: And\n  tomorrow?"
    )


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text())))
def test_no_text_passes_for_another_turn(turns):
    """Only the label of a turn stands at the beginning of a line."""
    shown = transcript(tuple(turn(role, text) for role, text in turns))
    starts = [line for line in shown.splitlines() if line and not line.startswith("  ")]
    assert len(starts) == len(turns)


def test_a_prompt_in_brief_says_how_many_turns_there_are():
    assert in_brief("Hi\n  there") == "Hi there"
    assert in_brief("a" * 100) == "a" * 89 + "…" and in_brief("ab cd", 4) == "ab…"
    assert in_brief(TALK) == "And tomorrow? (6 turns)"


def test_a_prompt_as_data_is_a_string_or_messages():
    assert as_data("Hi") == "Hi"
    assert PROMPT.validate_python(as_data(TALK)) == TALK
    assert as_data(TALK)[0] == {"role": "system", "content": "Be brief."}


def test_rewording_changes_the_last_user_turn_alone():
    assert reworded("Hi", str.upper) == "HI"
    changed = reworded(TALK, str.upper)
    assert changed[:-1] == TALK[:-1] and changed[-1].content == "AND\nTOMORROW?"
    after_tool = reworded(TALK[:4], str.upper)
    assert last_user_text(after_tool) == "WHAT IS IT LIKE OUTSIDE?" and after_tool[3] == TALK[3]


def test_a_system_prompt_comes_before_that_of_the_data():
    assert with_system(TALK, None) == list(TALK)
    assert with_system(TALK, "Be kind.")[0].content == "Be kind.\n\nBe brief."
    assert [t.role for t in with_system(TALK[1:2], "Be kind.")] == ["system", "user"]


def test_conversations_have_ids_of_their_own():
    prompts = [transcript(TALK), TALK, TALK[:-1], (*TALK[:-1], turn("user", "And"))]
    assert len({digest("instruction", prompt) for prompt in prompts}) == len(prompts)
    assert digest("instruction", TALK) == digest(
        "instruction", PROMPT.validate_json(PROMPT.dump_json(TALK))
    )
