"""Conversations of several turns: the shapes that data has, and what each is read as."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from setbacks.data import Source, load, load_labels
from setbacks.data.conversations import prompt_as_data, reply_as_data
from setbacks.data.instructions import instructions
from setbacks.errors import InputError
from setbacks.messages import Function, Message, Prompt, ToolCall, prompt_of, transcript, turns_of
from setbacks.records import Instruction, digest

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def turn(role, content="", **more):
    return Message(role=role, content=content, **more)


def call(name="look_up", arguments='{"city": "Bern"}', id_=None):
    return ToolCall(id=id_, function=Function(name=name, arguments=arguments))


def says(role, content):
    return {"role": role, "content": content}


S, U1, A1 = says("system", "<be terse>"), says("user", "<a>"), says("assistant", "<b>")
U2, A2, A3 = says("user", "<c>"), says("assistant", "<d>"), says("assistant", "<e>")
LONG = (turn("user", "<a>"), turn("assistant", "<b>"), turn("user", "<c>"))
WITH_SYSTEM = (turn("system", "<be terse>"), *LONG)
TALK = "\n\nHuman: <a>\n\nAssistant: <b>\n\nHuman: <c>\n\nAssistant: "


def write(folder, name, content):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def cell(value):
    text = value if isinstance(value, str) else json.dumps(value)
    return '"' + text.replace('"', '""') + '"'


def rows_of(folder, *records, **more):
    """Read records from JSON Lines; from CSV and Parquet they must be the same."""
    import pyarrow
    import pyarrow.parquet

    rows = []
    lines = "".join(json.dumps(record) + "\n" for record in records)
    files = [write(folder, "a.jsonl", lines)]
    names = list(dict.fromkeys(name for record in records for name in record))
    if all(set(record) == set(names) for record in records):
        cells = (",".join(cell(record[name]) for name in names) for record in records)
        files.append(write(folder, "a.csv", "\n".join([",".join(names), *cells])))
    files.append(str(folder / "a.parquet"))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(records)), files[-1])
    for file in files:
        read = [row[:3] for row in load(Source(source=file, **more))]
        assert not rows or read == rows, file
        rows = read
    return rows


def problem(folder, *records, **more):
    lines = "".join(json.dumps(record) + "\n" for record in records)
    with pytest.raises(InputError) as error:
        load(Source(source=write(folder, "a.jsonl", lines), **more))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"messages": [U1, A1, U2, A2]}, (LONG, "<d>", None)),
        ({"messages": [U1, A1, U2]}, (LONG, None, None)),
        ({"messages": [S, U1, A1, U2, A2]}, (WITH_SYSTEM, "<d>", None)),
        ({"messages": [says("developer", "<be terse>"), U1, A1, U2]}, (WITH_SYSTEM, None, None)),
        ({"messages": [S, U1, A1]}, (WITH_SYSTEM[:2], "<b>", None)),
        # ShareGPT, and LLaMA-Factory's columns beside it and beside Alpaca's
        ({"conversations": [{"from": "system", "value": "<be terse>"},
                            {"from": "human", "value": "<a>"}, {"from": "gpt", "value": "<b>"},
                            {"from": "human", "value": "<c>"}, {"from": "gpt", "value": "<d>"}]},
         (WITH_SYSTEM, "<d>", None)),
        ({"conversations": [{"from": "human", "value": "<a>"}, {"from": "gpt", "value": "<b>"},
                            {"from": "human", "value": "<c>"}], "system": "<be terse>"},
         (WITH_SYSTEM, None, None)),
        ({"messages": [S, U1, A1, U2], "system": "<be terse>"}, (WITH_SYSTEM, None, None)),
        ({"messages": [says("system", "<x>"), U1], "system": "<be terse>"},
         ((turn("system", "<be terse>\n\n<x>"), turn("user", "<a>")), None, None)),
        ({"instruction": "<c>", "input": "", "output": "<d>", "system": "<be terse>",
          "history": [["<a>", "<b>"]]}, (WITH_SYSTEM, "<d>", None)),
        ({"prompt": "<c>", "history": [U1, A1], "response": "<d>"}, (LONG, None, "<d>")),
        ({"instruction": "<c>", "input": "<i>", "output": "<d>", "history": [["<a>", "<b>"]]},
         ((*LONG[:2], turn("user", "<c>\n\n<i>")), "<d>", None)),
        ({"instruction": "<a>", "output": "<b>", "system": "", "history": []},
         ("<a>", "<b>", None)),
        ({"question": "<a>", "system_prompt": "<be terse>", "output": "<b>"},
         (WITH_SYSTEM[:2], "<b>", None)),
        # TRL
        ({"prompt": [S, U1, A1, U2], "completion": [A2]}, (WITH_SYSTEM, "<d>", None)),
        ({"prompt": [U1, A1, U2], "chosen": [A2], "rejected": [A3]}, (LONG, "<d>", "<e>")),
        ({"chosen": [U1, A1, U2, A2], "rejected": [U1, A1, U2, A3]}, (LONG, "<d>", "<e>")),
        ({"prompt": "<a>", "chosen": [S, U1, A2], "rejected": [S, U1, A3]},
         (WITH_SYSTEM[:2], "<d>", "<e>")),
        ({"prompt": "<a> ", "chosen": [U1, A2], "rejected": [U1, A3]}, ("<a> ", "<d>", "<e>")),
        ({"prompt": [S, U1], "chosen": [U1, A2], "rejected": [U1, A3]},
         (WITH_SYSTEM[:2], "<d>", "<e>")),
        ({"prompt": [U1, A1, U2], "chosen": "<d>", "rejected": "<e>"}, (LONG, "<d>", "<e>")),
        ({"question": "<a>", "chosen": "<d>", "rejected": "<e>"}, ("<a>", "<d>", "<e>")),
        ({"conversations": [{"from": "human", "value": "<a>"}],
          "chosen": {"from": "gpt", "value": "<d>"}, "rejected": {"from": "gpt", "value": "<e>"}},
         ("<a>", "<d>", "<e>")),
        ({"instruction": "<a>", "input": "", "chosen": "<d>", "rejected": "<e>"},
         ("<a>", "<d>", "<e>")),
        # A column that repeats a turn, or not
        ({"prompt": "<a>", "prompt_id": "1", "messages": [U1, A1, U2, A2]}, (LONG, "<d>", None)),
        ({"prompt": "<a>", "messages": [U1, A2], "chosen": [U1, A2], "rejected": [U1, A3]},
         ("<a>", "<d>", "<e>")),
        ({"prompt": "<x>", "messages": [U1, A1]}, ("<x>", None, None)),
        ({"prompt": "<a>", "output": "<x>", "messages": [U1, A1]}, ("<a>", "<x>", None)),
        ({"messages": [U1, A1], "input": "<a>"}, ("<a>", "<b>", None)),
        # OpenAI's preference data
        ({"input": {"messages": [U1, A1, U2]}, "preferred_output": [A2],
          "non_preferred_output": [A3]}, (LONG, "<d>", "<e>")),
        # Odd orders of turns are kept: it is for the chat template to take them or not.
        ({"messages": [A1, U1]}, ((turn("assistant", "<b>"), turn("user", "<a>")), None, None)),
        ({"messages": [U1, U2, A2]}, ((turn("user", "<a>"), turn("user", "<c>")), "<d>", None)),
        ({"messages": [U1, S, U2]},
         ((turn("user", "<a>"), turn("system", "<be terse>"), turn("user", "<c>")), None, None)),
        # A column that only has the name
        ({"prompt": "<a>", "system": "gpt-4o", "history": "of Rome"}, ("<a>", None, None)),
    ],
)  # fmt: skip
def test_shapes(tmp_path, record, expected):
    assert rows_of(tmp_path, record) == [expected]


def test_a_list_of_conversations_needs_no_objects_around_them(tmp_path):
    expected = [(LONG, "<d>"), ("<a>", "<b>")]
    document = [[U1, A1, U2, A2], [U1, A1]]
    lines = "".join(json.dumps(chat) + "\n" for chat in document)
    for path in (write(tmp_path, "a.json", document), write(tmp_path, "a.jsonl", lines)):
        assert [row[:2] for row in load(path)] == expected
    one = write(tmp_path, "b.json", {"prompt": [U1, A1, U2], "completion": [A2]})
    assert [row[:2] for row in load(one)] == expected[:1]


def test_tools(tmp_path):
    asked, found = turn("user", "<a>"), turn("tool", "<sun>", name="look_up", tool_call_id="c1")
    calls = [{"id": "c1", "type": "function",
              "function": {"name": "look_up", "arguments": '{"city": "Bern"}'}}]  # fmt: skip
    called = {"role": "assistant", "content": None, "tool_calls": calls}
    result = says("tool", "<sun>") | {"name": "look_up", "tool_call_id": "c1"}
    expected = (asked, turn("assistant", tool_calls=(call(id_="c1"),)), found)
    assert rows_of(tmp_path, {"messages": [U1, called, result, A1]}) == [(expected, "<b>", None)]
    assert rows_of(tmp_path, {"messages": [U1, called, result]}) == [(expected, None, None)]
    # A completion may call tools first.
    record = {"prompt": [U1], "completion": [called, result, A1]}
    assert rows_of(tmp_path, record) == [(expected, "<b>", None)]
    # Arguments as an object, and the names without an object around them, in a text
    bare = (asked, turn("assistant", tool_calls=(call(),)), turn("tool", "<sun>"))
    for form in (
        {"tool_calls": [{"function": {"name": "look_up", "arguments": {"city": "Bern"}}}]},
        {"tool_calls": [{"name": "look_up", "parameters": {"city": "Bern"}}]},
        {"tool_calls": json.dumps([{"name": "look_up", "arguments": {"city": "Bern"}}])},
        {"function_call": {"name": "look_up", "arguments": '{"city": "Bern"}'}},
    ):
        called = says("assistant", "") | form
        record = {"messages": [U1, called, says("tool", "<sun>"), A1]}
        assert rows_of(tmp_path, record) == [(bare, "<b>", None)]
    called = {
        "from": "function_call",
        "value": '{"name": "look_up", "arguments": {"city": "Bern"}}',
    }
    for name in ("observation", "tool", "function"):
        chat = [{"from": "human", "value": "<a>"}, called, {"from": name, "value": "<sun>"}]
        assert rows_of(tmp_path, {"conversations": chat, "tools": "[]"}) == [(bare, None, None)]
    # Parquet gives all calls the arguments of each.
    calls = [{"name": "look_up", "arguments": {"city": "Bern"}},
             {"name": "book", "arguments": {"seats": 2}}]  # fmt: skip
    record = {"messages": [U1, {"role": "assistant", "tool_calls": calls}, says("tool", "<sun>")]}
    ((text, *_),) = rows_of(tmp_path, record)
    assert text[1].tool_calls == (call(), call("book", '{"seats": 2}'))
    # The result of a tool may be any JSON, or nothing.
    chat = [U1, called, says("tool", {"sky": "blue", "type": "weather"}), says("tool", ""), A1]
    (row,) = load(write(tmp_path, "b.json", [{"messages": chat}]))
    assert [one.content for one in row.text[2:]] == ['{"sky": "blue", "type": "weather"}', ""]


def test_a_saved_dataset(tmp_path):
    import datasets

    rows = [{"messages": [S, U1, A1, U2, A2]}, {"messages": [U1, A1]}]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    read = load(str(tmp_path / "saved"))
    assert [row[:2] for row in read] == [(WITH_SYSTEM, "<d>"), ("<a>", "<b>")]


def test_paths_into_a_log_of_requests(tmp_path):
    record = {
        "request": {"messages": [S, U1, A1, U2]},
        "response": {"choices": [{"message": A2 | {"tool_calls": None}}]},
    }
    fields = {"text": "request.messages", "answer": "response.choices.0.message"}
    assert rows_of(tmp_path, record, fields=fields) == [(WITH_SYSTEM, "<d>", None)]


def test_parts_of_a_turn(tmp_path):
    parts = [{"type": "text", "text": "<a"}, {"type": "input_text", "text": ">"}]
    no = {"role": "assistant", "content": None, "refusal": "No."}
    thought = says(
        "assistant", [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "<b>"}]
    )
    path = write(tmp_path, "a.json", [{"messages": [says("user", parts), no, U2, thought]}])
    (row,) = load(path)
    assert row[:2] == ((LONG[0], turn("assistant", "No."), LONG[2]), "<b>")


def test_a_reply_without_text_is_none(tmp_path, caplog):
    for last in (says("assistant", ""), says("assistant", None)):
        assert load(write(tmp_path, "a.json", [{"messages": [U1, last]}]))[0][:2] == ("<a>", None)
        assert rows_of(tmp_path, {"prompt": [U1], "completion": [last]}) == [("<a>", None, None)]
    labels = [{"messages": [U1, says("assistant", "")], "harmful": False}]
    assert load_labels(write(tmp_path, "b.json", labels))[0].response == ""
    labels[0]["messages"][1] = says("assistant", None)
    with pytest.raises(InputError, match="item 1: response .* is missing"):
        load_labels(write(tmp_path, "b.json", labels))


def test_labels_are_of_the_last_turn(tmp_path):
    chat = [{"messages": [S, U1, A1, U2, A2], "harmful": True}]
    (row,) = load_labels(write(tmp_path, "a.json", chat))
    assert (row.text, row.answer, row.response, row.harmful) == (WITH_SYSTEM, None, "<d>", True)


def test_pairs_whose_replies_answer_different_prompts(tmp_path, caplog):
    good = {"chosen": [U1, A1], "rejected": [U1, A2]}
    apart = {"chosen": [U1, A1, U2, A2], "rejected": [U1, A2, U2, A3]}
    path = write(tmp_path, "a.json", [good, apart])
    assert [row[:3] for row in load(path)] == [("<a>", "<b>", "<d>")]
    assert "left out 1 of 2 rows: the turns before the last differ between" in caplog.text
    assert "the first is item 2" in caplog.text
    assert 'line 1: the turns before the last differ between "chosen" and' in problem(
        tmp_path, apart
    )
    # With a prompt of its own, the data contradict themselves.
    for record in (apart | {"prompt": [U1, A1, U2]}, good | {"prompt": "<x>"},
                   {"prompt": "<c>", "chosen": [U1, A1, U2, A2], "rejected": [A3]}):  # fmt: skip
        said = problem(tmp_path, record)
        assert "line 1: answer (chosen) or response (rejected): the turns before the last" in said
        assert "are not those of text (prompt)" in said
    said = problem(tmp_path, {"prompt": [U1], "completion": [U1]})
    assert "answer (completion): the last turn must be the assistant's" in said


def test_history_of_another_form(tmp_path):
    fields = {"text": "prompt", "history": "before"}
    for value in ("long ago", [["<a>"]], [["<a>", ""]], [["<a>", 3]], {"a": 1}, ["<a>", "<b>"]):
        said = problem(tmp_path, {"prompt": "<c>", "before": value}, fields=fields)
        assert "line 1: history (before): must be a list of [user, assistant] pairs" in said
    said = problem(tmp_path, {"prompt": "<c>", "history": [U1, says("critic", "x")]})
    assert 'history (history): message 1 has the unknown role "critic"' in said
    fields = {"text": "prompt", "system": "system"}
    said = problem(tmp_path, {"prompt": "<c>", "system": ["x"]}, fields=fields)
    assert "system must be a string" in said


# Anything ---------------------------------------------------------------------------------------

SCRAPS = st.one_of(
    st.none(), st.booleans(), st.integers(0, 2), st.just(float("nan")),
    st.sampled_from(["", " ", "<a>", "\0", "[]", "{}", TALK, '{"name": "f"}', '[["a", "b"]]']),
)  # fmt: skip
ROLE = st.one_of(st.sampled_from(["user", "assistant"]), st.sampled_from(["system", "tool", "x"]))
PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "text", "image_url", "thinking", None])},
    optional={"text": SCRAPS},
)
CONTENT = st.one_of(st.just("<b>"), SCRAPS, st.lists(st.one_of(PART, SCRAPS), max_size=3), PART)
FUNCTION = st.fixed_dictionaries({"name": st.just("f")}, optional={"arguments": CONTENT})
CALLS = st.one_of(
    st.lists(st.fixed_dictionaries({"function": FUNCTION}, optional={"id": SCRAPS}), min_size=1),
    FUNCTION,
    SCRAPS,
)
SPOKEN = st.fixed_dictionaries({"role": ROLE, "content": st.sampled_from(["<a>", "<b>"])})
MESSAGE = st.fixed_dictionaries(
    {"role": ROLE, "content": CONTENT},
    optional=dict.fromkeys(("tool_calls", "function_call"), CALLS)
    | dict.fromkeys(("name", "tool_call_id", "refusal", "reasoning_content"), SCRAPS),
)
CHAT = st.lists(st.one_of(SPOKEN, SPOKEN, SPOKEN, MESSAGE, SCRAPS), max_size=4)
COLUMNS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("chosen", "rejected", "completion"), st.one_of(CHAT, SCRAPS))
    | {"system": CONTENT, "tools": CONTENT}
    | {"history": st.one_of(CHAT, st.lists(st.lists(SCRAPS, max_size=3), max_size=2))},
)
ROW = st.builds(
    lambda name, chat, rest: {name: chat} | rest,
    st.sampled_from(["messages", "prompt"]), CHAT, st.one_of(st.just({}), COLUMNS),
)  # fmt: skip
PROMPT = TypeAdapter(Prompt)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=3), name=st.sampled_from(["a.json", "a.jsonl"]))
def test_anything_is_read_or_refused_in_one_line(tmp_path, rows, name):
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path = write(tmp_path, name, rows if name == "a.json" else lines)
    try:
        read = load(path)
    except InputError as error:
        assert "\n" not in str(error)
        return
    for row in read:
        turns = turns_of(row.text)
        assert prompt_of(turns) == row.text and turns[-1].role in ("user", "tool")
        assert any(one.role == "user" for one in turns)
        # What a run writes of it is read as it was.
        line = f'{{"instruction": {PROMPT.dump_json(row.text).decode()}}}'
        again = load(write(tmp_path, "again.jsonl", line))
        assert [one.text for one in again] == [row.text]


# HH-RLHF ----------------------------------------------------------------------------------------


def test_dialogues_of_hh_rlhf(tmp_path):
    pair = {"chosen": TALK + "<d>", "rejected": TALK + "<e>"}
    assert rows_of(tmp_path, pair) == [(LONG, "<d>", "<e>")]
    short = "\n\nHuman: <a>\n\nAssistant: "
    assert rows_of(tmp_path, pair, {"chosen": short + "<b>", "rejected": short}) == [
        (LONG, "<d>", "<e>"),
        ("<a>", "<b>", ""),
    ]
    # A copy whose prompts are apart, and one of whole dialogues
    apart = {"prompt": TALK.rstrip(" "), "chosen": " <d>", "rejected": " <e>"}
    assert rows_of(tmp_path, apart) == [(LONG, " <d>", " <e>")]
    assert rows_of(tmp_path, {"text": TALK + "<d>"}) == [(LONG, "<d>", None)]
    # A name twice in a row belongs to one turn.
    twice = "\n\nHuman: <a>\n\nAssistant: <b>\n\nAssistant: <c>"
    assert rows_of(tmp_path, {"text": twice}) == [("<a>", "<b>\n\n<c>", None)]
    said = problem(tmp_path, {"text": "\n\nHuman: \n\nAssistant: <b>"})
    assert "line 1: text (text): turn 0 of the dialogue (user) is empty" in said
    said = problem(tmp_path, *[{"text": TALK}] * 2, {"text": "Once"})
    assert 'line 3: text (text): no dialogue of "\\n\\nHuman:" and "\\n\\nAssistant:" turns' in said


@pytest.mark.parametrize(
    "text",
    [
        "Human: <a>\n\nAssistant: <b>",  # how such a dialogue begins in the middle of a page
        "A story.\n\nHuman: <a>\n\nAssistant: <b>",
        "\n\nHuman: what is a human?",
    ],
)
def test_what_only_looks_like_a_dialogue_stays_text(tmp_path, text):
    assert rows_of(tmp_path, {"prompt": text}) == [(text, None, None)]


def test_a_prompt_that_imitates_a_dialogue_stays_text(tmp_path):
    prompts = [TALK, "<x>", "<y>"]
    assert [row[0] for row in rows_of(tmp_path, *({"prompt": text} for text in prompts))] == prompts


def test_extract_takes_the_text_as_it_is(tmp_path):
    path = write(tmp_path, "a.json", [{"chosen": TALK + "<d>"}])
    extract = {"text": r"(?s)\n\nHuman: (.*)\n\nAssistant:"}
    (row,) = load(Source(source=path, fields={"text": "chosen"}, extract=extract))
    assert row.text == "<a>\n\nAssistant: <b>\n\nHuman: <c>"


@pytest.mark.shared_data
def test_hh_rlhf_itself(tmp_path):
    path = SHARED / "hh-rlhf" / "harmless-base-test.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"no public data in {SHARED}")
    rows = load(str(path))
    with gzip.open(path, "rt", encoding="utf-8") as file:
        data = [json.loads(line) for line in file]
    assert len(rows) == len(data) == 2312
    for row, pair in zip(rows, data, strict=True):
        turns = 1 if isinstance(row.text, str) else len(row.text)
        assert turns <= pair["chosen"].count("\n\nHuman:") * 2 - 1
        assert pair["rejected"].endswith(row.response.split("\n\n")[-1])
    assert sum(isinstance(row.text, tuple) for row in rows) > 1600
    assert sum(row.answer is None for row in rows) == 4


# Our own files ----------------------------------------------------------------------------------


def test_what_a_run_wrote_is_read_as_it_was(tmp_path):
    prompts = [
        "<a>",
        WITH_SYSTEM,
        (*LONG, turn("assistant", "<look>", tool_calls=(call(id_="c1"), call(arguments="no JSON"))),
         turn("tool", "", name="look_up", tool_call_id="c1")),
    ]  # fmt: skip
    lines = "".join(
        json.dumps(
            {
                "instruction": text
                if isinstance(text, str)
                else [one.model_dump(mode="json") for one in text],
                "answer": "<x>",
            }
        )
        + "\n"
        for text in prompts
    )
    path = write(tmp_path, "benign.jsonl", lines)
    fields = {"text": "instruction", "answer": "answer"}
    read = instructions([Source(source=path, fields=fields), Source(source=path)])
    assert [one.text for one in read] == prompts
    assert [one.id for one in read] == [digest("instruction", text) for text in prompts]
    assert all(isinstance(one, Instruction) and one.answer == "<x>" for one in read)


def test_texts_that_look_like_a_conversation_are_written_so_that_they_stay_texts(tmp_path):
    texts = ['[{"role": "user", "content": "<a>"}]', '{"a": 1}', TALK, "<a>"]
    for text in texts:
        record = {"text": prompt_as_data(text), "response": reply_as_data(text), "harmful": True}
        (row,) = load(write(tmp_path, "a.jsonl", json.dumps(record)))
        assert (row.text, row.response) == (text, text)
    assert (prompt_as_data("<a>"), reply_as_data("<a>")) == ("<a>", "<a>")


def test_ids_and_repeats(tmp_path, caplog):
    rows = [{"messages": chat} for chat in ([U1, A1, U2], [U1, A2, U2], [U1, A1, U2])]
    first, second = load(write(tmp_path, "a.json", rows))
    assert first.id != second.id and "dropped 1 of 3 rows" in caplog.text
    assert transcript(first.text) == "User: <a>\nAssistant: <b>\nUser: <c>"
    (unique,) = load(Source(source=write(tmp_path, "a.json", rows[::2]), unique=True))
    assert unique.id == first.id


def test_a_labeled_reply_is_no_good_answer(tmp_path):
    """It may be a bad one: nothing is learned from it unless fields say so."""
    talk = [{"role": "user", "content": "<q>"}, {"role": "assistant", "content": "PLACEHOLDER"}]
    path = tmp_path / "labeled.jsonl"
    path.write_text(json.dumps({"messages": talk, "harmful": True}) + "\n")
    (row,) = load(str(path))
    assert (row.answer, row.response, row.harmful) == (None, "PLACEHOLDER", True)
    kto = {"prompt": talk[:1], "completion": talk[1:], "label": False}  # TRL's unpaired preferences
    path.write_text(json.dumps(kto) + "\n")
    (row,) = load(str(path))
    assert (row.answer, row.response) == (None, "PLACEHOLDER")
