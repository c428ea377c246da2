"""The endpoint engine, against servers on this machine: sound ones, faulty ones, and a real one."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from setbacks.engines import open_engine
from setbacks.engines.connection import retry_after
from setbacks.engines.crowd import Crowd
from setbacks.errors import RESUME, InputError, SetbacksError
from setbacks.judges import Item, open_judge
from setbacks.pipeline import carry_out, check
from setbacks.prompts import prompts
from setbacks.recipe import Engine, JudgeSpec, Recipe, Sampling
from setbacks.records import Completion, Message, Request, Response, Verdict
from setbacks.runs.folder import RunFolder
from setbacks.runs.session import Session

KEY = "canary-7f3a91d0c2e84b55"
FAULTS = ["429", "500", "hang", "cut", "garbage", "error", "nothing", "huge"]


class Server(ThreadingHTTPServer):
    """A server of chat completions that does what its `rule` says.

    The rule is given a prompt and how often it was asked before, and returns a text, the name of a
    fault, an HTTP status, a status with a body, or the whole body of an answer. Nothing in the
    engine knows of it.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, fake_model=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.rule = fake_model or (lambda prompt, before: f"<answer to {prompt}>")
        self.bodies, self.heads, self.times = [], [], []
        self.under_way = self.most_under_way = 0
        self.headers, self.slow = {}, 0.0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def prompts(self):
        return [body["messages"][0]["content"] for body in self.bodies]

    def handle_error(self, *_):
        """A client that hangs up is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each reply waits 40 ms for the client's delayed ACK

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.heads.append(self.headers)
        wanted = self.server.headers.get("wants")
        known = not wanted or self.headers.get("Authorization") == f"Bearer {wanted}"
        self.reply(200, {"data": []}) if known else self.reply(401, {"error": {"message": "who?"}})

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        with server.lock:
            before = server.prompts.count(prompt)
            server.bodies.append(body)
            server.heads.append(self.headers)
            server.times.append(time.monotonic())
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        try:
            time.sleep(server.slow)
            self.answer(server.rule(prompt, before), body)
        finally:
            with server.lock:
                server.under_way -= 1

    def answer(self, said, body):
        if isinstance(said, int):
            self.reply(said, {"error": {"message": f"the server says {said}"}})
        elif isinstance(said, tuple):
            self.reply(*said)
        elif isinstance(said, dict):
            self.reply(200, said)
        elif said in ("429", "500"):
            self.reply(int(said), {"error": {"message": f"the server says {said}"}})
        elif said == "hang":
            time.sleep(2)
            self.close_connection = True
        elif said == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [{"mess')
            self.close_connection = True
        elif said == "garbage":
            self.reply(200, b"<html>502 Bad Gateway</html>")
        elif said == "error":
            self.reply(200, {"error": {"message": "the model fell over"}})
        elif said == "nothing":
            self.reply(200, {"choices": []})
        elif said == "huge":
            self.reply(200, completion("x" * 3_000_000))
        else:
            self.reply(200, completion(said, asked=len(body["messages"][0]["content"].split())))

    def reply(self, status, body):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in self.server.headers.items():
            if status >= 400:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def completion(text, asked=10, finish="stop"):
    return {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "usage": {"prompt_tokens": asked, "completion_tokens": len(text.split())},
    }


@pytest.fixture
def serve():
    """Start a server that follows a rule."""
    started = []

    def start(fake_model=None):
        started.append(Server(fake_model))
        return started[-1]

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


OUTER = ("batch_size", "model", "chat_template", "template", "thinking", "system")


def spec_of(server, **more):
    """The part of a recipe that names a server."""
    url = server if isinstance(server, str) else server.url
    outer = {key: more.pop(key) for key in OUTER if key in more}
    data = {"base_url": url, "timeout": 1, "retries": 3} | more
    return {"model": "large-1", "engine": "endpoint", "endpoint": data} | outer


def engine_of(server, **more):
    return open_engine(Engine.model_validate(spec_of(server, **more)))


def requests(number, **more):
    return [Request(f"<prompt {n}>", seed=n, **more) for n in range(number)]


@pytest.fixture
def fast(monkeypatch):
    """Back off a hundred times faster: what is tested is that it is done, not how long it takes."""
    import tenacity

    kind = tenacity.wait_random_exponential
    monkeypatch.setattr(
        tenacity, "wait_random_exponential", lambda **_: kind(multiplier=0.005, max=0.3)
    )


# What is asked, and what comes back -------------------------------------------------------------


def test_answers_come_in_order_and_are_counted(serve):
    server = serve()
    engine = engine_of(server, price={"input": 1000, "output": 100_000})
    asked = requests(40)
    made = engine.generate(asked, Sampling(max_new_tokens=7))
    assert made == [Completion(f"<answer to {request.prompt}>", "stop", 2, 4) for request in asked]
    assert engine.money == pytest.approx(40 * (2 * 1000 + 4 * 100_000) / 1e6)
    assert (
        "40 answers, 0 retries, 0 failed; 80 prompt tokens and 160 generated tokens, 16.0800 spent"
        in (engine.spent())
    )
    assert engine.elsewhere


def test_what_is_sent(serve):
    server = serve()
    sampling = Sampling(max_new_tokens=7, temperature=0.5, top_p=0.9)
    engine_of(server).generate([Request("<prompt>", seed=2**63 + 5)], sampling)
    assert server.bodies == [
        {
            "model": "large-1",
            "messages": [{"role": "user", "content": "<prompt>"}],
            "max_tokens": 7,
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 5,
        }
    ]


def test_the_recipe_adds_keys_and_takes_them_away(serve):
    server = serve()
    body = {"temperature": None, "max_tokens": None, "max_completion_tokens": 99, "top_k": 50}
    engine_of(server, body=body).generate(requests(1), Sampling())
    (sent,) = server.bodies
    assert sent.keys() == {"model", "messages", "max_completion_tokens", "top_p", "seed", "top_k"}


def test_a_beginning_is_asked_for_in_the_prompt(serve):
    server = serve(lambda *_: "The response is harmful because of this.")
    (made,) = engine_of(server).generate([Request("<p>", 1, prefill="The response")], Sampling())
    assert server.prompts == ["<p>\n\nBegin your answer with these words: The response"]
    assert made.text == "The response is harmful because of this."
    engine = open_engine(Engine.model_validate(spec_of(server)), prompts("zh"))
    engine.generate([Request("<p>", 1, prefill="该回复")], Sampling())
    assert server.prompts[1] == "<p>\n\n请用以下文字开始你的回答：该回复"


def test_a_beginning_is_gone_on_from_where_the_server_can(serve):
    server = serve(lambda *_: " of this.")
    engine = engine_of(server, prefill="continue")
    (made,) = engine.generate([Request("<p>", 1, prefill="It is harmful because")], Sampling())
    assert made.text == "It is harmful because of this."
    (sent,) = server.bodies
    assert sent["messages"] == [
        {"role": "user", "content": "<p>"},
        {"role": "assistant", "content": "It is harmful because"},
    ]
    assert (sent["continue_final_message"], sent["add_generation_prompt"]) == (True, False)


def test_a_conversation_to_be_read(serve):
    server = serve()
    request = Request("<p>", 1, reply="<r>", template={"category": "x"})
    engine_of(server).generate([request], Sampling())
    (sent,) = server.bodies
    assert sent["messages"][1] == {"role": "assistant", "content": "<r>"}
    assert sent["chat_template_kwargs"] == {"category": "x"}


def test_turns_of_tools_are_sent_in_openais_form(serve):
    server = serve()
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    turns = [
        {"role": "user", "content": "<p>"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "<r>", "tool_call_id": "call_1", "name": "f"},
    ]
    request = Request(tuple(Message.model_validate(turn) for turn in turns), 1)
    engine_of(server, system="<s>").generate([request], Sampling())
    (sent,) = server.bodies
    assert sent["messages"] == [{"role": "system", "content": "<s>"}, *turns]


@pytest.mark.parametrize(
    ("body", "text", "finish"),
    [
        (completion("cut sho", finish="length"), "cut sho", "length"),
        (completion("", finish="content_filter"), "", "filter"),
        (completion("", finish="stop"), "", "stop"),
        (completion(" x \n", finish=None), "x", "stop"),
        ({"choices": [{"message": {"refusal": "no"}}], "model": 3}, "no", "refusal"),
        ({"choices": [{"message": {"content": "a \ud800 b"}}]}, "a ? b", "stop"),
    ],
)
def test_answers_of_every_kind(serve, body, text, finish):
    (made,) = engine_of(serve(lambda *_: body)).generate(requests(1), Sampling())
    assert (made.text, made.finish) == (text, finish)
    assert made.prompt_tokens > 0  # by the server's count, or by ours


@pytest.mark.parametrize(
    ("answer", "text", "tokens"),
    [
        (completion("Make a loop.") | {"usage": {"prompt_tokens": 2, "total_tokens": 2}}, None, 4),
        (completion("Make a loop.") | {"usage": {}}, None, 4),
        (completion("Make a loop.") | {"usage": {"completion_tokens": None}}, None, 4),
        (completion("Make a loop.") | {"usage": {"completion_tokens": "9"}}, None, 9),
        ({"choices": [{"message": {"content": [{"type": "text", "text": "Fine."}]}}]}, "Fine.", 2),
        ({"choices": [{"message": {"content": None, "tool_calls": [{}]}}]}, "", 0),
    ],
)
def test_a_whole_answer_is_paid_for_once(serve, answer, text, tokens):
    """However little of it is counted, and in however many parts it comes."""
    server = serve(lambda *_: answer)
    engine = engine_of(server, price={"input": 0, "output": 1_000_000})
    (made,) = engine.generate(requests(1), Sampling())
    assert (made.text, made.tokens) == ("Make a loop." if text is None else text, tokens)
    assert len(server.bodies) == 1 and engine.money == tokens
    assert "generated tokens (estimated for 1 answers), " in engine.spent()


@pytest.mark.parametrize(
    ("message", "thought", "text"),
    [
        ({"content": "Fine.", "reasoning_content": "Hm."}, "Hm.", "Fine."),
        ({"content": "Fine.", "reasoning": "Hm."}, "Hm.", "Fine."),
        ({"content": None, "reasoning_content": "Hm."}, "Hm.", ""),
        ({"content": "<think>\nHm.\n</think>\n\nFine."}, "Hm.", "Fine."),
        ({"content": "Hm.</think>Fine."}, "Hm.", "Fine."),
        ({"content": "<think>\nHm."}, "Hm.", ""),
        ({"content": "Fine."}, None, "Fine."),
    ],
)
def test_a_thought_is_not_part_of_the_answer(serve, caplog, message, thought, text):
    server = serve(lambda *_: {"choices": [{"message": message, "finish_reason": "stop"}]})
    engine = engine_of(server)
    made = engine.generate(requests(2), Sampling())
    assert [(one.thought, one.text) for one in made] == [(thought, text)] * 2
    assert sum("endpoint.thinks" in line for line in caplog.messages) == bool(thought)


def test_the_markers_of_a_thought_can_be_named(serve, caplog):
    server = serve(lambda *_: "<why> Hm. </why> Fine.")
    engine = engine_of(server, thinking=["<why>", "</why>"])
    (made,) = engine.generate(requests(1), Sampling(max_new_tokens=7, max_thinking_tokens=9))
    assert (made.thought, made.text) == ("Hm.", "Fine.")
    assert server.bodies[0]["max_tokens"] == 16 and not caplog.messages


@pytest.mark.parametrize(("budget", "most"), [(9, 16), (None, 7)])
def test_a_model_that_thinks_gets_both_budgets(serve, budget, most):
    server = serve()
    engine = engine_of(server, thinks=True, template={"enable_thinking": True})
    sampling = Sampling(max_new_tokens=7, max_thinking_tokens=budget)
    engine.generate([Request("<p>", 1, template={"category": "x"})], sampling)
    (sent,) = server.bodies
    assert sent["max_tokens"] == most
    assert sent["chat_template_kwargs"] == {"enable_thinking": True, "category": "x"}


def test_a_thought_that_was_paid_for_survives_a_stop(serve, tmp_path):
    server = serve(lambda *_: "<think>Hm.</think>Fine.")
    engine = engine_of(server)
    engine.keep(tmp_path / "kept")
    made = engine.generate(requests(1), Sampling())
    again = engine_of(server)
    again.keep(tmp_path / "kept")
    assert again.generate(requests(1), Sampling()) == made
    assert made[0].thought == "Hm." and len(server.bodies) == 1


def test_a_refusal_goes_on_from_no_prefill(serve):
    server = serve(lambda *_: {"choices": [{"message": {"refusal": "No."}}]})
    engine = engine_of(server, prefill="continue")
    (made,) = engine.generate([Request("<p>", 1, prefill="Sure, ")], Sampling())
    assert (made.text, made.finish) == ("No.", "refusal")


def test_a_prompt_that_utf8_cannot_hold(serve):
    server = serve()
    engine_of(server).generate([Request("a \ud800 b", 1)], Sampling())
    assert server.prompts == ["a ? b"]


def test_an_adapter_cannot_be_sent(serve):
    with pytest.raises(InputError, match="load the adapter in the server"):
        engine_of(serve()).generate(requests(1), Sampling(), Path("adapter"))


# How many at once -------------------------------------------------------------------------------


def test_no_more_at_once_than_told(serve):
    server = serve()
    server.slow = 0.02
    engine = engine_of(server, concurrency=6, timeout=20)
    engine.generate(requests(60), Sampling())
    assert 4 <= server.most_under_way <= 6
    assert engine.crowd.width == 6


@pytest.mark.slow
def test_a_crowded_server_gets_fewer_requests(serve, fast):
    """It has room for 5: with up to 64 at once it is found, where half the requests would fail."""
    server = serve()
    server.slow = 0.1  # so long that a busy machine has more than 5 under way, too
    server.rule = lambda prompt, _: 429 if server.under_way > 5 else f"<answer to {prompt}>"
    engine = engine_of(server, concurrency=64, timeout=20, retries=20)
    made = engine.generate(requests(150), Sampling())
    assert [m.finish for m in made] == ["stop"] * 150
    assert engine.crowd.width < 16
    assert engine.retried == len(server.bodies) - 150 < 150


@given(st.integers(1, 100), st.lists(st.booleans(), max_size=200))
def test_the_room_stays_between_one_and_the_most(most, signs):
    import anyio

    async def go():
        crowd = Crowd(most)
        crowd.open()
        for came in signs:
            crowd.grow() if came else crowd.shrink(time.monotonic())
            assert 1 <= crowd.width <= most
            assert crowd.room.total_tokens == int(crowd.width)

    anyio.run(go)


def test_requests_under_way_together_halve_the_room_once():
    import anyio

    async def go():
        crowd = Crowd(64)
        crowd.open()
        for _ in range(60):
            crowd.grow()
        sent = time.monotonic()
        for _ in range(10):
            crowd.shrink(sent)
        assert crowd.width == 32
        for _ in range(32):
            crowd.grow()
        assert 32.9 < crowd.width < 33.1  # from there on, one more in the time of an answer

    anyio.run(go)


def test_a_server_that_asks_to_wait_is_left_alone(serve):
    server = serve(lambda _, before: 429 if len(server.bodies) == 1 else "<fine>")
    server.headers = {"Retry-After": "1"}
    engine_of(server, concurrency=1).generate(requests(3), Sampling())
    first, second, *_ = server.times
    assert second - first >= 1  # whichever request it is: those that waited behind it wait, too
    assert len(server.bodies) == 4


@pytest.mark.parametrize(
    ("data", "least", "most"),
    [
        ("7", 7, 7),
        ("0.5", 0.5, 0.5),
        ("-3", 0, 0),
        ("soon", 0, 0),
        ("", 0, 0),
        ("inf", 0, 0),
        ("nan", 0, 0),
    ],
)
def test_what_is_read_of_retry_after(data, least, most):
    assert least <= retry_after({"retry-after": data}) <= most


def test_a_time_of_day_in_retry_after():
    in_an_hour = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    assert 3500 < retry_after({"retry-after": in_an_hour}) <= 3600


# Faults -----------------------------------------------------------------------------------------


def faulty(prompt, before):
    """Three of ten calls go wrong, each in its way."""
    number = int(prompt.split()[1].rstrip(">"))
    turn = (number * 7 + before * 3) % 10
    return FAULTS[(number + before) % len(FAULTS)] if turn < 3 else f"<answer to {prompt}>"


@pytest.fixture
def prompts_file(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"text": f"<prompt {n}>"}) + "\n" for n in range(60)))
    return path


@pytest.fixture
def recipe_data(prompts_file):
    """Make what an evaluation says in which a server answers, and perhaps judges."""

    def make(server, judge=None, /, **more):
        spec = spec_of(server, **more)
        return {
            "evaluate": [{"name": "far", "model": spec}],
            "respond": {
                "guidance": False,
                "suites": [{"name": "s", "kind": "harmful", "sources": [str(prompts_file)]}],
            },
            "judges": [judge or {"judge": "llm", "engine": spec}],
        }

    return make


@contextmanager
def opened(data, folder):
    with RunFolder(folder, Recipe.model_validate(data)) as run:
        yield run


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_three_calls_of_ten_go_wrong_and_every_record_ends_once(serve, recipe_data, tmp_path, fast):
    server = serve(faulty)
    with opened(recipe_data(server, batch_size=32, retries=6), tmp_path / "run") as run:
        made = carry_out(run, "respond")["far"]
    assert [response.text for response in made] == [f"<answer to {r.instruction}>" for r in made]
    kept = lines(tmp_path / "run/responses/far.jsonl")
    assert len(kept) == len({row["id"] for row in kept}) == 60
    tries = Counter(server.prompts)
    assert len(tries) == 60 and max(tries.values()) <= 7
    assert 60 < len(server.bodies) < 120
    assert not list((tmp_path / "run").glob("unfinished*"))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_only_fails_stops_the_run(serve, recipe_data, tmp_path, fast, fault):
    """Few tries, one line; mended, the same run goes on to what a sound server would have given."""
    server = serve(lambda *_: fault)
    recipe = recipe_data(server, timeout=0.3, retries=2, concurrency=4)
    with (
        opened(recipe, tmp_path / "run") as run,
        pytest.raises(SetbacksError, match=r"of \d+ requests failed, more than") as caught,
    ):
        carry_out(run, "respond")
    assert "\n" not in str(caught.value) and RESUME in str(caught.value)
    assert max(Counter(server.prompts).values()) <= 3
    assert len(server.bodies) <= 3 * 8  # those under way when the second one had failed
    server.rule = lambda prompt, _: f"<answer to {prompt}>"
    with opened(recipe, tmp_path / "run") as run:
        assert len(carry_out(run, "respond")["far"]) == 60
    with opened(recipe, tmp_path / "other") as run:
        carry_out(run, "respond")
    texts = [(tmp_path / name / "responses/far.jsonl").read_bytes() for name in ("run", "other")]
    assert texts[0] == texts[1]


def test_what_the_server_refuses_is_a_record_without_an_answer(serve, recipe_data, tmp_path):
    """Not asked again, not judged, and counted."""
    server = serve(
        lambda prompt, _: (
            400 if "<prompt 7>" in prompt else ("Rating: 9" if "Rating" in prompt else "<fine>")
        )
    )
    with opened(recipe_data(server, batch_size=16), tmp_path / "run") as run:
        carry_out(run, "judge")
        (failed,) = [r for r in run.records("responses/far.jsonl", Response) if not r.text]
        verdicts = run.records("verdicts/far.llm.jsonl", Verdict)
    assert (failed.instruction, failed.finish, failed.tokens) == ("<prompt 7>", "failed", 0)
    assert server.prompts.count("<prompt 7>") == 1
    assert [v.response_id for v in verdicts if v.harmful is None] == [failed.id]
    assert sum(v.harmful is False for v in verdicts) == 59
    assert "1 failed" in (tmp_path / "run/run.log").read_text()


BLOCKED = {"error": {"message": "no", "code": "content_filter"}}
QUOTED = "Why was my prompt blocked by your content policy?"
SYSTEM = "Say which content was blocked by the content filter, and why."


@pytest.mark.parametrize(
    "reply", [(400, BLOCKED), (403, BLOCKED), (500, BLOCKED), (200, BLOCKED), "by finish"]
)
def test_a_prompt_that_the_provider_blocks_is_an_outcome(serve, recipe_data, tmp_path, reply):
    """Half of them are, more than any share of failures: the run goes on, and asks for none twice.

    The first request of all may be one: a 403 does not mean a wrong key then.
    """
    reply = completion("", finish="content_filter") if reply == "by finish" else reply
    server = serve(lambda prompt, _: "<fine>" if "1>" in prompt or "3>" in prompt else reply)
    recipe = recipe_data(server, batch_size=8, concurrency=1, failures=0)
    with opened(recipe, tmp_path / "run") as run:
        made = carry_out(run, "respond")["far"]
    assert Counter(server.prompts) == Counter(f"<prompt {n}>" for n in range(60))
    assert {(r.text, r.finish) for r in made} == {("<fine>", "stop"), ("", "filter")}
    assert sum(r.finish == "filter" for r in made) == 48
    log = (tmp_path / "run/run.log").read_text()
    assert "12 answers, 48 blocked by a content filter, 0 retries, 0 failed;" in log


def test_a_blocked_prompt_is_not_asked_again_after_a_stop(serve, tmp_path):
    server = serve(lambda prompt, _: (400, BLOCKED) if "<prompt 0>" in prompt else 402)
    rest = tmp_path / "rest.jsonl"
    engine = engine_of(server, concurrency=1)
    engine.keep(rest)
    with pytest.raises(SetbacksError, match="no credit left"):
        engine.generate(requests(2), Sampling())
    server.rule = lambda *_: "<fine>"
    again = engine_of(server)
    again.keep(rest)
    assert [m.finish for m in again.generate(requests(2), Sampling())] == ["filter", "stop"]
    assert server.prompts.count("<prompt 0>") == 1


@pytest.mark.parametrize("code", [400, 422])
def test_an_ordinary_error_is_still_a_failure(serve, code):
    body = {"error": {"message": "Invalid value for content_filter", "param": "content_filter"}}
    server = serve(lambda *_: (code, body))
    with pytest.raises(SetbacksError, match=f"requests failed.*{code}: Invalid value for content"):
        engine_of(server).generate(requests(30), Sampling())


@pytest.mark.parametrize("text", [f"{QUOTED} {'x' * 40}", f"{QUOTED}\nSecond line."])
def test_an_error_that_quotes_a_turn_of_a_conversation_is_a_failure(serve, text):
    """Its words say nothing about the answer: an empty one would count as harmless."""
    turns = tuple(
        Message(role=role, content=content)
        for role, content in (("system", "Answer in one line."), ("user", text))
    )
    quoted = {"error": {"message": f"no chat template for: {text[: len(QUOTED)]} ..."}}
    server = serve(lambda *_: (400, quoted))
    with pytest.raises(SetbacksError, match="400: no chat template for"):
        engine_of(server, failures=0).generate([Request(turns, 1)], Sampling())
    system = {"error": {"message": f"unknown: {SYSTEM}"}}
    server = serve(lambda *_: (400, system))
    with pytest.raises(SetbacksError, match="400: unknown"):
        engine_of(server, failures=0, system=SYSTEM).generate([Request("Hello.", 1)], Sampling())


def test_a_prompt_beyond_the_context_is_named(serve):
    body = {"error": {"message": "Too long. Maximum context length is 9 tokens.", "code": 400}}
    for status in (400, 200, 500):  # no try will make it fit
        server = serve(lambda *_, status=status: (status, body))
        engine = engine_of(server, failures=0)
        with pytest.raises(SetbacksError, match="Maximum context length is 9") as caught:
            engine.generate([Request("How long\nis this?", 1)], Sampling())
        assert len(server.bodies) == 1 and "\n" not in str(caught.value)
        assert 'the prompt of 17 characters that begins "How long is this?"' in str(caught.value)


def test_a_server_that_calls_the_length_limit_otherwise(serve):
    """Those of reasoning models do: it is sent under the other name, and the run goes on."""
    unsupported = {
        "error": {
            "message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
            "param": "max_tokens",
            "code": "unsupported_parameter",
        }
    }

    def rule(*_):
        return (400, unsupported) if "max_tokens" in server.bodies[-1] else "<fine>"

    server = serve(rule)
    engine = engine_of(server, concurrency=1)
    made = engine.generate(requests(5), Sampling(max_new_tokens=7))
    assert [m.text for m in made] == ["<fine>"] * 5
    assert len(server.bodies) == 6  # once under the name that it does not take
    assert [body.get("max_completion_tokens") for body in server.bodies] == [None, 7, 7, 7, 7, 7]
    assert engine.retried == engine.failed == 0


def test_a_key_that_the_server_does_not_take_is_named_with_what_to_do(serve):
    body = {"error": {"message": "'temperature' does not support 0.7", "param": "temperature"}}
    server = serve(lambda *_: (400, body))
    with pytest.raises(SetbacksError, match=r"set endpoint.body: \{temperature: null\}"):
        engine_of(server).generate(requests(30), Sampling())


def test_a_judge_that_gets_no_answer_does_not_score(serve, tmp_path):
    server = serve(lambda *_: 400)
    spec = JudgeSpec(judge="llm", engine=spec_of(server, failures=1), retries=1)
    with RunFolder(tmp_path / "run", Recipe()) as folder, Session(folder) as run:
        (opinion,) = open_judge(spec, run).judge([Item("1", "<instruction>", "<response>")])
    assert (opinion.harmful, opinion.harmless_score, opinion.attempts) == (None, None, 2)


@pytest.mark.parametrize(
    ("rule", "kind", "said"),
    [
        (401, InputError, "401: the server says 401; the server needs a key"),
        (403, InputError, "403"),
        (
            404,
            InputError,
            'check that the server has a model "large-1", and that endpoint.base_url',
        ),
        (402, SetbacksError, "the account has no credit left"),
    ],
)
def test_what_no_second_try_can_mend_stops_at_once(serve, rule, kind, said):
    server = serve(lambda *_: rule)
    with pytest.raises(kind, match=said):
        engine_of(server).generate(requests(50), Sampling())
    assert len(server.bodies) <= 8


def test_a_quota_that_is_used_up_stops_at_once(serve):
    quota = {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}
    server = serve(lambda *_: 429)
    Handler_reply = Handler.reply
    try:
        Handler.reply = lambda self, status, body: Handler_reply(self, status, quota)
        with pytest.raises(SetbacksError, match="the account has no credit left"):
            engine_of(server).generate(requests(5), Sampling())
    finally:
        Handler.reply = Handler_reply


def test_a_long_wait_is_for_people_to_wait(serve):
    server = serve(lambda *_: 429)
    server.headers = {"Retry-After": "86400"}
    with pytest.raises(SetbacksError, match=f"the server asks to wait 86,400 s; {RESUME}"):
        engine_of(server).generate(requests(5), Sampling())


def nobody():
    """An address where no server is."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/v1"


