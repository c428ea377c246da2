"""Chat logs in every format, and what is left out of them."""

import csv
import gzip
import json

import pytest

from setbacks.errors import InputError
from setbacks.loop.logs import Logs
from setbacks.loop.results import read
from setbacks.messages import Message, transcript

HELLO = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "PLACEHOLDER"}]


def chat(*texts):
    """Turns of a user and an assistant, by turns."""
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def only(*sources, **options):
    (logged,) = Logs(sources, **options)
    return logged


@pytest.mark.parametrize(
    "row",
    [
        {"messages": HELLO},
        {
            "conversations": [
                {"from": "human", "value": "Hello?"},
                {"from": "gpt", "value": "PLACEHOLDER"},
            ]
        },
        {"prompt": "Hello?", "response": "PLACEHOLDER"},
        {"messages": json.dumps(HELLO)},
        {"messages": [*HELLO, {"role": "user", "content": "Thanks."}]},
    ],
    ids=["openai", "sharegpt", "columns", "written", "the user spoke last"],
)
def test_the_last_answer_and_the_turns_before_it(tmp_path, row):
    logged = only(lines(tmp_path / "chat.jsonl", [row]))
    assert (logged.prompt, logged.answer, logged.source) == ("Hello?", "PLACEHOLDER", "chat.jsonl")


def test_a_conversation_keeps_its_turns(tmp_path):
    turns = chat("One?", "First.", "Two?", "PLACEHOLDER", "Bye.")
    logged = only(lines(tmp_path / "chat.jsonl", [{"messages": turns}]))
    assert transcript(logged.prompt) == "User: One?\nAssistant: First.\nUser: Two?"
    assert logged.answer == "PLACEHOLDER"


def test_csv_parquet_and_gzip(tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "a.csv").write_text('prompt,response\n"Hello?","PLACEHOLDER"\n')
    table = pyarrow.table({"messages": [HELLO]})
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(json.dumps({"messages": HELLO}).encode()))
    for name in ("a.csv", "b.parquet", "c.jsonl.gz"):
        assert only(str(tmp_path / name)).prompt == "Hello?"


def test_fields_of_ones_own(tmp_path):
    row = {"request": {"messages": HELLO[:1]}, "reply": {"choices": [{"message": HELLO[1]}]}}
    fields = {"text": "request.messages", "response": "reply.choices.0.message.content"}
    logged = only(lines(tmp_path / "api.jsonl", [row]), fields=fields)
    assert (logged.prompt, logged.answer) == ("Hello?", "PLACEHOLDER")


def test_fields_that_change_nothing_in_chat_logs_are_noticed(tmp_path, notices):
    row = {"question": "Hello?", "reply": "PLACEHOLDER", "topic": "t", "bad": True}
    fields = {"text": "question", "response": "reply"}
    path = lines(tmp_path / "api.jsonl", [row])
    assert only(path, fields=fields).prompt == "Hello?" and notices == []
    only(path, fields=fields | {"harmful": "bad", "category": "topic"})
    assert notices == ["fields: category, harmful of chat logs change nothing"]


def test_a_label_says_whether_a_request_is_safe(tmp_path):
    rows = [{"messages": HELLO, "prompt_harmful": value} for value in (False, "true", None)]
    assert [one.safe for one in Logs([lines(tmp_path / "a.jsonl", rows)])] == [True, False, None]


def test_a_garak_report_and_its_hit_log(tmp_path):
    prompt = {"turns": [{"role": "user", "content": {"text": "Hello?", "lang": "en"}}]}
    attempt = {
        "entry_type": "attempt",
        "status": 2,
        "probe_classname": "dan.Ablation",
        "prompt": prompt,
        "outputs": [{"text": "PLACEHOLDER 1"}, None, {"text": "PLACEHOLDER 3"}],
        "detector_results": {"mitigation.Bypass": [1.0, None, 0.0]},
    }
    report = lines(tmp_path / "a.report.jsonl", [{"entry_type": "init"}, attempt])
    assert [one.answer for one in Logs([report])] == ["PLACEHOLDER 1", "PLACEHOLDER 3"]
    scores = [item.scores for item in read(report).items.values()]
    name = "dan.Ablation mitigation.Bypass safe"
    assert scores == [{name: False}, {}, {name: True}]
    with pytest.raises(InputError, match="not a chat log, so fields cannot be set"):
        Logs([report], {"text": "prompt"})
    hit = {
        "goal": "PLACEHOLDER",
        "prompt": prompt,
        "output": {"text": "PLACEHOLDER 1"},
        "triggers": None,
        "score": 1.0,
        "attempt_id": "1",
        "generator": "test Blank",
        "probe": "dan.Ablation",
        "detector": "mitigation.Bypass",
    }
    hits = lines(tmp_path / "a.hitlog.jsonl", [hit])
    assert only(hits)[:2] == ("Hello?", "PLACEHOLDER 1")
    assert read(hits).metrics() == [name]


