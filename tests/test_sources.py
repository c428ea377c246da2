"""Reading instructions and answers: every shape, every way to be wrong, and public data."""

import gzip
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import setbacks.sources
from setbacks.data import Row, Source, load, load_labels, read_once, sources
from setbacks.data.instructions import instructions
from setbacks.data.presets import PRESETS
from setbacks.data.source import USUAL
from setbacks.data.sources import load_having
from setbacks.errors import InputError
from setbacks.messages import transcript
from setbacks.notices import drop_notices, keep_notices

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
DOCS = Path(__file__).resolve().parents[1] / "docs"


def write(folder, name, content):
    """Write a file and return its path as a string."""
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def texts(rows):
    return [row.text for row in rows]


def refused(source, **more):
    """Load what cannot be loaded; return the message, which is one line."""
    with pytest.raises(InputError) as error:
        load(Source(source=source, **more) if isinstance(source, str) else source)
    message = str(error.value)
    assert "\n" not in message
    return message


# Shapes


@pytest.mark.parametrize(
    "document",
    [
        [{"instruction": "<a>"}, {"instruction": "<b>"}],
        ["<a>", "<b>"],
        {"instructions": ["<a>", "<b>"], "inputs": []},
        {"instructions": ["<a>", "<b>"], "tags": ["x", "y"]},
        {"data": [{"prompt": "<a>"}, {"prompt": "<b>"}], "version": 1},
        {"data": ["<a>", "<b>"], "version": "1"},
        {"x": {"one": ["<a>"], "two": ["<b>"]}},
        {"x": [{"prompt": "<a>"}], "y": [{"prompt": "<b>"}]},
        {"questions": [{"question": "<a>"}, {"question": "<b>"}]},
    ],
)
def test_json_shapes(tmp_path, document):
    assert texts(load(write(tmp_path, "a.json", document))) == ["<a>", "<b>"]


def test_one_object_and_json_lines_under_the_name_json(tmp_path):
    assert texts(load(write(tmp_path, "a.json", {"prompt": "<a>"}))) == ["<a>"]
    lines = '{"prompt": "<a>"}\n{"prompt": "<b>"}\n'
    assert texts(load(write(tmp_path, "b.json", lines))) == ["<a>", "<b>"]


def test_categories(tmp_path):
    rows = load(write(tmp_path, "a.json", {"x": {"one": ["<a>"]}, "y": {"two": ["<b>"]}}))
    assert [row.category for row in rows] == ["x", "y"]
    tree = {"x": {"one": ["<a>"]}, "y": {"two": {"deep": ["<b>"]}}}
    fields = {"text": "text", "category": "subcategory"}
    rows = load(Source(source=write(tmp_path, "a.json", tree), fields=fields))
    assert [row.category for row in rows] == ["one", "two / deep"]
    pairs = {"instructions": ["<a>", "<b>"], "tags": ["x", "y"]}
    assert [row.category for row in load(write(tmp_path, "b.json", pairs))] == ["x", "y"]


def test_splits_in_one_json_are_no_categories(tmp_path):
    splits = {"train": [{"prompt": "<a>"}], "test": [{"prompt": "<b>"}], "version": 2}
    path = write(tmp_path, "a.json", splits)
    assert texts(load(Source(source=path, split="test"))) == ["<b>"]
    assert "set split: NAME to choose a split. It has train, test" in refused(path)
    assert 'Did you mean "test"?' in refused(path, split="tets")
    for document in (
        {"data": splits},
        {"train_sft": ["<a>"], "test_sft": ["<b>"]},
        {"train": {"prompt": ["<a>"]}, "dev": {"x": ["<b>"]}},
    ):
        assert "to choose a split" in refused(write(tmp_path, "b.json", document))
    nested = write(tmp_path, "c.json", {"train": {"Fraud": ["<a>"]}, "dev": {"Theft": ["<b>"]}})
    (row,) = load(Source(source=nested, split="dev"))
    assert (row.text, row.category) == ("<b>", "Theft")
    # One split needs no name, and is no category either.
    (row,) = load(write(tmp_path, "d.json", {"train": ["<a>"]}))
    assert (row.text, row.category) == ("<a>", None)


def test_categories_that_sound_like_splits_are_categories(tmp_path):
    document = {"Training data poisoning": ["<a>"], "Test cheating": ["<b>"], "dev": ["<c>"]}
    rows = load(write(tmp_path, "a.json", document))
    assert [row.category for row in rows] == list(document)


def test_jsonl_keeps_unusual_line_breaks_inside_a_string(tmp_path):
    lines = '\n{"text": "<a\u2028\x85b>"}\r\n\n"<c>"\n'
    assert texts(load(write(tmp_path, "a.jsonl", lines))) == ["<a\u2028\x85b>", "<c>"]


def test_gzip_and_byte_order_mark(tmp_path):
    data = b'\xef\xbb\xbf{"text": "<a>"}\n'
    assert texts(load(write(tmp_path, "a.jsonl", data))) == ["<a>"]
    assert texts(load(write(tmp_path, "a.jsonl.gz", gzip.compress(data, mtime=0)))) == ["<a>"]
    assert texts(load(write(tmp_path, "a.json.gz", gzip.compress(data, mtime=0)))) == ["<a>"]


def test_csv(tmp_path):
    data = 'prompt,output\r\n"<a, with\r\na second line>",<answer>\r\n\r\n<b>,\r\n'
    first, second = load(write(tmp_path, "a.csv", data.encode()))
    assert first[:2] == ("<a, with\r\na second line>", "<answer>")
    assert second[:2] == ("<b>", None)


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_csv_as_excel_writes_it_elsewhere(tmp_path, separator):
    lines = ["prompt;response;harmful", '"<a;\n, b>";"<x>";FALSCH', "<c>;;WAHR"]
    data = "\ufeff" + "\r\n".join(lines).replace(";", separator)
    rows = load(write(tmp_path, "a.csv", data))
    assert [(row.text, row.response, row.harmful) for row in rows] == [
        (f"<a{separator}\n, b>", "<x>", False),
        ("<c>", "", True),
    ]
    assert texts(load(write(tmp_path, "b.csv", "sep=;\nid;prompt\n1;<a>\n"))) == ["<a>"]


def test_separators_that_are_part_of_a_text(tmp_path):
    # A header of one column, and a semicolon in each text.
    rows = load(write(tmp_path, "a.csv", "prompt\n<a; b>\n<c; d>\n"))
    assert texts(rows) == ["<a; b>", "<c; d>"]
    # Without a header nothing tells: two columns, or one.
    path = write(tmp_path, "b.csv", "<a>;<b>\n<c>;<d>\n")
    assert "same number of semicolons" in refused(path, header=False)
    path = write(tmp_path, "c.csv", "<a>;<b>\n<c>\n")
    assert texts(load(Source(source=path, header=False))) == ["<a>;<b>", "<c>"]
    mixed = refused(write(tmp_path, "d.csv", "prompt;response,harmful\n<a>;<b>,true\n"))
    assert "have a single separator" in mixed


def test_names_of_columns_lose_the_blanks_around_them(tmp_path):
    (row,) = load(write(tmp_path, "a.csv", "prompt, response , harmful\n<a>,<b>,true\n"))
    assert (row.response, row.harmful) == ("<b>", True)


def test_words_for_nothing_are_texts_where_a_text_is_expected(tmp_path):
    rows = load(write(tmp_path, "a.csv", "prompt,response,harmful\nNA,null,NA\nNone,nan,\n"))
    assert [row[:4] for row in rows] == [("NA", None, "null", None), ("None", None, "nan", None)]


def test_csv_without_header(tmp_path):
    one = write(tmp_path, "a.csv", b"\xef\xbb\xbf<a>\n<b>\n")
    assert texts(load(Source(source=one, header=False))) == ["<a>", "<b>"]
    two = write(tmp_path, "b.csv", "x,<a>\ny,<b>\n")
    rows = load(Source(source=two, header=False, fields={"text": "1", "category": "0"}))
    assert [(row.category, row.text) for row in rows] == [("x", "<a>"), ("y", "<b>")]
    assert "header: false" in refused(one)
    assert refused(write(tmp_path, "c.jsonl", "{}\n")).endswith(
        "text=NAME on a command line; it has none"
    )