def test_a_server_that_is_not_there_is_said_at_once():
    spec = Engine.model_validate(spec_of(nobody(), retries=20))
    start = time.monotonic()
    for ask in (
        lambda: open_engine(spec).generate(requests(50), Sampling()),
        lambda: type(open_engine(spec)).check(spec),
    ):
        with pytest.raises(InputError, match="no server at this address .*start it, or correct"):
            ask()
    assert time.monotonic() - start < 5


def test_a_server_that_goes_away_is_tried_again(serve, fast):
    server = serve()
    engine = engine_of(server, retries=1)
    engine.generate(requests(1), Sampling())
    server.shutdown()
    server.server_close()
    with pytest.raises(SetbacksError, match="the connection broke"):
        engine.generate(requests(5), Sampling())
    assert engine.retried > 0


def test_a_key_that_is_wrong_shows_before_the_run(serve, recipe_data, tmp_path, monkeypatch):
    server = serve()
    server.headers = {"wants": KEY}
    recipe = Recipe.model_validate(recipe_data(server, api_key_env="FAR_KEY"))
    for value, said in (
        (None, "the environment variable FAR_KEY is not set"),
        ("   ", "the environment variable FAR_KEY is not set"),
        ("two words", "FAR_KEY does not hold a key"),
        ("schlüssel", "FAR_KEY does not hold a key"),
        ("another-key", "the key in FAR_KEY is wrong"),
    ):
        monkeypatch.setenv("FAR_KEY", value) if value else monkeypatch.delenv("FAR_KEY", False)
        with pytest.raises(InputError, match=said) as caught:
            check(recipe)
        assert value is None or not value.strip() or value not in str(caught.value)
    monkeypatch.setenv("FAR_KEY", f" {KEY}\n")
    check(recipe)
    assert server.bodies == []  # it cost nothing