def pieces(path):
    """PyRIT's memory: two conversations, with the rows in another order than they were spoken."""
    spoken = [
        ("a", 1, "assistant", "PLACEHOLDER 1", "text"),
        ("a", 0, "user", "One?", "text"),
        ("b", 2, "user", "Three?", "text"),
        ("b", 1, "simulated_assistant", "Two.", "text"),
        ("b", 0, "user", "One?", "text"),
        ("b", 2, "user", "cat.png", "image_path"),
        ("b", 3, "assistant", "PLACEHOLDER 2", "text"),
        ("c", 0, "user", "No answer.", "text"),
    ]
    rows = [
        {
            "id": f"{number}",
            "role": role,
            "conversation_id": conversation,
            "sequence": sequence,
            "original_value": "before converters" if text == "Three?" else text,
            "converted_value": text,
            "converted_value_data_type": kind,
            "scores": [
                {"score_type": "float_scale", "score_value": "0.25", "score_category": ["harm"]}
            ]
            if text == "PLACEHOLDER 1"
            else [],
        }
        for number, (conversation, sequence, role, text, kind) in enumerate(spoken)
    ]
    if path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text(json.dumps(rows, indent=4))
    return str(path)


@pytest.mark.parametrize("name", ["memory.json", "memory.csv"])
def test_an_export_of_pyrit(tmp_path, name):
    source = pieces(tmp_path / name)
    first, second = Logs([source])
    assert first[:2] == ("One?", "PLACEHOLDER 1")
    assert [turn.content for turn in second.prompt] == ["One?", "Two.", "Three?"]
    assert second.answer == "PLACEHOLDER 2"
    assert read(source).items["One?", 0].scores == {"harm": 0.25}


def test_a_broken_row_of_pyrit_is_one_line(tmp_path):
    path = tmp_path / "memory.json"
    pieces(path)
    path.write_text(json.dumps([*json.loads(path.read_text()), {"role": "user"}]))
    with pytest.raises(InputError, match="memory.json, row 9: not a piece of a message"):
        list(Logs([str(path)]))


def test_promptfoo_and_one_of_its_providers(tmp_path):
    results = [
        {"prompt": {"raw": "Hello?"}, "provider": {"id": who}, "response": {"output": who}}
        for who in ("openai:old", "openai:new")
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"results": {"version": 3, "results": results}}))
    assert len([*Logs([str(path)])]) == 2
    assert only(f"{path}:openai:new").answer == "openai:new"


@pytest.mark.slow
def test_an_inspect_log_of_the_real_library(tmp_path):
    pytest.importorskip("inspect_ai")
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import (
        ChatMessageAssistant,
        ChatMessageUser,
        ModelOutput,
        ModelUsage,
        get_model,
    )

    turns = [ChatMessageUser(content="One?"), ChatMessageAssistant(content="First.")]
    samples = [Sample(input="Hello?"), Sample(input=[*turns, ChatMessageUser(content="Two?")])]
    output = ModelOutput.from_content("mockllm/model", "PLACEHOLDER")
    output.usage = ModelUsage()
    model = get_model("mockllm/model", custom_outputs=[output] * 2, memoize=False)
    (done,) = eval(
        Task(dataset=samples), model=model, log_dir=str(tmp_path), display="none", max_samples=1
    )
    first, second = Logs([done.location.removeprefix("file://")])
    assert first[:2] == ("Hello?", "PLACEHOLDER")
    assert second.prompt[-1] == Message(role="user", content="Two?") and len(second.prompt) == 3


def test_one_broken_line_is_left_out_and_counted(tmp_path, caplog):
    path = tmp_path / "chat.jsonl"
    good = json.dumps({"messages": HELLO}) + "\n"
    path.write_text(good * 1500 + '{"messages": [\n' + good + "\xff\n", encoding="latin-1")
    logs = Logs([str(path)])
    assert len([*logs]) == 1501
    logs.report()
    assert "left out 2 entries: not JSON; the first is line 1501" in caplog.text


def test_conversations_without_an_answer_are_left_out_and_counted(tmp_path, caplog):
    rows = [
        {"messages": HELLO[:1]},
        {"messages": HELLO},
        {"messages": [HELLO[0], {"role": "assistant", "content": ""}]},
        {"messages": [{"role": "user", "content": ""}, HELLO[1]]},
    ]
    logs = Logs([lines(tmp_path / "chat.jsonl", rows)])
    assert len([*logs]) == 1
    logs.report()
    assert "left out 2 entries: no answer of the assistant; the first is line 1" in caplog.text
    assert "left out 1 entry: not readable as a conversation; the first is line 4\n" in caplog.text


