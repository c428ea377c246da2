"""What a server sends back: answers in every shape, and the errors of every provider."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from setbacks.engines.replies import Problem, Reply, problem, read

PROMPT = "Is this blocked as a content policy violation, or flagged by moderation? PLACEHOLDER"


def said(message, finish="stop", **more):
    """The body of a chat completion."""
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish}], **more}


def reading(body):
    return read(json.dumps(body).encode())


# Answers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "Fine."}, "Fine."),
        ({"content": None}, ""),
        ({}, ""),
        (None, ""),
        ({"content": [{"type": "text", "text": "Fi"}, {"type": "text", "text": "ne."}]}, "Fine."),
        ({"content": [{"type": "output_text", "text": "Fine."}]}, "Fine."),
        ({"content": ["Fi", {"text": {"value": "ne."}}]}, "Fine."),
        ({"content": {"type": "text", "text": "Fine."}}, "Fine."),
        ({"content": {"parts": [{"text": "Hm.", "thought": True}, {"text": "Fine."}]}}, "Fine."),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
                    {"type": "reasoning", "text": "Hm."},
                    {"type": "image_url", "image_url": {"url": "data:"}},
                    {"type": "text", "text": "Fine."},
                ]
            },
            "Fine.",
        ),
        ({"content": "Fine.", "reasoning_content": "Hm.", "reasoning": "Hm."}, "Fine."),
        ({"content": None, "reasoning_content": "Hm."}, ""),
        ({"content": None, "tool_calls": [{"type": "function", "function": {"name": "f"}}]}, ""),
        ({"content": 7}, ""),
        ({"content": [None, 7, [[]]]}, ""),
    ],
)
def test_the_answer_is_the_text(message, text):
    reply = reading(said(message))
    assert reply._replace(thought=None) == Reply(text, "stop")
    assert bool(reply.thought) == ("Hm." in json.dumps(message))
    assert (reply.thought or "").replace("Hm.", "") == ""


def test_the_tokens_of_a_thought_are_read():
    usage = {"completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 7}}
    reply = reading(said({"content": "Fine.", "reasoning": "Hm."}, usage=usage))
    assert (reply.thought, reply.tokens, reply.thought_tokens) == ("Hm.", 9, 7)
    assert reading(said({"content": "Fine."}, usage=usage)).thought_tokens is None


@pytest.mark.parametrize(
    ("finish", "wanted"),
    [
        ("stop", "stop"),
        ("STOP", "stop"),
        (None, "stop"),
        (3, "stop"),
        ("tool_calls", "stop"),
        ("eos_token", "stop"),
        ("length", "length"),
        ("MAX_TOKENS", "length"),
        ("model_length", "length"),
        ("model_context_window_exceeded", "length"),
        ("content_filter", "filter"),
        ("content_filter: PROHIBITED_CONTENT", "filter"),
        ("content_filtered", "filter"),
        ("SAFETY", "filter"),
        ("BLOCKLIST", "filter"),
        ("RECITATION", "filter"),
        ("guardrail_intervened", "filter"),
        ("sensitive", "filter"),
        ("refusal", "refusal"),
    ],
)
def test_why_an_answer_ended(finish, wanted):
    assert reading(said({"content": "Some."}, finish)) == Reply("Some.", wanted)


@pytest.mark.parametrize(
    ("message", "finish", "wanted"),
    [
        ({"content": None, "refusal": "No."}, "stop", Reply("No.", "refusal")),
        ({"content": "", "refusal": "No."}, "content_filter", Reply("No.", "refusal")),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, "stop", Reply("No.", "refusal")),
        ({"content": [{"type": "refusal"}]}, "stop", Reply("", "refusal")),
        ({"content": None, "refusal": True}, "stop", Reply("", "refusal")),
        ({"content": "Fine.", "refusal": ""}, "stop", Reply("Fine.", "stop")),
        ({"content": "Fine.", "refusal": None}, "stop", Reply("Fine.", "stop")),
        ({"content": None}, "refusal", Reply("", "refusal")),
    ],
)
def test_a_refusal_that_the_provider_reports(message, finish, wanted):
    assert reading(said(message, finish)) == wanted


def test_an_empty_choice_that_says_it_was_filtered():
    body = said({"content": None})
    body["choices"][0]["content_filter_results"] = {"violence": {"filtered": False}}
    assert reading(body) == Reply("", "stop")
    body["choices"][0]["content_filter_results"] = {"violence": {"filtered": True}}
    assert reading(body) == Reply("", "filter")


def test_the_choice_with_the_lowest_index_is_the_answer():
    choices = [
        {"index": n, "message": {"content": text}, "finish_reason": "stop"}
        for n, text in ((2, "c"), (0, "a"), (1, "b"))
    ]
    assert reading({"choices": choices}) == Reply("a", "stop")
    assert reading({"choices": [None, {"index": 0}, *choices[:1]]}) == Reply("c", "stop")


def test_a_server_of_plain_completions():
    assert reading({"choices": [{"text": "Fine.", "finish_reason": "stop"}]}).text == "Fine."
    assert reading({"choices": [{"message": "Fine."}]}).text == "Fine."


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 7}, (5, 7)),
        ({"prompt_tokens": 5.0, "completion_tokens": "7"}, (5, 7)),
        ({"prompt_tokens": 5, "total_tokens": 5}, (5, None)),
        ({"prompt_tokens": 5, "completion_tokens": 0}, (5, None)),  # there is a text
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, (None, None)),
        ({"prompt_tokens": None, "completion_tokens": None}, (None, None)),
        ({"prompt_tokens": -1, "completion_tokens": "many"}, (None, None)),
        ({"prompt_tokens": True, "completion_tokens": [7]}, (None, None)),
        ({"prompt_tokens": float("nan"), "completion_tokens": float("inf")}, (None, None)),
        ({"prompt_tokens": 10**400, "completion_tokens": 1e300}, (None, None)),
        ({}, (None, None)),
        (None, (None, None)),
        ([], (None, None)),
    ],
)
def test_counts_are_taken_where_they_can_be_right(usage, counts):
    made = reading(said({"content": "Fine."}, usage=usage))
    assert made == Reply("Fine.", "stop", *counts)


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        None,
        "text",
        {"choices": None},
        {"choices": []},
        {"choices": [{}]},
        {"choices": [{"index": 0, "message": None, "text": None}]},
        {"choices": "text"},
        {"error": {"message": "the model fell over"}},
        said({"content": "Half of it"}, "error"),
        said({"content": "Half of it"}, "abort"),
    ],
)
def test_what_is_no_answer(body):
    found = reading(body)
    assert isinstance(found, Problem) and found.summary and not found.blocks()


KEYS = st.sampled_from(
    "choices message content text finish_reason refusal usage prompt_tokens error code index parts "
    "type completion_tokens blockReason filtered".split()
)
BODIES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner),
    max_leaves=20,
)


@given(BODIES)
def test_no_body_is_a_crash(body):
    for data in (json.dumps(body).encode(), json.dumps({"choices": [body]}).encode()):
        found = read(data)
        assert isinstance(found, Reply | Problem)


def test_a_body_as_deep_as_can_be_read_is_no_crash():
    for inner in ("[" * 900 + "]" * 900, '{"parts": [' * 300 + "]}" * 300):
        body = f'{{"choices": [{{"message": {{"content": {inner}}}}}], "error": {inner}}}'
        assert read(body.encode()) == Reply("", "stop")
        assert not problem(body.encode()).blocks()


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"<html>", b"[" * 100_000, b'{"a": "\\ud800"}'])
def test_bytes_that_are_no_json(data):
    assert isinstance(read(data), Problem) and isinstance(problem(data), Problem)


# Errors -----------------------------------------------------------------------------------------


def error(message, code=None, **more):
    return {"error": {"message": message, "code": code, **more}}


BLOCKS = {
    "by its code": error("no", "content_filter", param="prompt"),
    "by an inner code": error("no", "400", innererror={"code": "ResponsibleAIPolicyViolation"}),
    "by its type": error("no", type="content_policy_violation"),
    "by a number and a Chinese message": error("内容可能包含不安全或敏感内容，请修改。", "1301"),
    "by a number alone": error("no", 1301),
    "by a flag": error("no", 400, innererror={"results": {"hate": {"filtered": True}}}),
    "by the input that was flagged": error("no", 403, metadata={"flagged_input": "PLACEHOLDER"}),
    "by a provider behind the provider": error(
        "Provider returned error",
        400,
        metadata={"raw": json.dumps(error("no", "content_filter"))},
    ),
    "by a code in the message": error("lib.BadRequest: lib.ContentPolicyViolationError: no", "400"),
    "by a path of codes": error("<400> Internal.Algo.DataInspectionFailed: no"),
    "by a reason for no choices": {"promptFeedback": {"blockReason": "OTHER"}},
    "by the filter's results": {"choices": [], "prompt_results": [{"sexual": {"filtered": True}}]},
    "in a list": [error("no", "PROHIBITED_CONTENT")],
    "in a base response": {"base_resp": {"status_code": 1026, "status_msg": "input new_sensitive"}},
    "a policy": error(
        "The response was filtered due to the prompt triggering the content management policy. "
        "Please modify your prompt and retry."
    ),
    "a usage policy": error(
        "Invalid prompt: your prompt was flagged as potentially violating our usage policy.",
        "invalid_prompt",
        type="invalid_request_error",
    ),
    "guidelines": {"code": "no permission", "error": "Content violates usage guidelines. Team: x"},
    "a risk": {"detail": "Content Exists Risk"},
    "a high risk": error("The request was rejected because it was considered high risk"),
    "a filter": error("Output blocked by content filtering policy", type="invalid_request_error"),
    "a moderation": error('m requires moderation. Your input was flagged for "violence".', 403),
    "a safety system": error("Your request was rejected as a result of our safety system."),
    "inappropriate data": error("Input data may contain inappropriate content."),
    "a guardrail": error("Violated guardrail policy"),
    "a guard model": {"errors": [{"message": "Prompt rejected by the guard: unsafe (S1)"}]},
    "a blocked input": {"message": "invalid request: blocked input: please adjust the input"},
    "a gateway": {"error": [{"code": 9, "message": "Prompt blocked by security configurations"}]},
}

DOES_NOT_BLOCK = {
    "no room": error("This model's maximum context length is 9 tokens.", "context_length_exceeded"),
    "a parameter": error("Unknown parameter: 'content_filter'.", "unknown_parameter"),
    "a setting": error("Unrecognized request argument supplied: safety_settings"),
    "a wrong policy": error(
        "Your request contains invalid content filter policy. Provide another."
    ),
    "a missing identifier": error("You must provide safety_identifier", "missing_parameter"),
    "the account": error("Your account was flagged for violating our usage policies.", "banned"),
    "access": error("Your access was terminated due to violation of our policies."),
    "a firewall": error("Your request was blocked."),
    "a network": error("Request is prohibited by the network policy of the organization", 403),
    "a budget": error("no credits", "personal-team-blocked:spending-limit"),
    "a moderation that fails": error("no", "moderation_unavailable"),
    "a filter that fails": error("The contents are not filtered", "content_filter_error"),
    "a filter that let it pass": error("no", 400, innererror={"hate": {"filtered": False}}),
    "the type of the content": error("Content type text/plain not allowed; request blocked"),
    "characters": error("Input contains prohibited characters"),
    "the request, quoted": error(f"no template for: {PROMPT}"),
    "the request, quoted in part": error(f"no template for: {PROMPT[:60]}..."),
    "the request, repeated": {
        "detail": [
            {
                "type": "missing",
                "loc": ["body", "messages"],
                "msg": "Field required",
                "input": {"message": "the content was flagged", "code": "content_filter"},
            }
        ]
    },
    "no words": error(None),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_an_error_that_says_the_content_was_blocked(name):
    found = reading(BLOCKS[name])
    assert isinstance(found, Problem)
    assert found.blocks([PROMPT]) and not found.too_long


@pytest.mark.parametrize("name", DOES_NOT_BLOCK)
def test_an_error_that_only_sounds_like_it(name):
    assert not problem(json.dumps(DOES_NOT_BLOCK[name]).encode()).blocks(["Short.", PROMPT])


def test_a_page_for_people_does_not_block():
    """A firewall's page speaks of policies, too; plain text comes from the server itself."""
    assert not problem(b"<html>This prompt was blocked by the content policy</html>").blocks()
    assert problem(b"This prompt was blocked by the content policy").blocks()


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 9 tokens, however you requested 10 tokens.",
        "the request exceeds the available context size",
        "prompt is too long: 10 tokens > 9 maximum",
        "Input is too long for requested model.",
        "The decoder prompt (length 10) is longer than the maximum model length of 9.",
        "The input token count (10) exceeds the maximum number of tokens allowed (9).",
    ],
)
def test_a_prompt_that_does_not_fit(message):
    assert problem(json.dumps(error(message)).encode()).too_long
    assert problem(json.dumps(error("no", "context_length_exceeded")).encode()).too_long
    assert not problem(json.dumps(error("no", "invalid_request_error")).encode()).too_long


@pytest.mark.parametrize(
    ("body", "summary"),
    [
        (error("no", 400), "no (400)"),
        (error("no", None, type="bad"), "no (bad)"),
        ([error("no")], "no"),
        ({"error": "no"}, "no"),
        ({"detail": "no"}, "no"),
        ({"base_resp": {"status_code": 1, "status_msg": "no"}}, "no"),
        ({"other": 1}, '{"other": 1}'),
    ],
)
def test_what_people_read_of_an_error(body, summary):
    assert problem(json.dumps(body).encode()).summary == summary