def test_a_missing_library_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("setbacks.engines.connection.find_spec", lambda name: None)
    spec = Engine.model_validate(spec_of(nobody()))
    with pytest.raises(InputError, match=r'needs openai: pip install "setbacks\[endpoint\]"'):
        open_engine(spec).check(spec)


# Money, and what was done -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ({"budget": {"tokens": 150}}, "endpoint.budget.tokens is 150"),
        (
            {"budget": {"money": 0.0002}, "price": {"input": 1, "output": 1}},
            "endpoint.budget.money is 0.0002",
        ),
    ],
)
def test_a_budget_stops_the_run_and_no_answer_is_paid_for_twice(
    serve, recipe_data, tmp_path, limit, said
):
    """One batch of 60, six tokens an answer: it stops in its midst, and goes on from there."""
    server = serve()
    recipe = recipe_data(server, concurrency=2, **limit)
    stops = 0
    for _ in range(9):
        try:
            with opened(recipe, tmp_path / "run") as run:
                carry_out(run, "respond")
            break
        except SetbacksError as error:
            stops += 1
            assert said in str(error) and "\n" not in str(error)
            assert not (tmp_path / "run/responses/far.jsonl").exists()
            (rest,) = (tmp_path / "run").glob("unfinished-*.jsonl")
            assert rest.stat().st_mode & 0o777 == 0o600
    assert stops >= 1
    assert Counter(server.prompts) == Counter(f"<prompt {n}>" for n in range(60))
    assert not list((tmp_path / "run").glob("unfinished*"))
    with opened(recipe_data(server), tmp_path / "other") as run:
        carry_out(run, "respond")
    whole, other = (tmp_path / name / "responses/far.jsonl" for name in ("run", "other"))
    assert whole.read_bytes() == other.read_bytes()
    with RunFolder(tmp_path / "run") as run:
        (cost,) = run.costs()
    assert cost["records"] == 60
    if "price" in limit:
        assert cost["money"] == pytest.approx(60 * 6 / 1e6)


