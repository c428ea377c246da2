"""Personal data becomes marks, without a network."""

import socket
import sys

import pytest

from setbacks.errors import InputError
from setbacks.loop.harvest.redaction import Redactor
from setbacks.messages import Function, Message, ToolCall


@pytest.fixture
def offline(monkeypatch):
    """Fail any test that looks for a host."""

    def refuse(*_, **__):
        raise AssertionError("it asks the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def redactor():
    pytest.importorskip("presidio_analyzer")
    return Redactor()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("mail Ada@example.org, please", "mail <EMAIL_ADDRESS>, please"),
        ("a@example.org, b@example.org", "<EMAIL_ADDRESS>, <EMAIL_ADDRESS_2>"),
        ("a@example.org and A@EXAMPLE.ORG", "<EMAIL_ADDRESS> and <EMAIL_ADDRESS>"),
        ("call +1 (212) 555-0182 now", "call <PHONE_NUMBER> now"),
        ("card 4111 1111 1111 1111", "card <CREDIT_CARD>"),
        ("from 192.168.0.12", "from <IP_ADDRESS>"),
        ("IBAN DE89370400440532013000", "IBAN <IBAN_CODE>"),
        ("see https://example.com/u/ada now", "see <URL> now"),
        ("my node.js and setup.py of 12/03/1980", "my node.js and setup.py of 12/03/1980"),
        ("order 123456789 of the Germans", "order 123456789 of the Germans"),
        ("", ""),
    ],
)
def test_patterns(redactor, offline, text, redacted):
    assert redactor(text, "")[0] == redacted


@pytest.mark.slow
def test_marks_are_the_same_in_all_turns_of_one_conversation(redactor, offline):
    call = ToolCall(function=Function(name="send", arguments='{"to": "b@example.org"}'))
    turns = (
        Message(role="user", content="I am a@example.org; write to b@example.org."),
        Message(role="assistant", tool_calls=(call,)),
        Message(role="tool", content="sent to b@example.org", name="send"),
    )
    prompt, answer = redactor(turns, "Done, a@example.org.")
    assert prompt[0].content == "I am <EMAIL_ADDRESS>; write to <EMAIL_ADDRESS_2>."
    assert prompt[1].tool_calls[0].function.arguments == '{"to": "<EMAIL_ADDRESS_2>"}'
    assert (prompt[2].content, prompt[2].name) == ("sent to <EMAIL_ADDRESS_2>", "send")
    assert answer == "Done, <EMAIL_ADDRESS>."
    assert redactor("b@example.org", "")[0] == "<EMAIL_ADDRESS>", "another conversation"


@pytest.mark.slow
def test_names_need_a_pipeline(redactor, offline, tmp_path):
    import spacy

    assert redactor("I am Ada Lovelace.", "")[0] == "I am Ada Lovelace."
    nlp = spacy.blank("en")
    nlp.add_pipe("entity_ruler").add_patterns(
        [{"label": "PERSON", "pattern": "Ada Lovelace"}, {"label": "NORP", "pattern": "Germans"}]
    )
    nlp.to_disk(tmp_path / "names")
    named = Redactor(str(tmp_path / "names"))
    assert named("I am Ada Lovelace. Ada Lovelace!", "")[0] == "I am <PERSON>. <PERSON>!"
    assert named("All Germans", "")[0] == "All Germans", "groups of people matter for harm"
    with pytest.raises(InputError, match="nothing: no spaCy pipeline"):
        Redactor("nothing")


@pytest.mark.slow
def test_without_a_pipeline_one_line_says_that_names_are_not_found(monkeypatch, offline):
    spacy = pytest.importorskip("spacy")
    monkeypatch.setattr(spacy.util, "get_installed_models", lambda: [])
    notices = []
    monkeypatch.setattr("setbacks.loop.harvest.redaction.notice", notices.append)
    assert Redactor().pipeline is None
    (line,) = notices
    assert "names of people and places are not found" in line and "--names" in line


def test_without_the_library_it_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(InputError, match="pip install 'setbacks.redact.', or .* --no-redact"):
        Redactor()