def test_only_a_csv_file_may_lack_a_header(tmp_path):
    line = refused(write(tmp_path, "a.jsonl", '{"x": 1}\n'))
    assert line.endswith('it has "x"')


@pytest.mark.parametrize(
    ("name", "options", "unused"),
    [
        ("a.jsonl", {"revision": "abc", "config": "c"}, "config and revision"),
        ("a.jsonl", {"header": False}, "header"),
        ("a.csv", {"header": False}, ""),
        ("a.csv", {"header": False, "revision": "abc"}, "revision"),
    ],
)
def test_options_of_other_kinds_of_data_are_noticed(tmp_path, name, options, unused, notices):
    content = '{"prompt": "<a>"}' if name.endswith("l") else "<a>\n<b>\n"
    path = write(tmp_path, name, content)
    load(Source(source=path, fields={} if name.endswith("l") else {"text": "0"}, **options))
    expected = f"{path}: data of this kind does not use {unused}"
    assert notices == ([expected] if unused else [])


def test_a_response_longer_than_csv_allows_by_default(tmp_path):
    (row,) = load(write(tmp_path, "a.csv", f"prompt,response\n<a>,{'x' * 200_000}\n"))
    assert len(row.response) == 200_000


def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    table = pyarrow.table({"prompt": ["<a>", "<b>"], "turns": [["x"], ["y", "z"]]})
    pyarrow.parquet.write_table(table, path)
    rows = load(Source(source=str(path), fields={"text": "prompt", "answer": "turns.1"}))
    assert [(row.text, row.answer) for row in rows] == [("<a>", None), ("<b>", "z")]
    assert "Parquet" in refused(write(tmp_path, "b.parquet", b"PAR1 not really"))


def parquet(path, columns, features=None):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table(columns)
    if features:
        noted = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": noted})
    pyarrow.parquet.write_table(table, path)
    return str(path)


def test_parquet_as_pandas_writes_it(tmp_path):
    """A column with a gap becomes one of floats, words become a dictionary."""
    import pyarrow

    nan = float("nan")
    columns = {
        "prompt": pyarrow.array(["<a>", "<b>"], pyarrow.large_string()),
        "answer": [None, "<y>"],
        "harmful": [1.0, nan],
        "category": pyarrow.array(["x", "y"]).dictionary_encode(),
        "id": [7.0, 8.0],
        "language": [nan, nan],
    }
    first, second = load(parquet(tmp_path / "a.parquet", columns))
    assert first == Row("<a>", None, None, True, "x", None, "7", "a.parquet", None)
    assert second[1:6] == ("<y>", None, None, "y", None)
    assert [
        row.id for row in load(Source(source=str(tmp_path / "a.parquet"), where={"id": 8}))
    ] == ["8"]


def test_a_class_label_is_read_by_its_name(tmp_path):
    unsafe_first = {"names": ["unsafe", "safe"], "_type": "ClassLabel"}
    columns = {"prompt": ["<a>", "<b>", "<c>"], "harmful": [0, 1, -1]}
    path = parquet(tmp_path / "a.parquet", columns, {"harmful": unsafe_first})
    assert [row.harmful for row in load(path)] == [True, False, None]
    assert texts(load(Source(source=path, where={"harmful": "safe"}))) == ["<b>"]
    data = {"harmful": unsafe_first | {"names": ["LABEL_0", "LABEL_1"]}}
    path = parquet(tmp_path / "b.parquet", columns, data)
    assert 'row 1: harmful is "LABEL_0"; it must be true or false' in refused(path)
    columns["harmful"] = [2, 1, 0]
    path = parquet(tmp_path / "c.parquet", columns, {"harmful": unsafe_first})
    assert 'row 1: harmful is "class 2, which has no name"' in refused(path)


@pytest.mark.parametrize(
    ("feature", "value", "path"),
    [
        ({"meta": {"label": "CLASS"}}, {"label": 0}, "meta.label"),
        ({"meta": {"feature": "CLASS", "_type": "List"}}, [0, 1], "meta.0"),
        ({"meta": ["CLASS"]}, [0, 1], "meta.0"),
        ({"meta": {"feature": {"label": "CLASS"}, "_type": "List"}}, [{"label": 0}],
         "meta.0.label"),
        # An older Sequence of objects is kept as an object of lists.
        ({"meta": {"feature": {"label": "CLASS"}, "_type": "Sequence"}}, {"label": [0]},
         "meta.label.0"),
    ],
)  # fmt: skip
def test_a_class_label_inside_others(tmp_path, feature, value, path):
    label = {"names": ["unsafe", "safe"], "_type": "ClassLabel"}
    feature = json.loads(json.dumps(feature).replace('"CLASS"', json.dumps(label)))
    file = parquet(tmp_path / "a.parquet", {"prompt": ["<a>"], "meta": [value]}, feature)
    (row,) = load(Source(source=file, fields={"text": "prompt", "harmful": path}))
    assert row.harmful is True


def test_odd_metadata_of_parquet_is_passed_over(tmp_path):
    for number, features in enumerate([3, {"harmful": 3}, {"harmful": {"_type": "ClassLabel"}}]):
        path = parquet(tmp_path / f"{number}.parquet", {"prompt": ["<a>"]}, features)
        assert texts(load(path)) == ["<a>"]


# Conversations


USER, BOT = {"role": "user", "content": "<a>"}, {"role": "assistant", "content": "<b>"}
SYSTEM = {"role": "system", "content": "<be terse>"}
HUMAN, GPT = {"from": "human", "value": "<a>"}, {"from": "gpt", "value": "<b>"}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"messages": [USER, BOT]}, ("<a>", "<b>", None)),
        ({"messages": [USER]}, ("<a>", None, None)),
        ({"conversations": [HUMAN, GPT], "id": "x"}, ("<a>", "<b>", None)),
        ({"text": "<|user|><a><|bot|><b>", "messages": [USER, BOT]}, ("<a>", "<b>", None)),
        ({"prompt": [USER], "completion": [BOT]}, ("<a>", "<b>", None)),
        ({"prompt": [USER], "chosen": [BOT], "rejected": [BOT]}, ("<a>", "<b>", "<b>")),
        ({"prompt": "<a>", "chosen": [USER, BOT], "rejected": [USER, BOT]}, ("<a>", "<b>", "<b>")),
        ({"chosen": [USER, BOT], "rejected": [USER, BOT]}, ("<a>", "<b>", "<b>")),
        ({"prompt": USER}, ("<a>", None, None)),
        ({"prompt": {"messages": [USER, BOT]}}, ("<a>", "<b>", None)),
        ({"messages": {"role": ["user", "assistant"], "content": ["<a>", "<b>"]}},
         ("<a>", "<b>", None)),
        ({"messages": [USER | {"content": [{"type": "text", "text": "<a>"}]}, BOT]},
         ("<a>", "<b>", None)),
        # No conversation: a list in a text stays what it is.
        ({"prompt": '[1, 2] or {"role": "user"}: which is longer?'}, None),
        ({"prompt": '[{"role": "user", "content": "x"}] What is wrong with this JSON?'}, None),
        ({"prompt": '{"from": "2020-01-01", "value": 3}'}, None),
        ({"prompt": "[Role: system administrator] <a>"}, None),
    ],
)  # fmt: skip
def test_conversations_are_read_by_role(tmp_path, record, expected):
    expected = expected or (record["prompt"], None, None)
    assert load(write(tmp_path, "a.json", [record]))[0][:3] == expected
    for write_cell in (json.dumps, repr):
        cells = [v if isinstance(v, str) else write_cell(v) for v in record.values()]
        quoted = ('"' + cell.replace('"', '""') + '"' for cell in cells)
        path = write(tmp_path, "a.csv", ",".join(record) + "\n" + ",".join(quoted) + "\n")
        assert load(path)[0][:3] == expected