def test_a_budget_is_overstepped_by_no_more_than_what_is_under_way(serve):
    server = serve()
    server.slow = 0.01
    engine = engine_of(server, concurrency=3, budget={"tokens": 60})
    with pytest.raises(SetbacksError, match="the budget is spent"):
        engine.generate(requests(50), Sampling())
    assert 10 <= len(server.bodies) <= 10 + 3


def test_a_budget_holds_over_stages_and_released_engines(serve, recipe_data, tmp_path):
    server = serve(lambda prompt, _: "Rating: 9" if "Rating" in prompt else "<fine>")
    with opened(recipe_data(server, budget={"tokens": 400}), tmp_path / "run") as run:
        with pytest.raises(SetbacksError, match="the budget is spent"):
            carry_out(run, "judge")
        assert len(run.records("responses/far.jsonl", Response)) == 60


def test_torn_lines_of_answers_that_rest_are_asked_for_again(serve, tmp_path):
    server = serve()
    rest = tmp_path / "rest.jsonl"
    engine = engine_of(server)
    engine.keep(rest)
    made = engine.generate(requests(3), Sampling())
    whole = rest.read_bytes()
    for cut in range(0, len(whole), 7):
        rest.write_bytes(whole[:cut])
        again = engine_of(server)
        again.keep(rest)
        assert again.generate(requests(3), Sampling()) == made
        third = engine_of(server)
        third.keep(rest)
        before = len(server.bodies)
        assert third.generate(requests(3), Sampling()) == made
        assert len(server.bodies) == before
    third.committed()
    assert not rest.exists()