def test_a_reason_names_the_line_and_quotes_nothing(tmp_path, caplog):
    rows = [
        {"messages": HELLO},
        {"messages": [{"role": "Ada", "content": "Hello?"}, HELLO[1]]},
        {"messages": [{"role": "user", "content": {"secret": "Ada"}}, HELLO[1]]},
        {"messages": HELLO, "prompt_harmful": "Ada"},
    ]
    logs = Logs([lines(tmp_path / "chat.jsonl", rows)])
    assert len([*logs]) == 1
    logs.report()
    assert "2 entries: not readable as a conversation; the first is line 2\n" in caplog.text
    assert "prompt_harmful is neither true nor false; the first is line 4\n" in caplog.text
    with pytest.raises(InputError, match="not readable as a conversation in 2") as error:
        list(Logs([lines(tmp_path / "bad.jsonl", rows[1:])]))
    assert "Ada" not in caplog.text + str(error.value)


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([("system", ""), ("user", "One?")], "One?"),
        ([("user", "One?"), ("assistant", "It begins")], "One?"),
        ([("user", '[{"role": "user", "content": "One?"}]')], None),
        ([("user", "One?"), ("assistant", ""), ("user", "Two?")], "not readable"),
        ([("user", "One?"), ("system", "Late.")], "not readable"),
        ([("system", "Alone.")], "not readable"),
        ([("user", "  ")], "not readable"),
    ],
)
def test_prompts_of_other_tools_follow_the_rules_of_our_data(tmp_path, turns, expected, caplog):
    def attempt(turns):
        turns = [{"role": role, "content": {"text": text}} for role, text in turns]
        outputs = [{"text": "PLACEHOLDER"}]
        prompt = {"turns": turns}
        return {"entry_type": "attempt", "status": 2, "prompt": prompt, "outputs": outputs}

    rows = [attempt(turns), attempt([("user", "Hello?")])]
    logs = Logs([lines(tmp_path / "a.report.jsonl", rows)])
    *odd, last = logs
    logs.report()
    assert last.prompt == "Hello?"
    if expected == "not readable":
        assert odd == [] and "not readable as a conversation; the first is result 1" in caplog.text
    else:
        assert [one.prompt for one in odd] == [expected or turns[0][1]]


def test_a_chat_of_promptfoo_is_a_conversation(tmp_path):
    chats = ([*chat("One?", "First.", "Two?")], [{"role": "user", "content": "One?"}])
    results = [{"prompt": {"raw": json.dumps(c)}, "response": {"output": "x"}} for c in chats]
    results.append({"prompt": {"raw": '{"a": 1}'}, "response": {"output": "x"}})
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"results": results}))
    assert [transcript(one.prompt) for one in Logs([str(path)])] == [
        "User: One?\nAssistant: First.\nUser: Two?",
        "One?",
        '{"a": 1}',
    ]


def test_json_with_a_byte_order_mark_and_json_lines_named_json(tmp_path):
    row = json.dumps({"messages": HELLO})
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + f"[{row}]".encode())
    (tmp_path / "b.json").write_text(f"{row}\n{row}\n")
    assert only(str(tmp_path / "a.json")).prompt == "Hello?"
    assert len([*Logs([str(tmp_path / "b.json")])]) == 2


def test_a_long_field_of_pyrit(tmp_path):
    header = "role,conversation_id,sequence,original_value\n"
    question = "Why? " * 40_000
    path = tmp_path / "memory.csv"
    csv.field_size_limit(131_072)  # the default, which another test may have changed
    path.write_text(header + f'user,1,0,"{question}"\nassistant,1,1,PLACEHOLDER\n')
    assert only(str(path))[:2] == (question, "PLACEHOLDER")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[" * 100_000, r"a\.json: nested too deeply"),
        ("a.jsonl", "[" * 100_000, r"has no logged answer: not JSON in 1, the first is line 1"),
        ("a.jsonl", "", r"a\.jsonl: has no logged answer$"),
        ("a.jsonl", "{\n{\n", r"has no logged answer: not JSON in 2, the first is line 1"),
        ("a.jsonl", json.dumps({"messages": HELLO[:1]}), "no answer of the assistant in 1"),
        ("a.jsonl", '{"v": 9, "turns_of_2030": []}\n', "no known field for text"),
        ("a.json", '{"version": 99, "results": {"stats": {}}}', r"a\.json"),
        ("a.txt", "Hello?", "the name must end in"),
        ("a.jsonl.gz", "no gzip", r"a\.jsonl\.gz: cannot be read to its end"),
    ],
)
def test_bad_logs_are_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message) as error:
        list(Logs([str(tmp_path / name)]))
    assert "\n" not in str(error.value)


def test_a_log_that_does_not_exist_and_a_folder(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        list(Logs([str(tmp_path / "missing.jsonl")]))
    with pytest.raises(InputError, match="a folder, but not a run folder"):
        list(Logs([str(tmp_path)]))