def test_in_a_file_of_answers_the_assistant_gives_the_response(tmp_path):
    path = write(tmp_path, "a.json", [{"messages": [USER, BOT], "harmful": False}])
    (row,) = load_labels(path)
    assert (row.text, row.answer, row.response, row.harmful) == ("<a>", None, "<b>", False)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([USER, SYSTEM, BOT], "the last one before the reply, has the role system; it must be"),
        ([USER, BOT, SYSTEM], "the last turn, or"),
        ([USER, BOT, BOT], "has the role assistant; it must be user or tool"),
        ([BOT], "a conversation without a user turn"),
        ([SYSTEM, BOT], "a conversation without a user turn"),
        ([SYSTEM], "a conversation without a user turn"),
        ([USER, BOT | {"role": "critic"}], 'message 1 has the unknown role "critic"'),
        ([USER, {"role": "assistant"}], "message 1 has no role or no content"),
        ([USER | {"content": " "}, BOT], "message 0 (user) is empty"),
        ([USER, BOT | {"content": ""}, USER], "message 1 (assistant) is empty"),
        ([USER, BOT | {"content": None}, USER], "message 1 (assistant) is empty"),
        ([USER | {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
         'message 0 has content of the type "image_url"; only text can be read'),
        ([USER | {"content": [{"type": "input_audio", "input_audio": {}}]}], '"input_audio"'),
        ([USER | {"content": [{"data": "x"}]}], "message 0 has content without text"),
        ([USER, BOT | {"tool_calls": [{"function": {"arguments": "{}"}}]}, USER],
         "message 1 calls a tool, but not as JSON with a name"),
        ([USER, {"role": "function_call", "content": "call it"}, USER], "message 1 calls a tool"),
        ([USER | {"content": "a\0b"}, BOT, USER], "message 0 has a NUL character"),
        ([USER, BOT | {"tool_calls": [{"name": "f", "arguments": "\0"}]}, USER],
         "message 1 has a NUL character"),
        ([USER, BOT | {"tool_calls": [{"name": "f", "arguments": '{"a": "\\ud800"}'}]}, USER],
         "message 1 has half a character in a call"),
        ([[USER, BOT], [USER, BOT]], "a list of conversations"),
        ({"role": ["user", "assistant"], "content": ["<a>"]}, "differ in length"),
    ],
)  # fmt: skip
def test_conversations_that_cannot_be_read(tmp_path, messages, said):
    for held in (messages, json.dumps(messages), repr(messages)):
        path = write(tmp_path, "a.json", [{"prompt": "<x>"}, {"prompt": held}])
        message = refused(path)
        assert "item 2: text (prompt): " in message and said in message, held


@pytest.mark.parametrize(
    "cell",
    [
        "[{'role': 'user', 'content': '<a>'}\n {'role': 'assistant', 'content': '<b>'}]",  # NumPy's
        "array([{'content': '<a>', 'role': 'user'}], dtype=object)",
        "[{role=user, content=<a>}]",  # Java's
        '[{"role": "user", "content": "<a',  # cut
        '[{\\"role\\": \\"user\\", \\"content\\": \\"<a>\\"}]',
        '[{"role": "user", "content": "\\ud800"}]',
    ],
)
def test_messages_as_text_that_cannot_be_read_are_no_prompt(tmp_path, cell):
    path = write(tmp_path, "a.json", [{"prompt": cell}])
    assert "item 1: text (prompt): a list of messages written as text, which" in refused(path)


def test_what_a_conversation_has_besides_is_counted(tmp_path, caplog):
    def left_out(*rows, **more):
        caplog.clear()
        load(Source(source=write(tmp_path, "a.json", list(rows)), **more))
        return [r.message.split("left out ")[1] for r in caplog.records if "left out" in r.message]

    assert left_out({"messages": [SYSTEM, USER, BOT]}, {"messages": [USER, BOT]}) == []
    chat = {"messages": [USER, BOT], "system": "<be terse>", "tools": [{"name": "f"}]}
    assert left_out(chat) == [
        'the column "tools" in 1 of 1 rows: definitions of tools are not supported'
    ]
    fields = {"text": "messages", "answer": "messages"}
    assert 'the column "system" in 1 of 1 rows: no field takes it' in left_out(chat, fields=fields)
    none = {"messages": [USER], "tools": None, "system": " "}
    assert left_out(chat | {"tools": "[]"}, none, none | {"tools": float("nan")}) == []
    assert load(write(tmp_path, "b.json", [none]))[0].text == "<a>"
    (line,) = left_out({"messages": [USER, BOT]}, {"messages": [USER]}, fields={"text": "messages"})
    assert line == "the assistant's last turn in 1 of 2 rows: no field takes it"
    assert len(left_out({"prompt": [USER, BOT], "answer": "<x>"})) == 1
    (line,) = left_out({"messages": [USER, BOT | {"reasoning_content": "<hm>"}]})
    assert "the assistant's thoughts in 1 of 1" in line
    (line,) = left_out({"messages": [USER, BOT | {"tool_calls": [{"name": "f"}]}]})
    assert "the calls of tools in the last turn in 1 of 1 rows: an answer is text" in line
    (line,) = left_out({"messages": [USER | {"name": "ann"}, BOT]})
    assert "the names of speakers in 1 of 1" in line


def test_a_place_in_a_conversation_means_the_turn_of_the_right_role(tmp_path, caplog):
    chats = [
        [HUMAN, GPT],
        [{"from": "system", "value": "<be terse>"}, HUMAN | {"value": "<c>"}, GPT],
    ]
    path = write(tmp_path, "a.json", [{"conversations": chat} for chat in chats])
    fields = {"text": "conversations.0.value", "answer": "conversations.1.value"}
    loaded = load(Source(source=path, fields=fields))
    assert [row[:2] for row in loaded] == [("<a>", "<b>"), ("<c>", "<b>")]
    assert "left out the system turn in 1 of 2 rows" in caplog.text
    message = refused(path, fields={"text": "conversations.1.value"})
    assert "item 1: text (conversations.1.value): message 1 has the role assistant, not" in message
    message = refused(
        path, fields={"text": "conversations.0.value", "answer": "conversations.0.value"}
    )
    assert "answer (conversations.0.value): message 0 has the role user, not assistant" in message
    # A later turn can be chosen, and what goes before it is counted.
    long = [USER, BOT, USER | {"content": "<c>"}, BOT | {"content": "<d>"}]
    path = write(tmp_path, "b.json", [{"prompt": "<c>", "chosen": long}])
    (row,) = load(Source(source=path, fields={"text": "prompt", "answer": "chosen.-1.content"}))
    assert row[:2] == ("<c>", "<d>")
    assert "b.json: left out earlier turns in 1 of 1 rows" in caplog.text
    message = refused(path, fields={"text": "prompt", "answer": "chosen"})
    assert "answer (chosen): the turns before the last are not those of text (prompt)" in message
    # In a CSV copy, too; and lists without roles have no roles to check.
    copy = "conversations\n" + '"' + json.dumps(chats[0]).replace('"', '""') + '"\n'
    path = write(tmp_path, "c.csv", copy)
    assert load(Source(source=path, fields=fields))[0][:2] == ("<a>", "<b>")
    path = write(tmp_path, "d.json", [{"turns": ["<a>", "<b>"]}])
    assert texts(load(Source(source=path, fields={"text": "turns.1"}))) == ["<b>"]


# What a recipe can say


def test_a_string_is_short_for_a_source():
    assert Source.model_validate("builtin:redteam") == Source(source="builtin:redteam")


def test_every_field_is_described():
    assert all(field.description for field in Source.model_fields.values())