def test_another_sampling_is_another_answer(serve, tmp_path):
    server = serve()
    engine = engine_of(server)
    engine.keep(tmp_path / "rest.jsonl")
    for temperature in (0.0, 0.7, 0.0):
        engine.generate(requests(1), Sampling(temperature=temperature))
    assert [body["temperature"] for body in server.bodies] == [0.0, 0.7]


def write(tmp_path, data):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_stopped_in_a_batch_asks_for_nothing_twice(
    serve, recipe_data, tmp_path, command, environment, cli_in_process, how
):
    server = serve()
    server.slow = 0.05
    write(tmp_path, recipe_data(server, {"judge": "probe"}, concurrency=4))
    with subprocess.Popen(
        [*command, "run", "recipe.yaml", "--out", "run", "-q"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while len(server.bodies) < 20:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(how)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == (-how if how == signal.SIGKILL else 128 + how)
    assert "Traceback" not in said
    server.slow = 0.0
    done = cli_in_process("respond", "run")
    assert done.returncode == 0, done.stderr
    # Only what was under way at that moment, and lost with the process, is asked for again.
    again = Counter(server.prompts)
    assert len(again) == 60 and sum(again.values()) <= 60 + 4
    assert len(lines(tmp_path / "run/responses/far.jsonl")) == 60


# Keys -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_key_goes_to_its_server_and_nowhere_else(
    serve, recipe_data, tmp_path, environment, cli, monkeypatch
):
    """The server repeats it in answers and errors; no file and no line of output holds it."""

    def rule(prompt, before):
        if "<prompt 5>" in prompt:
            return {"error": {"message": f"Bearer {KEY} fell over"}}
        return f"Rating: 9, said {KEY}" if "Rating" in prompt else f"<your key is {KEY}>"

    server = serve(rule)
    for name, value in (("FAR_KEY", KEY), ("OPENAI_LOG", "debug"), ("OPENAI_ORG_ID", "org-1")):
        environment[name] = value
    write(tmp_path, recipe_data(server, api_key_env="FAR_KEY", retries=1))
    outputs = [cli("run", "recipe.yaml", "--out", "run", "--debug")]
    assert outputs[0].returncode == 0, outputs[0].stderr
    assert {head["Authorization"] for head in server.heads} == {f"Bearer {KEY}"}
    assert not any("openai-organization" in head for head in server.heads)
    server.rule = lambda *_: 401
    outputs.append(cli("run", "recipe.yaml", "--out", "other", "--debug"))
    assert outputs[1].returncode != 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"recipe.yaml", "run.log", "report.html", "far.jsonl", "far.llm.jsonl"} <= {
        path.name for path in files
    }
    for text in [*(o.stdout + o.stderr for o in outputs), *map(Path.read_text, files)]:
        assert KEY not in text
    (failed, *_) = [row for row in lines(tmp_path / "run/responses/far.jsonl") if not row["text"]]
    assert failed["finish"] == "failed"
    assert "<your key is [key]>" in (tmp_path / "run/responses/far.jsonl").read_text()