def test_all_our_fields(tmp_path):
    record = {
        "id": 7,
        "ask": "<a>",
        "with": "<input>",
        "told": "<be terse>",
        "before": [["<c>", "<d>"]],
        "turns": [{"said": "<response>"}],
        "good": "<answer>",
        "is_safe": True,
        "said_no": "yes",
        "of": "refusal",
        "p_safe": "0.25",
        "p_no": 1,
        "kinds": {"theft": True, "fraud": False, "arson": True},
        "lang": "zh",
        "a.b": "<origin>",
    }
    fields = {
        "text": "ask",
        "input": "with",
        "system": "told",
        "history": "before",
        "answer": "good",
        "response": "turns.-1.said",
        "harmful": "not is_safe",
        "refused": "said_no",
        "kind": "of",
        "p_harmful": "not p_safe",
        "p_refused": "p_no",
        "category": "kinds",
        "language": "lang",
        "source": "a.b",
        "id": "id",
    }
    assert set(fields) == set(USUAL)
    (row,) = load(Source(source=write(tmp_path, "a.json", [record]), fields=fields))
    assert transcript(row.text) == (
        "System: <be terse>\nUser: <c>\nAssistant: <d>\nUser: <a>\n  \n  <input>"
    )
    assert row == Row(
        text=row.text,
        answer="<answer>",
        response="<response>",
        harmful=False,
        refused=True,
        category="theft, arson",
        language="zh",
        id="7",
        source="<origin>",
        p_harmful=0.75,
        p_refused=1.0,
        kind="refusal",
    )


def test_extract(tmp_path):
    chosen = "\n\nHuman: <a>\n\nAssistant: <good>"
    record = {"chosen": chosen, "rejected": chosen.replace("good", "bad")}
    last = r"(?s).*\n\nAssistant: (.*)"
    source = Source(
        source=write(tmp_path, "a.jsonl", record),
        fields={"text": "chosen", "answer": "chosen", "response": "rejected"},
        extract={"text": r"(?s)\n\nHuman: (.*?)\n\nAssistant:", "answer": last, "response": last},
    )
    assert load(source)[0][:3] == ("<a>", "<good>", "<bad>")
    source = source.model_copy(update={"extract": {"text": "(z)"}})
    assert "line 1: extract does not match the text" in refused(source)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        (False, False),
        (1, True),
        (0, False),
        (1.0, True),
        ("TRUE", True),
        (" no ", False),
        ("1", True),
        ("harmful", True),
        ("Unsafe", True),
        ("unharmful", False),
        ("safe", False),
        ("1.0", True),
        ("0.00", False),
        ("WAHR", True),
        ("Faux", False),
        (None, None),
        ("", None),
        (" ", None),
        (float("nan"), None),
        ("NaN", None),
        ("NA", None),
        ("null", None),
        ("None", None),
    ],
)
def test_labels_in_words(tmp_path, value, expected):
    path = write(tmp_path, "a.json", [{"text": "<a>", "harmful": value}])
    assert load(path)[0].harmful is expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, False), ("False", True), ("1.0", False), (0.0, True), ("NA", None), (None, None)],
)
def test_labels_of_a_field_that_says_the_opposite(tmp_path, value, expected):
    path = write(tmp_path, "a.json", [{"text": "<a>", "is_safe": value}])
    fields = {"text": "text", "harmful": "not is_safe"}
    assert load(Source(source=path, fields=fields))[0].harmful is expected


def test_a_word_that_says_it_by_itself_is_not_turned_around(tmp_path):
    """In a field `is_safe`, "safe" does not mean harmful."""
    path = write(tmp_path, "a.json", [{"text": "<a>", "is_safe": "safe"}])
    message = refused(path, fields={"text": "text", "harmful": "not is_safe"})
    assert 'item 1: harmful is "safe", which "not" cannot reverse' in message
    (row,) = load(Source(source=path, fields={"text": "text", "harmful": "is_safe"}))
    assert row.harmful is False


@pytest.mark.parametrize("value", ["maybe", 2, -1, 0.5, [True], {"a": 1}, "10", float("inf")])
def test_labels_that_say_nothing(tmp_path, value):
    path = write(tmp_path, "a.json", [{"text": "<a>", "harmful": value}])
    assert "item 1: harmful is" in refused(path)


def test_where_split_unique_shuffle_skip_limit(tmp_path):
    lines = [
        {"text": f"<{n}>", "label": "safe" if n % 2 else "unsafe", "split": "train", "n": n}
        for n in range(20)
    ]
    path = write(tmp_path, "a.json", [*lines, {"text": "<0>", "split": "test", "n": True}])
    assert len(load(Source(source=path, where={"label": "SAFE"}))) == 10
    assert texts(load(Source(source=path, where={"n": [3, 5], "label": "safe"}))) == ["<3>", "<5>"]
    assert texts(load(Source(source=path, split="test"))) == ["<0>"]
    assert texts(load(Source(source=path, limit=2))) == ["<0>", "<1>"]
    assert texts(load(Source(source=path, skip=2, limit=2))) == ["<2>", "<3>"]
    assert texts(load(Source(source=path, skip=18, where={"split": "train"}))) == ["<18>", "<19>"]
    assert "skip: 20 leaves none of the 20 rows" in refused(path, skip=20, split="train")
    shuffled = texts(load(Source(source=path, shuffle=1, where={"split": "train"})))
    assert shuffled != [f"<{n}>" for n in range(20)] and len(shuffled) == 20
    # The order is part of what makes a run repeatable: it may not change with a version.
    assert shuffled[:4] == ["<11>", "<5>", "<17>", "<19>"]
    assert texts(load(Source(source=path, shuffle=1, limit=3, split="train"))) == shuffled[:3]
    rest = Source(source=path, shuffle=1, skip=3, limit=5, split="train")
    assert texts(load(rest)) == shuffled[3:8]
    assert texts(load(Source(source=path, skip=19))) == ["<19>"]
    pairs = write(tmp_path, "b.json", [{"text": "<a>", "response": r} for r in "xyz"])
    assert len(load(pairs)) == 3
    assert [row.response for row in load(Source(source=pairs, unique=True))] == ["x"]


def test_category_and_language_of_all_rows(tmp_path):
    path = write(tmp_path, "a.json", [{"text": "<a>", "category": "x", "language": "en"}])
    (row,) = load(Source(source=path, category="y", language="zh"))
    assert (row.category, row.language) == ("y", "zh")


def test_ids(tmp_path):
    path = write(tmp_path, "a.json", [{"text": "<a>", "id": 1}, {"text": "<b>", "id": 2}])
    assert [row.id for row in load(path)] == ["1", "2"]
    path = write(tmp_path, "a.json", [{"text": "<a>", "id": 1}, {"text": "<b>", "id": 1}])
    made = {row.text: row.id for row in load(path)}
    assert all(re.fullmatch("[0-9a-f]{16}", one) for one in made.values())
    # Made of the content alone: neither the order, nor the folder, nor other rows matter.
    (tmp_path / "other").mkdir()
    path = write(tmp_path / "other", "a.json", [{"text": t} for t in ("<c>", "<b>", "<a>")])
    assert {row.text: row.id for row in load(path)}.items() >= made.items()


def test_rows_that_repeat_are_dropped_and_said(tmp_path, caplog):
    rows = [{"text": "<a>", "harmful": 1}, {"text": "<a>", "harmful": 0}, {"text": "<b>"}]
    with caplog.at_level(logging.WARNING):
        loaded = load(write(tmp_path, "a.json", rows))
    assert [(row.text, row.harmful) for row in loaded] == [("<a>", True), ("<b>", None)]
    assert "dropped 1 of 3 rows" in caplog.text
    assert "1 of them with another label" in caplog.text


def test_rows_without_what_they_are_for_are_counted(tmp_path, caplog):
    rows = [{"prompt": f"<{n}>", "output": answer} for n, answer in enumerate(ANSWERS_OR_NOT)]
    path = write(tmp_path, "a.json", rows)
    found = load_having(Source(source=path), "a test", "answer")
    assert [row.answer for row in found] == ["<x>", "N/A"]
    assert f"{path}: left out 6 of 8 rows: no answer" in caplog.text
    empty = write(tmp_path, "b.json", rows[2:4])
    for needed, said in [
        ("answer", 'none of 2 rows has answer (field "output"), which a test needs'),
        ("response", 'has no field "response", which a test needs; map it with fields: {response'),
        (("response", "answer"), 'none of 2 rows has response or answer (field "output")'),
    ]:
        with pytest.raises(InputError, match=re.escape(said)):
            load_having(Source(source=empty), "a test", needed)


ANSWERS_OR_NOT = ["<x>", "N/A", None, "", " \n", "NaN", "nan", float("nan")]


def test_an_instruction_that_comes_again_is_counted(tmp_path, caplog):
    first = write(tmp_path, "a.json", [{"text": "<a>"}, {"text": "<b>"}])
    other = write(tmp_path, "b.json", [{"text": "<a>", "answer": "<x>"}, {"text": "<c>"}])
    assert len(instructions([Source(source=first), Source(source=other)])) == 3
    assert f"{other}: left out 1 of 2 rows that repeat an earlier instruction" in caplog.text
    # Where answers are needed, a row without one takes no other's place.
    answered = instructions([Source(source=other)], answered_for="a test")
    assert [x.answer for x in answered] == ["<x>"]


def test_paths_start_from_base_and_home(tmp_path, monkeypatch):
    write(tmp_path, "a.json", ["<a>"])
    assert texts(load("a.json", base=tmp_path)) == ["<a>"]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert texts(load("~/a.json")) == ["<a>"]


def test_builtin_sets(tmp_path, monkeypatch):
    path = Path(write(tmp_path, "x.jsonl", {"id": "x1", "text": "<a>", "split": "test"}))
    monkeypatch.setattr(sources, "builtin_sets", lambda: {"redteam": path, "safe": path})
    (row,) = load("builtin:redteam")
    assert (row.id, row.text, row.source) == ("x1", "<a>", "builtin:redteam")
    assert texts(load(Source(source="builtin:safe", split="test"))) == ["<a>"]
    assert 'It is one of: "test"' in refused("builtin:safe", split="train")
    assert refused("builtin:redtem") == (
        'unknown builtin "redtem". Did you mean "redteam"? Available: redteam, safe'
    )


def test_a_builtin_set_that_grew_can_be_read_as_it_was_at_first():
    """Its rows keep their order, so that a seed shuffles them as before."""
    counts = {("redteam", "test"): 84, ("hijacking", "test"): 40, ("safe", None): 120}
    for (name, split), count in counts.items():
        now = load(Source(source=f"builtin:{name}", split=split))
        rows = load(Source(source=f"builtin:{name}", split=split, revision="first"))
        assert len(rows) == count < len(now)
        assert rows == [row for row in now if int(row.id[-3:]) <= 12]
    assert "has no revision" in refused("builtin:redteam", revision="second")
    assert "has no revision" in refused("builtin:helpful", revision="first")


def test_the_builtin_sets_that_come_with_the_project():
    for name in sources.builtin_sets():
        rows = load(f"builtin:{name}")
        assert rows and all(row.id and row.text and row.language for row in rows), name


# What can be wrong


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", "", "a.jsonl is empty"),
        ("a.json", " \n\t", "is empty"),
        ("a.json", "[]", "has no rows"),
        ("a.json", "{}", "has no rows"),
        ("a.csv", "prompt,output\n", "has no rows"),
        ("a.txt", "x", "must end in .json, .jsonl, .csv, .parquet"),
        ("a.jsonl", '{"text": "<a>"}\n{"text": "<b', "line 2: not JSON"),
        ("a.json", '[\n{"text": "<a>"},\n{"text" "<b>"}]', "line 3: not JSON"),
        ("a.jsonl", '{"text": "<a>"}\n[1]\n', "line 2: expected an object or a string"),
        ("a.jsonl", b'{"text": "<a>"}\n\n{"text": "\xff"}', "line 3: not UTF-8"),
        ("a.csv", b"\xef\xbb\xbfprompt\n<a>\n\xe9", "line 3: not UTF-8"),
        ("a.csv", "prompt\n<a>".encode("utf-16"), "is in UTF-16"),
        ("a.csv", b"prompt\n<a>\n\0", "line 3: a NUL byte"),
        ("a.json", r'[{"text": "<a\u0000>"}]', "item 1: a NUL character in text"),
        ("a.json", '["<a>",\n"\\ud800"]', r"line 2: \ud800 is half a character"),
        ("a.jsonl", '"<a>"\n"\\udC00 \\ud83d\\ude00"', r"line 2: \udC00 is half a character"),
        ("a.json", "[" * 100_000, "nested too deep"),
        ("a.json", '["<a>", ' + "[" * 900 + "]" * 900 + "]", ""),
        ("a.json", "3", "expected a list of objects, found"),
        ("a.json", f"[{'9' * 5000}]", "line 1: not JSON"),
        ("a.json", '{"a": 1}', "expected a list of objects or of strings"),
        ("a.json", '{"x": {"one": 3}}', 'expected a list of questions in "x / one"'),
        ("a.json", '{"prompts": ["<a>", "<b>"], "tags": ["x"]}', "must have the same length"),
        ("a.json", '["<a>", 3]', "item 2: expected an object or a string"),
        ("a.json", '[{"prompt": "<a>"}, {"prompt": 3}]', "item 2: text must be a string"),
        ("a.json", '[{"prompt": ["<a>"]}]', 'such as "prompt.0"'),
        ("a.json", '[{"prompt": "<a>"}, {"prompt": " "}]', "item 2: the text"),
        ("a.json", '[{"prompt": "<a>"}, {"id": 3}]', "item 2: the text"),
        (
            "a.json",
            '[{"chosen": "<a>"}]',
            "text; set fields: {text: NAME}, or --fields text=NAME",
        ),
        ("a.csv", 'prompt\n"<a>\n', "line 2: not CSV"),
        ("a.csv", "prompt,output\n<a>,x\n<b>\n", "line 3: 1 columns, but 2 are expected"),
        ("a.csv", "prompt,prompt\n<a>,x\n", 'line 1: two columns have the name "prompt"'),
        ("a.jsonl.gz", gzip.compress(b'"<a>"', mtime=0)[:-9], "is not a complete gzip file"),
        ("a.jsonl.gz", b'"<a>"', "is not a complete gzip file"),
    ],
)
def test_broken_files(tmp_path, name, content, said):
    path = write(tmp_path, name, content)
    message = refused(path)
    assert path in message
    assert said in message


def test_a_pair_of_surrogates_and_an_escaped_backslash_are_no_halves(tmp_path):
    path = write(tmp_path, "a.json", r'["\ud83d\ude00", "\\ud800"]')
    assert texts(load(path)) == ["😀", r"\ud800"]


def test_wrong_names(tmp_path):
    path = write(tmp_path, "prompts.csv", "prompt,label\n<a>,safe\n<b>,unsafe\n")
    near = refused(str(tmp_path / "promts.csv"))
    assert 'Did you mean "prompts.csv"?' in near and "file not found" in near
    assert "does not exist" in refused(str(tmp_path / "nowhere" / "a.csv"))
    message = refused(path, fields={"text": "promt"})
    assert 'no field "promt"' in message and 'Did you mean "prompt"?' in message
    assert 'It has "prompt", "label"' in message
    assert 'Did you mean "label"?' in refused(path, where={"lable": "safe"})
    message = refused(path, where={"label": "sfae"})
    assert 'Did you mean "safe"?' in message and 'It is one of: "safe", "unsafe"' in message
    assert 'no field "split" (split: test needs it)' in refused(path, split="test")
    assert 'Did you mean "xstest"?' in refused("preset:xtest")
    assert 'Did you mean "preset:xstest"?' in refused("xstest")
    assert "hub:OWNER/NAME" in refused("hub:xstest")
    assert "file not found: a b" in refused("a\0b") or "is not a path" in refused("a\0b")
    assert refused("x" * 5000 + ".json")


@pytest.mark.parametrize(
    ("said", "about"),
    [
        ({"fields": {"txt": "a"}}, 'unknown field "txt". Did you mean "text"?'),
        ({"extract": {"text": "("}}, "not a regular expression"),
        ({"extract": {"text": "a"}}, "needs a group"),
        ({"path": "a.json"}, "path is only for"),
        ({"limit": 0}, "greater than 0"),
        ({"skip": -1}, "greater than or equal to 0"),
        ({"sauce": 1}, "Extra inputs"),
    ],
)
def test_wrong_sources(said, about):
    with pytest.raises(ValidationError, match=re.escape(about)):
        Source(source="a.json", **said)