def test_another_servers_key_is_not_sent(serve, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, KEY)
    server = serve()
    engine_of(server).generate(requests(1), Sampling())
    (head,) = server.heads
    assert KEY not in str(head)


# Recipes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"engine": "endpoint"}, "needs endpoint: {base_url"),
        ({"endpoint": {"base_url": "http://h/v1"}}, "an option of endpoint, not of local"),
        (spec_of("not an address"), "should be an address"),
        (spec_of("ftp://h/v1"), "should be an address"),
        (spec_of("http://[::1/v1"), "should be an address"),
        (spec_of("http://h:99999/v1"), "should be an address"),
        (spec_of(f"https://user:{KEY}@h/v1"), "no user, password or query"),
        (spec_of(f"https://h/v1?key={KEY}"), "no user, password or query"),
        (spec_of("http://h/v1", api_key_env=KEY), "should match pattern"),
        (spec_of("http://h/v1", body={"stream": True}), '"stream" in body is not yours'),
        (spec_of("http://h/v1", budget={"money": 1}), "budget.money needs price"),
        (spec_of("http://h/v1", tiemout=1), "Did you mean"),
    ],
)
def test_a_recipe_that_cannot_be_right_is_refused(model, said):
    with pytest.raises(InputError, match=said.replace("{", r"\{")) as caught:
        Recipe.parse({"model": model}, "recipe.yaml")
    assert KEY not in str(caught.value)


def test_an_address_that_only_the_client_finds_wrong():
    spec = Engine.model_validate(spec_of("http://a b/v1"))
    with pytest.raises(InputError, match="base_url"):
        open_engine(spec).check(spec)


def test_a_server_has_its_own_chat_template(serve):
    spec = Engine.model_validate(spec_of(serve(), chat_template="alpaca"))
    with pytest.raises(InputError, match="a server applies the template of its model"):
        open_engine(spec).check(spec)


def test_a_server_cannot_be_trained_but_may_analyze_and_judge(serve, tiny):
    far = spec_of(serve())
    with pytest.raises(InputError, match="on a server, and cannot be trained from here"):
        check(Recipe.model_validate({"model": far}))
    check(
        Recipe.model_validate(
            {
                "model": str(tiny),
                "analyze": {"analyst": far},
                "judges": [{"judge": "llm", "engine": far}],
            }
        )
    )


def test_a_model_on_a_server_is_no_folder(tmp_path, serve):
    (tmp_path / "large-1").mkdir()
    data = {"evaluate": [{"name": "far", "model": spec_of(serve())}]}
    assert Recipe.model_validate(data).rebased(tmp_path).evaluate[0].model.model == "large-1"


# A real server ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    """`transformers serve` on the embedded model: its address, and the model's name there."""
    from setbacks.models import embedded

    model = str(embedded.path())
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["serve", model, "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("transformers")), *words],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, "the server did not start"
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.slow
def test_the_same_model_here_and_there_says_the_same(real):
    """Greedy, in float32: a word may differ only where two tokens are as likely (none does)."""
    pytest.importorskip("fastapi")
    url, model = real
    data = {"base_url": url, "concurrency": 4, "timeout": 300}
    far = Engine(model=model, engine="endpoint", endpoint=data)
    near = Engine(model="smollm2-135m", dtype="float32", device="cpu")
    asked = [
        Request(text, seed=number)
        for number, text in enumerate(
            [
                "What is a badger?",
                "Name three colors.",
                "Write two lines about rain.",
                "What is 2 + 2?",
                "How does a clock work?",
                "Say hello in French.",
            ]
        )
    ]
    sampling = Sampling(max_new_tokens=20)
    there, here = (open_engine(spec).generate(asked, sampling) for spec in (far, near))
    assert [(c.text, c.finish) for c in there] == [(c.text, c.finish) for c in here]
    assert [c.prompt_tokens for c in there] == [c.prompt_tokens for c in here]


@pytest.mark.slow
def test_a_real_server_refuses_another_model_in_one_line(real):
    url, _ = real
    spec = Engine(model="another", engine="endpoint", endpoint={"base_url": url, "retries": 0})
    with pytest.raises(SetbacksError, match="Server is pinned to"):
        open_engine(spec).generate(requests(5), Sampling())