def test_a_folder_without_permission(tmp_path):
    path = write(tmp_path, "a.json", ["<a>"])
    os.chmod(path, 0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert "cannot be read" in refused(path)


ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["user", "system", "gpt", '[{"role": "user", "content": "x"}]', "[{'from"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["text", "prompt", "prompts", "response", "harmful", "id", "data", "x"])
            | st.sampled_from(["messages", "chosen", "role", "content", "from", "value", "train"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
QUICK = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def rows_or_input_error(folder, name, data, **more):
    path = folder / name
    path.write_bytes(data)
    try:
        rows = load(Source(source=str(path), **more))
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert rows and len({row.id for row in rows}) == len(rows)
    for row in rows:
        assert isinstance(row.text, str) and row.text.strip()
        json.dumps(row, ensure_ascii=False).encode()


@QUICK
@given(value=ANY_JSON, name=st.sampled_from(["a.json", "a.jsonl"]))
def test_any_json(tmp_path, value, name):
    rows_or_input_error(tmp_path, name, json.dumps(value).encode())


@QUICK
@given(value=ANY_JSON, path=st.sampled_from(["text.0", "x.y.-1", "not x", "", ".", "prompt"]))
def test_any_json_with_a_mapping(tmp_path, value, path):
    fields = {"text": path, "harmful": path, "category": path}
    rows_or_input_error(tmp_path, "a.json", json.dumps([value]).encode(), fields=fields)


@QUICK
@given(
    data=st.binary(max_size=80) | st.text(alphabet='{}[]":,\\u0d8\n\r\0 a"', max_size=60),
    name=st.sampled_from(["a.json", "a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz"]),
    header=st.booleans(),
)
def test_any_bytes(tmp_path, data, name, header):
    data = data if isinstance(data, bytes) else data.encode()
    rows_or_input_error(tmp_path, name, data, header=header)


@QUICK
@given(rows=st.lists(st.lists(st.text(max_size=4), min_size=1, max_size=3), max_size=4))
def test_any_csv(tmp_path, rows):
    quoted = "\n".join(",".join('"' + c.replace('"', '""') + '"' for c in row) for row in rows)
    rows_or_input_error(tmp_path, "a.csv", ("text,response\n" + quoted).encode())


# Human labels


def test_label_files(tmp_path):
    data = "instruction,response,harmful,refused,category\n<a>,<b>,true,,x\n<c>,,no,yes,y\n"
    first, second = load_labels(write(tmp_path, "labels.csv", data))
    assert first == Row("<a>", None, "<b>", True, "x", None, first.id, "labels.csv", None)
    null = write(tmp_path, "null.jsonl", {"instruction": "<a>", "response": None, "harmful": 0})
    assert load_labels(null, blank=True)[0].response == ""
    # A model may have said nothing, and that can be labeled.
    assert (second.response, second.harmful, second.refused) == ("", False, True)
    for name, labels, said in [
        ("a.jsonl", {"instruction": "<a>", "response": "<b>"}, "no known field for harmful;"),
        ("a.jsonl", {"instruction": "<a>", "harmful": 1}, "no known field for response;"),
        ("a.json", [{"instruction": "<a>", "response": None, "harmful": 1}], "response (field"),
        ("a.json", [{"instruction": "<a>", "response": "", "harmful": None}], "harmful (field"),
    ]:
        with pytest.raises(InputError, match=re.escape(said)):
            load_labels(write(tmp_path, name, labels))


# Public sets


def test_presets_say_what_they_are():
    for name, preset in PRESETS.items():
        assert preset.license and preset.note and preset.homepage.startswith("https://"), name
        Source(source=preset.source, split=preset.split, fields=preset.fields)


def test_a_copy_of_a_preset_on_disk(tmp_path):
    data = "id,prompt,type,label\n1,<a>,x,safe\n2,<b>,y,unsafe\n"
    write(tmp_path, "copy.csv", data)
    source = Source(source="preset:xstest", path="copy.csv", where={"label": "unsafe"})
    (row,) = load(source, base=tmp_path)
    assert row == Row("<b>", None, None, True, "y", "en", "2", "preset:xstest", None)
    # Columns that differ: say how they are called, and all of what the preset knows steps back.
    other = write(tmp_path, "other.json", [{"q": "<a>", "a": "<b>"}])
    source = Source(source="preset:lima", path=other)
    assert "lacks 'conversations', which this preset reads; it has q, a" in refused(source)
    source = source.model_copy(update={"fields": {"text": "q", "answer": "a"}})
    assert load(source)[0][:2] == ("<a>", "<b>")


def test_presets_read_what_their_documentation_shows(tmp_path):
    kinds = {"theft": True, "fraud": False}
    for name, content, expected in [
        (
            "beavertails.json",
            [{"prompt": "<a>", "response": "<b>", "category": kinds, "is_safe": False}],
            ("<a>", None, "<b>", True, "theft", "en"),
        ),
        (
            "safety-prompts.json",
            {"Insult": [{"prompt": "<a>", "response": "<b>", "type": "Insult"}]},
            ("<a>", "<b>", None, None, "Insult", "zh"),
        ),
        (
            "lima.jsonl",
            {"conversations": ["<a>", "<b>"], "source": "wikihow"},
            ("<a>", "<b>", None, None, "wikihow", "en"),
        ),
        (
            "hh-rlhf.jsonl",
            {
                "chosen": "\n\nHuman: <a>\n\nAssistant: <b>",
                "rejected": "\n\nHuman: <a>\n\nAssistant: <c>",
            },
            ("<a>", "<b>", "<c>", None, None, "en"),
        ),
    ]:
        path = write(tmp_path, name, content)
        (row,) = load(Source(source=f"preset:{Path(name).stem}", path=path))
        assert row[:6] == expected


def test_lima_has_conversations(tmp_path):
    turns = ["<a>", "<b>", "<c>", "<d>"]
    held = write(tmp_path, "a.jsonl", {"conversations": turns, "source": "multi_turn"})
    copy = write(tmp_path, "a.csv", f'conversations,source\n"{turns}",multi_turn\n')
    for path in (held, copy):
        (row,) = load(Source(source="preset:lima", path=path))
        assert transcript(row.text) == "User: <a>\nAssistant: <b>\nUser: <c>"
        assert (row.answer, row.category) == ("<d>", "multi_turn")


def test_copies_of_presets_in_csv(tmp_path):
    """Labels are words there, and a category is an object written as text."""
    header = "prompt,response_0,response_1,is_response_0_safe,is_response_1_safe,"
    header += "safer_response_id,response_0_harm_category,response_1_harm_category\n"
    kinds = "\"{'theft': True, 'fraud': False}\""
    lines = [
        f"<a>,<x>,<y>,True,False,0,,{kinds}",
        f"<b>,<x>,<y>,FALSE,TRUE,1.0,{kinds},",
        "<c>,<x>,<y>,,,0,,",
    ]
    path = write(tmp_path, "a.csv", header + "\n".join(lines))
    rows = load(Source(source="preset:pku-saferlhf", path=path))
    assert [(row.answer, row.response, row.harmful, row.category) for row in rows] == [
        ("<x>", "<y>", True, "theft"),
        ("<y>", "<x>", True, "theft"),
        ("<x>", "<y>", None, None),
    ]
    kept = Source(source="preset:pku-saferlhf", path=str(tmp_path / "a.csv"),
                  where={"less_safe_is_harmful": True})  # fmt: skip
    assert texts(load(kept)) == ["<a>", "<b>"]
    for cells, said in [
        ("<a>,<x>,<y>,True,False,2,,", 'line 2: safer_response_id is "2"; it must be'),
        ("<a>,<x>,<y>,True,False,,,", "line 2: safer_response_id is missing"),
        ("<a>,<x>,<y>,True,perhaps,0,,", 'line 2: is_response_1_safe is "perhaps"'),
    ]:
        path = write(tmp_path, "b.csv", f"{header}{cells}\n")
        assert said in refused("preset:pku-saferlhf", path=path)
    labels = "question,types_of_harm,id,M_response,M_harmful\n<a>,x,1,<r>,True\n<b>,x,2,<r>,0\n"
    path = write(tmp_path, "c.csv", labels)
    rows = load(Source(source="preset:do-not-answer-labels", path=path))
    assert [row.harmful for row in rows] == [True, False]
    path = write(tmp_path, "d.csv", "prompt,response,category,is_safe\n<a>,<r>,x,False\n")
    assert load(Source(source="preset:beavertails", path=path))[0].harmful is True


def test_pku_saferlhf_pairs(tmp_path):
    record = {
        "prompt": "<a>",
        "response_0": "<worse>",
        "response_1": "<better>",
        "is_response_0_safe": False,
        "is_response_1_safe": True,
        "safer_response_id": 1,
        "response_0_harm_category": {"theft": True, "fraud": False},
    }
    path = write(tmp_path, "a.jsonl", record)
    (row,) = load(Source(source="preset:pku-saferlhf", path=path))
    assert (row.answer, row.response, row.harmful) == ("<better>", "<worse>", True)
    assert row.category == "theft"
    del record["response_1"]
    path = write(tmp_path, "a.jsonl", record)
    assert "lacks 'response_1'" in refused(Source(source="preset:pku-saferlhf", path=path))


def test_hub_files_and_sets_from_a_hub(tmp_path):
    """The real client libraries against a small hub of our own, in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", HUB, str(tmp_path)],
        cwd=Path(__file__).resolve().parents[1],
        env=os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    said = json.loads(run.stdout.splitlines()[-1])
    assert said["preset:xstest"] == [["<a>", False, "1"], ["<b>", True, "2"]]
    # What pandas would take for none is a text.
    assert said["hub:a/na"] == [["NA", True, said["hub:a/na"][0][2]]]
    assert said["preset:alpaca-eval"] == [["<a>", None, said["preset:alpaca-eval"][0][2]]]
    assert "Unknown split \"tst\". Should be one of ['train']" in said["split"]
    assert "is gated: accept its terms at https://" in said["preset:lima"]
    assert "is not on the hub, or is private" in said["hub:a/missing"]
    assert "is not on the hub, or is private" in said["hub:a/missing/a.json"]
    assert "file not found" in said["hub:Paul/XSTest/missing.csv"]


HUB = r"""
import hashlib, http.server, json, os, sys, threading

FILES = {
    "Paul/XSTest": {"a.csv": b"id,prompt,type,label\n1,<a>,x,safe\n2,<b>,y,unsafe\n"},
    "a/na": {"a.csv": b"prompt,harmful\nNA,True\n"},
    "tatsu-lab/alpaca_eval": {
        "alpaca_eval.json": b'[{"instruction": "<a>", "output": "<b>", "dataset": "x"}]'
    },
}

class Hub(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def do_HEAD(self): self.do_GET()
    def do_GET(self):
        path = self.path.split("?")[0].removeprefix("/api").removeprefix("/datasets/").split("/")
        repo, rest = "/".join(path[:2]), path[2:]
        files = FILES.get(repo)
        if files is None:
            code = "GatedRepo" if repo == "GAIR/lima" else "RepoNotFound"
            return self.answer(403 if code == "GatedRepo" else 401, b"", code)
        if rest[:1] == ["resolve"]:
            data = files.get(rest[-1])
            if data is None:
                return self.answer(404, b"", "EntryNotFound")
            return self.answer(200, data)
        listed = [
            {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
            for n, d in files.items()
        ]
        info = {"id": repo, "sha": "a" * 40, "siblings": [{"rfilename": n} for n in files]}
        info |= {"private": False, "gated": False, "tags": [], "downloads": 0, "likes": 0}
        return self.answer(200, json.dumps(listed if rest[:1] == ["tree"] else info).encode())
    def answer(self, status, data, error=None):
        self.send_response(status)
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("ETag", '"' + hashlib.sha1(data).hexdigest() + '"')
        self.send_header("Content-Length", str(len(data)))
        if error:
            self.send_header("X-Error-Code", error)
            self.send_header("X-Error-Message", error)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
os.chdir(sys.argv[1])
from setbacks.data import Source, load
from setbacks.errors import InputError

def said(source):
    try:
        return [[row.text, row.harmful, row.id] for row in load(source)]
    except InputError as error:
        return str(error)

names = ["hub:a/na", "preset:xstest", "preset:alpaca-eval", "preset:lima", "hub:a/missing"]
names += ["hub:a/missing/a.json", "hub:Paul/XSTest/missing.csv"]
out = {name: said(name) for name in names}
out["split"] = said(Source(source="preset:xstest", split="tst"))
print(json.dumps(out))
"""


def test_a_folder_does_not_pass_for_a_set_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "Paul" / "XSTest").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "a folder Paul/XSTest exists here" in refused("preset:xstest")


def test_without_a_network(tmp_path):
    code = (
        "from setbacks.data import load\n"
        "from setbacks.errors import InputError\n"
        "for name in ('preset:xstest', 'preset:lima'):\n"
        "    try: load(name)\n"
        "    except InputError as error: print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[1],
        env=os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == 2
    assert all("the hub cannot be reached" in line and "path: FILE" in line for line in lines)


def test_a_folder_with_data_and_a_saved_dataset(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = datasets.Dataset.from_list([{"prompt": "<a>"}, {"prompt": "<b>"}])
    plain, saved, several = (tmp_path / name for name in ("plain", "saved", "several"))
    plain.mkdir()
    data.to_parquet(plain / "train-00000-of-00001.parquet")
    data.save_to_disk(saved)
    datasets.DatasetDict({"one": data, "two": data.select([1])}).save_to_disk(several)
    assert texts(load("plain", base=tmp_path)) == ["<a>", "<b>"]
    assert texts(load(str(saved))) == ["<a>", "<b>"]
    assert texts(load(Source(source=str(several), split="two"))) == ["<b>"]
    assert "to choose a split" in refused(str(several))
    assert 'Did you mean "two"?' in refused(str(several), split="tow")
    assert "It has none" in refused(str(saved), split="test")
    (tmp_path / "empty").mkdir()
    assert "cannot be read as a dataset" in refused(str(tmp_path / "empty"))


def test_a_saved_dataset_and_a_folder_with_a_card_keep_the_names_of_classes(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    label = datasets.ClassLabel(names=["unsafe", "safe"])
    features = datasets.Features({"prompt": datasets.Value("string"), "harmful": label})
    columns = {"prompt": ["<a>", "<b>"], "harmful": [0, 1]}
    data = datasets.Dataset.from_dict(columns, features=features)
    data.save_to_disk(tmp_path / "saved")
    card = tmp_path / "card"
    card.mkdir()
    (card / "train.csv").write_text("prompt,harmful\n<a>,0\n<b>,1\n")
    names = "{names: {'0': unsafe, '1': safe}}"
    (card / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - {name: prompt, dtype: string}\n"
        f"  - {{name: harmful, dtype: {{class_label: {names}}}}}\n---\n"
    )
    for folder in ("saved", "card"):
        assert [row.harmful for row in load(str(tmp_path / folder))] == [True, False], folder


def test_a_folder_of_csv_is_read_like_its_files(tmp_path, caplog):
    """`datasets` finds the files; its own reader would take "NA" for nothing, and 007 for 7."""
    folder = tmp_path / "plain"
    folder.mkdir()
    write(folder, "train.csv", "prompt;response;harmful;id\nNA;null;WAHR;007\n<b>;;NA;8\n")
    write(folder, "test.csv", "prompt\n<c>\n")
    write(folder, "more.csv", "prompt\n<d>\n")
    write(folder, "dataset_infos.json", {})
    rows = load(str(folder))
    assert [(row.text, row.response, row.harmful, row.id) for row in rows] == [
        ("NA", "null", True, "007"),
        ("<b>", "", None, "8"),
    ]
    assert "left out 1 of its files (more.csv)" in caplog.text
    assert texts(load(Source(source=str(folder), split="test"))) == ["<c>"]
    write(folder, "test.csv", "prompt,harmful\n<c>,x\n")
    assert 'plain, test.csv, line 2: harmful is "x"' in refused(str(folder), split="test")
    (folder / "test").mkdir()
    (folder / "test.csv").rename(folder / "test" / "a.csv")
    assert 'plain, test/a.csv, line 2: harmful is "x"' in refused(str(folder), split="test")


def test_the_old_name_of_the_package_still_works():
    assert setbacks.sources.load is load and setbacks.sources.Source is Source


def test_importing_is_light():
    heavy = "{'torch', 'datasets', 'pyarrow', 'pandas'}"
    code = f"import setbacks.data, sys; print({heavy} & set(sys.modules))"
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


BEAVERTAILS = dict(
    fields={"text": "input", "response": "input", "harmful": "output"},
    extract={
        "text": r"(?s)^Human user:\n(.*?)\n\nAI assistant:\n",
        "response": r"(?s)\n\nAI assistant:\n(.*)",
        "harmful": r"Response: (\w+)",
    },
)
HH = dict(
    fields={"text": "chosen", "answer": "chosen", "response": "rejected"},
    extract={
        "text": r"(?s)\n\nHuman: (.*)\n\nAssistant:",
        "answer": r"(?s).*\n\nAssistant:(.*)",
        "response": r"(?s).*\n\nAssistant:(.*)",
    },
)
PAIRS = {"text": "prompt", "answer": "response.0", "response": "response.1"}
ANSWERS = {"text": "question", "response": "answer", "harmful": "label"}
XSTEST = {"text": "prompt", "response": "completion", "refused": "final_label", "id": "id"}
# file, what a recipe says, how many rows are left without repeats, what every one of them has
COPIES = [
    ("safety-tuned-llamas/safety_only_data_Instructions.json", {}, 2483, {"answer"}),
    ("safety-tuned-llamas/I-MaliciousInstructions.json", {}, 100, {"category"}),
    ("safety-tuned-llamas/I-CoNa.json", {}, 178, set()),
    ("safety-tuned-llamas/I-PhysicalSafetyUnsafe.json", {}, 100, set()),
    ("safety-tuned-llamas/I-PhysicalSafetySafe.json", {}, 100, set()),
    ("safety-tuned-llamas/I-Alpaca.json", {}, 50, set()),
    ("pku-saferlhf/preference_pairs.json", dict(fields=PAIRS), 2402, {"answer", "response"}),
    ("pku-saferlhf/labelled_answers.csv", dict(fields=ANSWERS), 3099, {"response", "harmful"}),
    (
        "do-not-answer/do_not_answer_labelled_train.csv",
        dict(source="preset:do-not-answer"),
        470,
        {"category"},
    ),
    (
        "do-not-answer/do_not_answer_labelled_train.csv",
        dict(source="preset:do-not-answer-labels"),
        2820,
        {"response", "harmful", "category"},
    ),
    ("xstest/xstest_prompts.csv", dict(source="preset:xstest"), 450, {"harmful", "category"}),
    (
        "xstest/xstest_prompts.csv",
        dict(source="preset:xstest", where={"label": "safe"}),
        250,
        {"category"},
    ),
    ("xstest/xstest_v2_completions_gpt4.csv", dict(fields=XSTEST), 450, {"response", "refused"}),
    ("hh-rlhf/harmless-base-test.jsonl.gz", HH, 2312, {"response"}),
    ("hh-rlhf/harmless-base-test.jsonl.gz", dict(source="preset:hh-rlhf"), 2312, {"response"}),
    (
        "self-instruct/user_oriented_instructions.jsonl",
        dict(
            fields={
                "text": "instruction",
                "input": "instances.0.input",
                "answer": "instances.0.output",
                "id": "id",
            }
        ),
        252,
        {"answer"},
    ),
    ("lima/lima.json", {}, 1029, {"answer"}),
    ("benign/alpaca_instructions.json", {}, 6264, set()),
    ("catqa/catqa_en.json", {}, 550, {"category"}),
    ("catqa/catqa_zh.json", dict(language="zh"), 550, {"category", "language"}),
    ("beavertails/labelled_answers.json", BEAVERTAILS, 3021, {"response", "harmful"}),
    ("goal-hijacking/goal_hijacking_train.csv", dict(header=False), 100, set()),
    (
        "harmbench/harmbench_behaviors_text_val.csv",
        dict(fields={"text": "Behavior", "category": "SemanticCategory", "id": "BehaviorID"}),
        80,
        {"category"},
    ),
    (
        "jailbreakbench/jailbreakbench.csv",
        dict(fields={"text": "Goal", "category": "Category"}),
        100,
        {"category"},
    ),
    (
        "simple-safety-tests/SimpleSafetyTests - test cases.csv",
        dict(fields={"text": "prompts_final", "category": "harm_area", "id": "id"}),
        100,
        {"category"},
    ),
    ("oktest/OKTest.csv", {}, 300, set()),
    (
        "alpaca-eval/text_davinci_003_model_outputs.json",
        dict(source="preset:alpaca-eval"),
        805,
        {"category"},  # two of the answers are empty
    ),
    ("alpaca/alpaca_999.json", dict(source="preset:alpaca"), 999, {"answer"}),
    ("multijail/MultiJail.csv", dict(fields={"text": "zh"}, language="zh"), 315, {"language"}),
    (
        "mt-bench/mt_bench_question.jsonl",
        dict(fields={"text": "turns.0", "category": "category", "id": "question_id"}),
        80,
        {"category"},
    ),
]


@pytest.mark.shared_data
@pytest.mark.parametrize(("file", "said", "count", "has"), COPIES)
def test_public_data(file, said, count, has):
    if not SHARED.is_dir():
        pytest.skip(f"no public data in {SHARED}")
    path = str(SHARED / file)
    place = {"path": path} if "source" in said else {"source": path}
    rows = load(Source(**place, **said))
    # Some sets repeat themselves a little; what is lost is logged, and must stay little.
    assert count * 0.97 <= len(rows) <= count
    assert len({row.id for row in rows}) == len(rows)
    for field in has:
        share = sum(getattr(row, field) is not None for row in rows) / len(rows)
        assert share == 1, f"{field}: {share}"


@pytest.mark.shared_data
def test_labels_of_public_data_agree_with_what_they_say():
    """The share of harmful ones is as published: no mapping is upside down."""
    if not SHARED.is_dir():
        pytest.skip(f"no public data in {SHARED}")
    pku = SHARED / "pku-saferlhf" / "labelled_answers.csv"
    rows = load_labels(Source(source=str(pku), fields=ANSWERS))
    sorry = [row.harmful for row in rows if row.response.startswith(("I'm sorry", "I cannot"))]
    assert sum(sorry) < len(sorry) / 2
    beavertails = SHARED / "beavertails" / "labelled_answers.json"
    rows = load_labels(Source(source=str(beavertails), **BEAVERTAILS))
    assert 0.55 < sum(bool(row.harmful) for row in rows) / len(rows) < 0.6
    gpt4 = SHARED / "xstest" / "xstest_v2_completions_gpt4.csv"
    rows = load_labels(Source(source=str(gpt4), fields=XSTEST), needs=["refused"])
    assert sum(bool(row.refused) for row in rows) == 220


# The page for users


def test_every_preset_is_on_the_page():
    page = (DOCS / "own-data.md").read_text(encoding="utf-8")
    for name, preset in PRESETS.items():
        (line,) = [line for line in page.splitlines() if line.startswith(f"| `preset:{name}`")]
        assert preset.license in line and preset.source.removeprefix("hub:") in line


# Once a command ---------------------------------------------------------------------------------


def test_a_source_is_read_once_a_command_and_its_notices_are_kept_by_each_run(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"instruction": "<a>"}\n' * 2)
    lines = []
    with read_once():
        before = load(str(path))
        path.write_text('{"instruction": "<b>"}\n')
        keep_notices(lines.append)
        try:
            assert load(str(path)) == before, "it was read before"
        finally:
            drop_notices(lines.append)
    assert len(lines) == 1 and "dropped 1 of 2 rows" in lines[0]
    assert [row.text for row in load(str(path))] == ["<b>"], "the next command reads it again"
