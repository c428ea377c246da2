"""The review without its page: what is shown, what people's labels come to, where they rest."""

import contextlib
import csv
import glob
import io
import itertools
import json
import os
import pwd
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from setbacks import calibration
from setbacks.errors import InputError, SetbacksError
from setbacks.messages import Function, Message, ToolCall, transcript
from setbacks.records import Response, Verdict
from setbacks.review import formats, labels, publish, reading
from setbacks.review.answers import answer_id, batch, collect, queue, shared
from setbacks.review.labels import Label
from setbacks.review.serve import give_out, open_store, take_in
from setbacks.review.store import CLAIMED, Store
from setbacks.runs.folder import RunFolder
from setbacks.stages.report import report

CONVERSATION = (
    Message(role="system", content="You are the desk of a hotel.\n" + "Be brief. " * 30),
    Message(role="user", content="Do you have a room on Friday?"),
    Message(
        role="assistant",
        tool_calls=(
            ToolCall(id="c1", function=Function(name="rooms", arguments='{"on": "<Friday>"}')),
        ),
    ),
    Message(role="tool", name="rooms", tool_call_id="c1", content='{"free": 2}'),
    Message(role="assistant", content="Yes, two."),
    Message(role="user", content="=Book one,\n'please'; \u202e"),
)
HOSTILE = "=HYPERLINK(1)\n'\"<b>&,;\u202e\t-x"


def response(arm, number, text=None, kind="harmful"):
    return Response(
        id=f"{arm}{number}",
        arm=arm,
        suite=kind,
        kind=kind,
        instruction_id=str(number),
        instruction=f"<question {number}>",
        reference=None,
        category=None,
        language="en",
        guided=False,
        text=f"<{arm}'s answer {number}>" if text is None else text,
        finish="stop",
        prompt_tokens=1,
        tokens=1,
        model="m",
    )


def of(n, planned=None, arms=("a", "b")):
    return batch({arm: [response(arm, i) for i in range(n)] for arm in arms}, planned or {}, seed=0)


def said(answer, reviewer="Ada", **more):
    return Label(answer=answer, reviewer=reviewer, **({"harmful": False} | more))


@pytest.fixture(scope="session")
def postgres():
    """Start a PostgreSQL server of the tests' own; make a fresh database and give its URL."""
    psycopg = pytest.importorskip("psycopg", reason="its driver comes with the extra `postgres`")
    found = [shutil.which("postgres"), *glob.glob("/usr/lib/postgresql/*/bin/postgres")]
    if not (server := next(filter(None, found), None)):
        pytest.skip("no PostgreSQL here")
    programs, user = Path(os.path.realpath(server)).parent, {}
    if os.geteuid() == 0:  # the server refuses to run as root
        try:
            user = {"user": "postgres", "group": pwd.getpwnam("postgres").pw_gid}
        except KeyError:
            pytest.skip("no user to run PostgreSQL as")
    with tempfile.TemporaryDirectory() as folder:
        if user:
            os.chown(folder, pwd.getpwnam("postgres").pw_uid, user["group"])
        more = user | {"cwd": folder, "stdout": subprocess.DEVNULL}
        make = [programs / "initdb", "-D", "data", "-U", "postgres", "-A", "trust", "--no-sync"]
        subprocess.run(make, check=True, **more)
        start = [programs / "postgres", "-D", "data", "-k", folder, "-c", "listen_addresses="]
        log = Path(folder, "log.txt")
        with log.open("wb") as data:
            running = subprocess.Popen([*start, "-c", "fsync=off"], stderr=data, **more)
        names = itertools.count()

        def fresh():
            name = f"labels{next(names)}"
            with psycopg.connect(f"host={folder} user=postgres", autocommit=True) as db:
                db.execute(f"CREATE DATABASE {name}")
            return f"postgresql://postgres@/{name}?host={folder}"

        try:
            for _ in range(1200):
                assert running.poll() is None, log.read_text()
                with contextlib.suppress(psycopg.OperationalError):
                    psycopg.connect(f"host={folder} user=postgres").close()
                    break
                time.sleep(0.1)
            yield fresh
        finally:
            running.send_signal(signal.SIGINT)  # it does not wait for who is still connected
            try:
                running.wait(timeout=60)
            except subprocess.TimeoutExpired:
                running.kill()


def opener(url):
    made = []

    def make(answers=None, **more):
        made.append(Store(url, answers or of(20), **more))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def store(tmp_path):
    """Make a store in an SQLite file; the same again is the same labels."""
    yield from opener(tmp_path / "labels.db")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def either(request, tmp_path):
    """Make a store in an SQLite file or in PostgreSQL; the same again is the same labels."""
    if request.param == "sqlite":
        yield from opener(tmp_path / "labels.db")
    else:
        yield from opener(request.getfixturevalue("postgres")())


# What is shown ----------------------------------------------------------------------------------


def test_answers_that_read_the_same_are_one():
    rows = {"a": [response("a", 0, "same"), response("a", 1)], "b": [response("b", 0, "same")]}
    made = batch(rows, {}, seed=0)
    assert [a.responses for a in made.answers.values()] == [("a0", "b0"), ("a1",)]
    assert made.by_response["a0"] == made.by_response["b0"] == answer_id("<question 0>", "same")


def test_each_reviewer_has_an_order_of_their_own_and_it_stays():
    answers = of(30)
    orders = [[a.id for a in queue(answers, name)] for name in ("Ada", "Ben", "Ada")]
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(answers.answers)
    arms = [answers.answers[name].responses[0][0] for name in orders[0]]
    assert 15 < sum(x != y for x, y in zip(arms, arms[1:], strict=False)) < 45  # shuffled


def test_planned_answers_come_first_in_their_order():
    planned = {"b7": 0.2, "a3": 1.0, "b1": 0.5}
    answers = of(10, planned)
    first = [answer.responses[0] for answer in queue(answers, "Ada")]
    assert first[:3] == list(planned) and len(set(first)) == 20


def test_a_share_of_the_answers_is_for_all():
    answers = of(500)
    assert len(shared(answers, 0)) == 0 and len(shared(answers, 1)) == 1000
    assert 150 < len(shared(answers, 0.2)) < 250
    assert shared(answers, 0.1) < shared(answers, 0.2)  # more of them, not others


def test_a_plan_of_other_responses_is_refused():
    with pytest.raises(InputError, match="plans z9, which is not an answer of this run"):
        of(3, {"z9": 0.5})


# What labels come to ----------------------------------------------------------------------------


def test_a_label_says_something():
    with pytest.raises(ValueError, match="a label needs harmful, refused or helpful"):
        Label(answer="x", reviewer="Ada")
    with pytest.raises(ValueError, match="a reviewer needs a name"):
        said("x", " \n\u200b ")
    with pytest.raises(ValueError, match="cannot be unsure"):
        said("x", final=True, unsure=True)
    assert said("x", " Ada \t L. ").reviewer == "Ada L."
    assert said("x", note="a\x00b\r\nc").note == "ab\nc"


@pytest.mark.parametrize(
    ("votes", "verdict"),
    [
        ([True], True),
        ([True, False], None),
        ([True, True, False], True),
        ([True, None, None], True),
        ([None], None),
    ],
)
def test_the_majority_decides_and_a_tie_does_not(votes, verdict):
    rows = [said("x", f"P{i}", harmful=vote, helpful=5) for i, vote in enumerate(votes)]
    assert labels.consensus(rows)["x"].harmful is verdict
    assert labels.consensus([*rows, said("x", "Q", harmful=True, final=True)])["x"].harmful is True


def test_who_is_unsure_does_not_vote():
    rows = [said("x", "Ada", harmful=True), said("x", "Ben", unsure=True)]
    found = labels.consensus(rows)["x"]
    assert (found.harmful, found.people) == (True, 1)
    assert labels.consensus(rows[1:]) == {}
    assert labels.disagreements(rows) == []
    assert [d.reasons for d in labels.disagreements(rows[1:])] == [("nobody is sure",)]


def test_disagreements_are_listed_until_somebody_settles_them():
    rows = [
        said("x", "Ada", harmful=True, refused=True, helpful=2),
        said("x", "Ben", harmful=False, refused=True, helpful=6),
        said("y", "Ada", helpful=2),
        said("y", "Ben", helpful=5),
    ]
    (found,) = labels.disagreements(rows)
    assert (found.answer, found.reasons) == ("x", ("harm", "helpfulness"))
    assert labels.disagreements([*rows, said("x", "Ada", final=True)]) == []


EACH = {name: name for name in [*map(str, range(20)), "alone"]}  # an answer to each question


def test_alpha_of_the_textbook_example():
    """Krippendorff (2011), example A: two observers, ten units, alpha 0.095."""
    meg, owen = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    rows = [
        said(str(unit), name, harmful=bool(value))
        for name, values in (("Meg", meg), ("Owen", owen))
        for unit, value in enumerate(values)
    ]
    alone = said("alone", "Meg", harmful=True)  # one label is no agreement
    unsure = [said(str(i), "Third", harmful=True, unsure=True) for i in range(10)]
    found = labels.alpha([*rows, alone, *unsure], "harmful", EACH)
    assert (round(found.value, 3), found.n) == (0.095, 10)
    assert found.low < found.value < found.high
    (pair,) = labels.kappas(rows, "harmful")
    # Cohen: agreement 6 / 10, by chance (8 * 6 + 2 * 4) / 100.
    assert pair.kappa.value == pytest.approx((0.6 - 0.56) / (1 - 0.56))
    assert (pair.first, pair.second, pair.kappa.n) == ("Meg", "Owen", 10)
    assert labels.alpha(rows[:1], "harmful", EACH) == (None, None, None, 0)


def test_agreement_is_not_defined_where_all_say_the_same():
    rows = [said(str(i), name) for i in range(12) for name in ("Ada", "Ben")]
    assert labels.alpha(rows, "harmful", EACH) == (None, None, None, 12)
    assert labels.kappas(rows, "harmful")[0].kappa == (None, None, None, 12)


def test_alpha_of_scores_minds_how_far_they_are_apart():
    near = [said(str(i), n, helpful=1 + i % 5 * 2 + d) for i in range(20) for n, d in
            (("Ada", 0), ("Ben", i % 2))]  # fmt: skip
    far = [said(str(i), n, helpful=1 + (i + 3 * d) % 5 * 2) for i in range(20) for n, d in
           (("Ada", 0), ("Ben", i % 2))]  # fmt: skip
    assert (
        labels.alpha(near, "helpful", EACH).value > 0.9 > labels.alpha(far, "helpful", EACH).value
    )


def test_a_label_counts_for_all_that_reads_the_same_and_carries_its_probability():
    rows = {"a": [response("a", 0, "same"), response("a", 1)], "b": [response("b", 0, "same")]}
    answers = batch(rows, {"b0": 0.25}, seed=0)
    both = answers.by_response["a0"]
    people = [said(both, "Ada", helpful=7), said(both, "Ben", helpful=8)]
    made = labels.verdicts(answers, people)
    assert {arm: [v.response_id for v in found] for arm, found in made.items()} == {
        "a": ["a0"], "b": ["b0"],
    }  # fmt: skip
    (a,), (b,) = made.values()
    assert (a.judge, a.harmful, a.refused, a.helpful_score, a.attempts) == (
        "human", False, None, 7.5, 2,
    )  # fmt: skip
    assert (a.sampling_probability, b.sampling_probability) == (None, 0.25)


# Where labels rest ------------------------------------------------------------------------------


def test_labels_are_there_again_and_private(store, tmp_path):
    first = store()
    answer = next(iter(first.batch.answers))
    first.save(said(answer, note="a note", helpful=3))
    first.settings(1, veiled=True)
    first.close()
    again = store()
    (label,) = again.labels()
    assert (label.answer, label.reviewer, label.note, label.helpful) == (answer, "Ada", "a note", 3)
    assert again.join("Ada").veiled
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("labels.db*")}
    assert modes and set(modes.values()) == {0o600}
    with sqlite3.connect(tmp_path / "labels.db") as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_newer_label_takes_the_place_of_the_older_and_undo_brings_that_back(either):
    open_ = either()
    ada = open_.join("Ada")
    x, y = list(open_.batch.answers)[:2]
    open_.save(said(x, harmful=True))
    open_.save(said(x, "Ben"))
    open_.save(said(x, harmful=False))
    open_.save(said(y))
    assert [label.answer for label in open_.labels()] == [x, x, y]
    assert open_.undo(ada.id).answer == y
    assert open_.undo(ada.id).harmful is False
    assert {(label.reviewer, label.harmful) for label in open_.labels()} == {
        ("Ada", True), ("Ben", False),
    }  # fmt: skip
    assert open_.undo(ada.id).harmful is True
    assert open_.undo(ada.id) is None
    assert [label.reviewer for label in open_.labels()] == ["Ben"]
    assert open_.last(ada, y).answer == y  # undone, and still known


def test_a_form_that_is_sent_twice_is_one_label(either):
    open_ = either()
    x = next(iter(open_.batch.answers))
    open_.save(said(x), form="f")
    open_.save(said(x), form="f")
    ada = open_.join("Ada")
    open_.undo(ada.id)
    assert open_.labels() == []
    open_.save(said(x), form="f")  # as late as that: it was undone, and stays so
    assert open_.labels() == []


def test_an_answer_is_kept_for_the_one_to_whom_it_was_shown(either):
    now = [1_000_000.0]
    open_ = either(of(1, {"b0": 1.0}), share=0, clock=lambda: now[0])
    ada, ben = open_.join("Ada"), open_.join("Ben")
    first = open_.next(ada)
    assert open_.next(ada) == first  # a reload
    other = open_.next(ben)
    assert {first.responses, other.responses} == {("b0",), ("a0",)}
    assert open_.next(open_.join("Chen")) is None
    now[0] += CLAIMED + 1
    assert open_.next(open_.join("Chen")) == first  # Ada has gone
    assert open_.next(ada) == other  # and Ben, too
    open_.save(said(first.id))  # Ada had it open all the time
    open_.save(said(first.id, "Chen", harmful=True))
    assert len(open_.labels()) == 2
    assert open_.next(ben) is None
    assert open_.progress(ada) == (1, 1, 1, 2)


def test_a_shared_answer_comes_to_everybody_until_it_is_settled(either):
    open_ = either(of(2), share=1)
    ada, ben = open_.join("Ada"), open_.join("Ben")
    for _ in range(4):
        open_.save(said(open_.next(ada).id))
    assert open_.next(ada) is None
    assert open_.progress(ben) == (0, 4, 4, 4)
    open_.save(said(open_.next(ben).id, "Ada", final=True))
    assert open_.progress(ben).left == 3


def test_reviewers_at_once_lose_nothing_and_share_out_what_is_not_for_all(either):
    servers = [either(of(60), share=0.25) for _ in range(2)]  # on the same labels
    open_ = servers[0]
    people = [open_.join(f"P{i}") for i in range(4)]

    def work(person):
        done, server = [], servers[person.id % 2]
        while (answer := server.next(person)) is not None:
            server.save(said(answer.id, person.name), form=f"{person.id}/{answer.id}")
            done.append(answer.id)
        return done

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(work, people))
    for_all = shared(open_.batch, 0.25)
    assert all(for_all <= set(mine) for mine in done)
    alone = [answer for mine in done for answer in mine if answer not in for_all]
    assert sorted(alone) == sorted(open_.batch.answers.keys() - for_all)  # each once
    assert len(open_.labels()) == len(alone) + 4 * len(for_all)


def test_all_labels_of_a_batch_are_kept_or_none(either):
    open_ = either()
    x, y = list(open_.batch.answers)[:2]
    with pytest.raises(InputError, match="answer 'zzz' is not in this run; nothing was changed"):
        open_.add([said(x), said("zzz")])
    with pytest.raises(InputError, match="Ada labels answer .* twice, and differently"):
        open_.add([said(y), said(x), said(x, harmful=True)])
    assert open_.labels() == [] and open_.reviewers() == []
    assert open_.add([said(x), said(x)]) == 1
    assert open_.add([said(x), said(y)]) == 1
    with pytest.raises(InputError, match="Ada labels answer .* differently than before; remove it"):
        open_.add([said(x, harmful=True)])
    assert open_.add([said(x, harmful=True)], replace=True) == 1
    assert [label.harmful for label in open_.labels() if label.answer == x] == [True]


def test_a_break_is_counted_from_the_last_rest(either):
    now = [1_000_000.0]
    open_ = either(clock=lambda: now[0])
    ada = open_.join("Ada")
    assert open_.at_work(ada) == 0
    for i, answer in enumerate(list(open_.batch.answers)[:20]):
        open_.save(said(answer), form=str(i))
        now[0] += 60
    assert open_.at_work(ada) == 20
    open_.settings(ada.id, rested_at=now[0] - 300)
    assert open_.at_work(open_.join("Ada")) == pytest.approx(4)
    now[0] += 3600  # she left without a word
    assert open_.at_work(ada) == 0


@pytest.mark.parametrize(
    ("statements", "says"),
    [
        (["CREATE TABLE other (x)"], "the database of another program"),
        (["CREATE TABLE review_labels (x)"], "an older version of setbacks .schema 0, this"),
        (
            ["CREATE TABLE review_meta (key, value)", "INSERT INTO review_meta VALUES('schema',9)"],
            "a newer version of setbacks .schema 9, this",
        ),
    ],
)
def test_a_database_that_is_not_ours_is_left_alone(store, tmp_path, statements, says):
    path = tmp_path / "labels.db"
    with sqlite3.connect(path) as db:
        for statement in statements:
            db.execute(statement)
    db.close()
    before = path.read_bytes()
    with pytest.raises(InputError, match=says):
        store()
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_left_alone(store, tmp_path):
    (tmp_path / "labels.db").write_text("not a database, " * 100)
    with pytest.raises(SetbacksError, match="labels.db: file is not a database"):
        store()
    assert (tmp_path / "labels.db").read_text() == "not a database, " * 100


def test_labels_of_another_run_are_refused_and_of_answers_that_went_are_kept_aside(either):
    first = either(of(3))
    first.add([said(answer) for answer in first.batch.answers])
    with pytest.raises(InputError, match="its 6 labels belong to another run"):
        either(of(3, arms=("x", "y")))
    fewer = either(of(2))
    assert (fewer.left_out, len(fewer.labels())) == (2, 4)
    assert fewer.progress(fewer.join("Ada")) == (4, 0, 4, 4)


@pytest.mark.slow
def test_postgresql_keeps_labels_and_refuses_what_is_not_ours(postgres):
    import psycopg

    url = postgres()
    with psycopg.connect(url) as db:
        db.execute("CREATE TABLE of_another_program (x int)")  # may live beside ours
    first = Store(url, of(3))
    name = next(iter(first.batch.answers))
    first.add([said(name, "Ada", harmful=True, helpful=3, note=HOSTILE, made_at=1.5)])
    first.close()
    again = Store(url, of(3))
    assert again.labels() == [said(name, "Ada", harmful=True, helpful=3, note=HOSTILE, made_at=1.5)]
    again.close()
    with psycopg.connect(url) as db:
        db.execute("UPDATE review_meta SET value = '0' WHERE key = 'schema'")
    with pytest.raises(InputError, match="older version of setbacks .schema 0, this one has 1"):
        Store(url, of(3))
    with psycopg.connect(url, autocommit=True) as db:  # who was refused is no longer connected
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        wait(lambda: db.execute(query).fetchone() == (1,))
    with pytest.raises(SetbacksError, match="postgres:\\*\\*\\*@127.0.0.1:1/x: ") as raised:
        Store("postgresql://postgres:secret@127.0.0.1:1/x", of(1))
    assert "secret" not in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense", "not a URL"),
        ("mysql://u:secret@h/d", "use postgresql"),
        ("sqlite:///x.db", "use postgresql"),
    ],
)
def test_a_database_that_cannot_be_used_is_refused_without_its_password(url, says):
    with pytest.raises(InputError, match=says) as raised:
        Store(url, of(1))
    assert "secret" not in str(raised.value)


# Files ------------------------------------------------------------------------------------------


def everything(answers):
    names = list(answers.answers)
    return [
        said(names[0], "Ada", harmful=True, refused=False, helpful=10, note=HOSTILE, made_at=1.5),
        said(names[0], "Ben <b>", harmful=False, refused=True, unsure=True, made_at=2.5),
        said(names[0], "Ada", harmful=True, final=True, made_at=3.5),
        said(names[1], "'Chen", harmful=None, helpful=1, note="'=1", made_at=4.5),
        Label(answer=names[2], reviewer="Dana", unsure=True, made_at=5.5),
    ]


def hostile():
    rows = [response("a", 0, HOSTILE), response("a", 1, "'quoted'"), response("a", 2, "")]
    return batch({"a": rows}, {}, seed=0)


@pytest.mark.parametrize("format", ["jsonl", "csv", "argilla", "label-studio"])
def test_what_is_written_can_be_read_back(format):
    answers = hostile()
    rows = everything(answers)
    text = formats.export(format, answers, rows)
    found = reading.read(text, f"x.{format}", answers)
    timeless = {"made_at": None} if format in ("argilla", "label-studio") else {}
    wanted = [row.model_copy(update=timeless) for row in rows]
    assert sorted(found, key=repr) == sorted(wanted, key=repr)


def conversations():
    """Answers to a conversation, to another with the same last turn, and to a plain question."""
    asked = [CONVERSATION, CONVERSATION[-2:], "<question 2>"]
    rows = [response("a", n).model_copy(update={"instruction": q}) for n, q in enumerate(asked)]
    return batch({"a": rows}, {}, seed=0)


@pytest.mark.parametrize("format", ["jsonl", "csv", "argilla", "label-studio"])
def test_labels_of_conversations_come_back(format):
    answers = conversations()
    rows = [said(name, refused=True, note=f"<{n}>") for n, name in enumerate(answers.answers)]
    text = formats.export(format, answers, rows)
    found = reading.read(text, f"x.{format}", answers)
    assert sorted((x.answer, x.note) for x in found) == sorted((x.answer, x.note) for x in rows)


@pytest.mark.parametrize("form", ["messages", "text of messages", "transcript"])
def test_an_answer_is_found_by_its_conversation(form):
    answers = conversations()
    (answer,) = [a for a in answers.answers.values() if a.instruction == CONVERSATION]
    messages = [turn.model_dump(mode="json") for turn in CONVERSATION]
    forms = {
        "messages": messages,
        "text of messages": json.dumps(messages),
        "transcript": transcript(CONVERSATION),
    }
    row = {"instruction": forms[form], "response": answer.text, "harmful": True}
    (label,) = reading.read(json.dumps(row), "x.jsonl", answers, "Ada")
    assert label.answer == answer.id
    row = {"messages": [*messages, {"role": "assistant", "content": answer.text}], "harmful": True}
    (label,) = reading.read(json.dumps(row), "x.jsonl", answers, "Ada")
    assert label.answer == answer.id
    row = {"instruction": messages[1:], "response": answer.text, "harmful": True}
    with pytest.raises(InputError, match="this instruction with this response is not in this run"):
        reading.read(json.dumps(row), "x.jsonl", answers, "Ada")


def test_a_question_that_looks_like_messages_is_a_question():
    question = '[{"role": "user", "content": "<a>"}]'
    rows = [response("a", 0, "<x>"), response("a", 1, "<x>")]
    rows[0] = rows[0].model_copy(update={"instruction": question})
    rows[1] = rows[1].model_copy(update={"instruction": "<a>"})
    answers = batch({"a": rows}, {}, seed=0)
    row = {"instruction": question, "response": "<x>", "harmful": True}
    (label,) = reading.read(json.dumps(row), "x.jsonl", answers, "Ada")
    assert label.answer == answers.by_response["a0"]
    row["instruction"] = json.loads(question)
    (label,) = reading.read(json.dumps(row), "x.jsonl", answers, "Ada")
    assert label.answer == answers.by_response["a1"]


def test_tools_get_a_thread_where_there_are_turns():
    """Argilla's ChatField and Label Studio's Paragraphs take a role and a text that is not empty.

    Source: argilla-server, ChatFieldValue; https://labelstud.io/tags/paragraphs
    """
    answers = conversations()
    argilla_, studio = (
        [fields(row)["instruction"] for row in json.loads(formats.to_label(format, answers))]
        for format, fields in (
            ("argilla", lambda row: row["fields"]),
            ("label-studio", lambda row: row["data"]),
        )
    )
    assert argilla_ == studio
    assert {len(turns) for turns in studio} == {1, 2, len(CONVERSATION)}
    for turns in studio:
        assert all(set(turn) == {"role", "content"} and turn["content"] for turn in turns)
    assert '[calls rooms({"on": "<Friday>"})]' in [t["content"] for turns in studio for t in turns]
    assert '<Paragraphs name="instruction"' in formats.labeling_interface(answers)
    plain = formats.labeling_interface(of(1))
    assert '<Text name="instruction" value="$instruction"/>' in plain and "Paragraphs" not in plain


def argilla(answers, *statuses):
    """A record of Argilla: one answer, a response of each status, by a person of its own."""
    answer = next(iter(answers.answers.values()))
    given = [
        {"value": "harmful", "user_id": f"u{n}"} | ({} if status == "" else {"status": status})
        for n, status in enumerate(statuses)
    ]
    texts = {"instruction": answer.instruction, "response": answer.text}
    return json.dumps([{"id": None, "fields": texts, "responses": {"harm": given}}])


def test_only_what_people_stand_by_counts(caplog):
    """Argilla keeps drafts and discarded responses; older releases give no status."""
    answers = of(1)
    text = argilla(answers, "submitted", "discarded", "draft", None, "")
    found = reading.read(text, "x.json", answers)
    assert [label.reviewer for label in found] == ["u0", "u3", "u4"]
    assert "x.json: left out 2 responses that are drafts, discarded or cancelled" in caplog.text
    with pytest.raises(InputError, match="has no labels"):
        reading.read(argilla(answers, "discarded"), "x.json", answers)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"harmful": "WAHR", "refused": 0.0}, (True, False, None)),
        ({"harmful": "False", "refused": "NaN", "helpful": "NA"}, (False, None, None)),
        ({"harmful": 1.0, "helpful": float("nan"), "unsure": "0.0"}, (True, None, None)),
        ({"harmful": None, "helpful": "7.0"}, (None, None, 7)),
    ],
)
def test_labels_of_people_are_read_as_those_of_data(row, expected):
    (label,) = reading.read(json.dumps({"response_id": "a0"} | row), "x.jsonl", of(1), "Ada")
    assert label.choices == expected and label.unsure is False


def test_labels_in_a_file_with_semicolons():
    text = "response_id;harmful;unsure\r\na0;FALSCH;\r\n"
    (label,) = reading.read("\ufeff" + text, "x.csv", of(1), "Ada")
    assert label.harmful is False
    with pytest.raises(InputError, match='line 2: unsure is "perhaps"'):
        reading.read("response_id;harmful;unsure\na0;no;perhaps\n", "x.csv", of(1), "Ada")


def test_an_answer_is_found_though_a_spreadsheet_has_changed_its_line_ends():
    row = response("a", 0, "<café\nau lait>\n")
    answers = batch({"a": [row]}, {}, seed=0)
    data = {"instruction": row.instruction, "response": "<cafe\u0301\r\nau lait>", "harmful": 1}
    (label,) = reading.read(json.dumps(data), "x.jsonl", answers, "Ada")
    assert label.answer in answers.answers
    # Two answers that differ in blanks alone: only an exact copy tells which.
    other = response("b", 0, "<café\nau lait>").model_copy(update={"instruction": row.instruction})
    answers = batch({"a": [row], "b": [other]}, {}, seed=0)
    with pytest.raises(InputError, match="is not in this run"):
        reading.read(json.dumps(data), "x.jsonl", answers, "Ada")
    data["response"] = other.text
    (label,) = reading.read(json.dumps(data), "x.jsonl", answers, "Ada")
    assert answers.answers[label.answer].text == other.text


@given(st.text(min_size=1), st.text(), st.text())
def test_any_text_survives_a_csv_file(instruction, text, note):
    row = response("a", 0, text).model_copy(update={"instruction": instruction})
    answers = batch({"a": [row]}, {}, seed=0)
    label = said(next(iter(answers.answers)), note=note[:100], made_at=1.0)
    written = formats.export("csv", answers, [label])
    assert reading.read(written, "x.csv", answers) == [label]


def test_a_spreadsheet_runs_no_cell():
    answers = hostile()
    lines = formats.export("csv", answers, everything(answers))

    for row in csv.reader(io.StringIO(lines)):
        assert not [cell for cell in row if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]


def test_the_label_file_is_one_that_calibrate_takes(tmp_path):
    from setbacks.data import load_labels

    answers = of(2)
    a, b, c, d = answers.answers
    rows = [said(a, harmful=True, refused=True), said(b), said(c, harmful=None, helpful=3)]
    rows += [said(d), said(d, "Ben", harmful=True)]
    path = tmp_path / "labels.jsonl"
    path.write_text(formats.export("labels", answers, rows))
    found = load_labels(path)
    assert [(row.id, row.harmful, row.refused) for row in found] == [
        (a, True, True), (b, False, None),
    ]  # fmt: skip
    answers = conversations()
    path.write_text(formats.export("labels", answers, [said(name) for name in answers.answers]))
    asked = {row.id: (row.text, row.response) for row in load_labels(path)}
    assert asked == {name: (a.instruction, a.text) for name, a in answers.answers.items()}


def test_label_files_and_verdicts_are_taken_for_a_named_reviewer():
    answers = of(2)
    first = answers.answers[answers.by_response["a0"]]
    row = {"instruction": first.instruction, "response": first.text, "harmful": "unsafe"}
    (label,) = reading.read(json.dumps(row), "x.jsonl", answers, "Ada")
    assert (label.answer, label.reviewer, label.harmful) == (first.id, "Ada", True)
    verdict = Verdict(id="v", response_id="b1", judge="human", refused=True, helpful_score=4)
    (label,) = reading.read(verdict.model_dump_json(), "x.jsonl", answers, "Ada")
    assert (label.answer, label.refused, label.helpful) == (answers.by_response["b1"], True, 4)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "x.jsonl: has no labels"),
        ("[]", "x.jsonl: has no labels"),
        ("{", "x.jsonl: line 1: not JSON"),
        ("[1]", "entry 1: not a label"),
        ('\n{"answer": "zzz", "harmful": true}', "line 2: answer 'zzz' is not in this run"),
        ('{"response_id": "zzz", "harmful": true}', "response 'zzz' is not in this run"),
        ('{"instruction": "?", "response": "!", "harmful": true}', "not in this run"),
        ('{"harmful": true}', "has neither `answer`, nor `response_id`"),
        ('{"response_id": "a0"}', "a label needs harmful, refused or helpful"),
        ('{"response_id": "a0", "harmful": "perhaps"}', 'harmful is "perhaps"; it must be true'),
        ('{"response_id": "a0", "helpful": 11}', "helpful: Input should be less than"),
        ('{"response_id": "a0", "helpful": 2.5}', "2.5 is not a whole number"),
        ('{"response_id": "a0", "harmful": true, "made_at": "soon"}', "Invalid isoformat"),
        ('[{"data": {"answer": "A"}, "annotations": [{}]}]', "'result' is missing"),
        ("[" * 100_000, "x.jsonl: "),
    ],
)
def test_a_broken_file_is_refused_by_its_line(text, says):
    answers = of(1)
    text = text.replace('"A"', f'"{next(iter(answers.answers))}"')
    with pytest.raises(InputError) as raised:
        reading.read(text, "x.jsonl", answers, "Ada")
    assert says in str(raised.value) and "\n" not in str(raised.value)
    assert "nothing was changed" in str(raised.value) or "not JSON" in str(raised.value)


def test_labels_of_nobody_are_refused():
    with pytest.raises(InputError, match="name one with --as NAME"):
        reading.read('{"response_id": "a0", "harmful": true}', "x.jsonl", of(1))


# In a run ---------------------------------------------------------------------------------------


@pytest.fixture
def run(answered):
    """A run with two arms, 30 harmful prompts and 30 safe ones; the arms agree on every third."""
    arms = {
        arm: [
            (kind, f"<{kind} {i}>", f"<answer {i}>" if i % 3 == 0 else f"<{arm}'s answer {i}>")
            for kind in ("harmful", "safe")
            for i in range(30)
        ]
        for arm in ("vanilla", "mistake_analysis")
    }
    return answered(arms)


def judged(run, wrong=0.2):
    """Give every answer a verdict of a judge that errs, and return the truth by response."""
    draw = random.Random(0)
    truth = {}
    with RunFolder(run) as opened:
        for arm, responses in opened.responses().items():
            records = []
            for r in responses:
                truth[r.id] = draw.random() < (0.6 if arm == "vanilla" else 0.3)
                says = truth[r.id] ^ (draw.random() < wrong)
                records.append(
                    Verdict(id=f"v{r.id}", response_id=r.id, judge="probe", harmful=says,
                            refused=says, p_harmful=0.9 if says else 0.1)
                )  # fmt: skip
            opened.journal(f"verdicts/{arm}.probe.jsonl", Verdict).write(records)
    return truth


def test_a_report_shows_the_people_and_what_they_correct(run):
    truth = judged(run)
    (run / "review").mkdir(mode=0o700)
    plan = [{"response_id": r, "probability": 0.5} for r in list(truth)[:100]]
    (run / "review" / "plan.json").write_text(json.dumps({"answers": plan}))
    opened = open_store(run)
    seen = {}
    for r in list(truth)[:100]:
        seen.setdefault(opened.batch.by_response[r], truth[r])
    opened.add([said(a, harmful=v, refused=v) for a, v in seen.items()])
    publish.publish(run, opened)
    opened.close()
    with RunFolder(run) as folder:
        metrics = report(folder).metrics
        written = folder.records("verdicts/vanilla.human.jsonl", Verdict)
    assert {v.sampling_probability for v in written} <= {0.5, None}
    assert {v.judge for v in written} == {"human"}
    people = metrics["judges"]["human"]["arms"][0]
    assert people["harmless_rate"]["n"] == 30
    corrected = metrics["judges"]["probe"]["arms"][0]["corrected"]
    assert "harmless_rate" in corrected
    for name in ("vanilla", "mistake_analysis"):
        mode = (run / "verdicts" / f"{name}.human.jsonl").stat().st_mode
        assert stat.S_IMODE(mode) == 0o600


def test_the_files_follow_the_labels_even_if_another_process_is_in_the_way(run, monkeypatch):
    monkeypatch.setattr(publish, "WAIT", 0.01)
    monkeypatch.setattr(publish, "AGAIN", 0.05)
    opened = open_store(run)
    keeper = publish.Publisher(run, opened)
    a, b = list(opened.batch.answers)[:2]
    with FileLock(run / ".lock"):
        opened.save(said(a))
        keeper.wake()
        wait(lambda: "another setbacks process" in keeper.problem)
        assert not (run / "verdicts" / "vanilla.human.jsonl").exists()
    wait(lambda: not keeper.problem)
    opened.save(said(b))
    keeper.wake()
    keeper.close()
    lines = [
        line
        for path in (run / "verdicts").glob("*.human.jsonl")
        for line in path.read_text().splitlines()
    ]
    wanted = [r for name in (a, b) for r in opened.batch.answers[name].responses]
    assert sorted(json.loads(line)["response_id"] for line in lines) == sorted(wanted)
    opened.undo(1)
    opened.undo(1)
    publish.publish(run, opened)
    assert (run / "verdicts" / "vanilla.human.jsonl").read_text() == ""
    opened.close()


def test_a_label_counts_only_for_the_answer_that_its_reviewer_saw(run):
    """While the page is open, `--from respond` gives a response of the same id another text."""
    opened = open_store(run)
    with RunFolder(run) as folder:
        rows = folder.records("responses/vanilla.jsonl", Response)
        rows[1] = rows[1].model_copy(update={"text": "<another answer>"})
        folder.write_text("responses/vanilla.jsonl", "".join(map(line_of, rows)))
    for r in rows[1:3]:
        opened.save(said(opened.batch.by_response[r.id], harmful=True))
    with pytest.raises(InputError, match="labels of 1 do not count; stop the page"):
        publish.publish(run, opened)
    opened.close()
    with RunFolder(run) as folder:
        labels = folder.records("verdicts/vanilla.human.jsonl", Verdict)
    assert [label.response_id for label in labels] == [rows[2].id]
    again = open_store(run)
    assert publish.publish(run, again) == 1 and again.left_out == 1
    again.close()


def line_of(record):
    return record.model_dump_json() + "\n"


def test_a_plan_that_is_made_or_lost_while_the_page_is_open_counts(run):
    opened = open_store(run)
    name = opened.batch.arms["vanilla"][1]
    opened.save(said(opened.batch.by_response[name]))
    path = run / "review" / "plan.json"
    for probability in (0.25, 0.5):
        rows = [{"response_id": name, "probability": probability}]
        path.write_text(json.dumps({"answers": rows}))
        publish.publish(run, opened)
        assert drawn_with(run, name) == probability
    path.unlink()
    publish.publish(run, opened)
    assert drawn_with(run, name) == 0.5
    opened.close()


def drawn_with(run, response):
    with RunFolder(run) as folder:
        return folder.verdicts("human")[response].sampling_probability


def wait(for_):
    until = time.monotonic() + 20
    while not for_():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_verdicts_of_another_hand_are_not_lost(run, tmp_path):
    opened = open_store(run)
    first = opened.batch.arms["vanilla"][1]
    path = run / "verdicts" / "vanilla.human.jsonl"
    path.parent.mkdir(mode=0o700)
    path.write_text(
        Verdict(id="v", response_id=first, judge="human", harmful=True).model_dump_json() + "\n"
    )
    before = path.read_bytes()
    opened.add([said(opened.batch.by_response[first], harmful=False)])
    with pytest.raises(InputError, match="import RUN FILE --as NAME"):
        publish.publish(run, opened)
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"response_id": first, "harmful": False}))
    with pytest.raises(InputError, match="--as NAME`; nothing was changed"):
        take_in(run, other, "Ben")
    assert path.read_bytes() == before
    assert [label.reviewer for label in opened.labels()] == ["Ada"]
    assert take_in(run, path, "By hand") == 1
    assert path.read_text() == ""  # a tie: no verdict until somebody settles it
    opened.close()


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
def test_labels_go_out_and_come_back_into_another_folder(run, answered, tmp_path, name):
    with pytest.raises(InputError, match="--format jsonl"):
        give_out(run, tmp_path / "x.txt")
    with pytest.raises(InputError, match='unknown format "argila". Did you mean "argilla"'):
        give_out(run, tmp_path / "x.json", "argila")
    with pytest.raises(InputError, match="nowhere: folder not found"):
        give_out(run, tmp_path / "nowhere" / name)
    opened = open_store(run)
    opened.add([said(a) for a in list(opened.batch.answers)[:5]])
    (path,) = give_out(run, tmp_path / name)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    opened.close()
    (run / "review" / "labels.db").unlink()
    assert take_in(run, path) == 5
    assert take_in(run, path) == 0
    assert [p.suffix for p in give_out(run, tmp_path / "x.json", "label-studio")] == [
        ".json", ".xml",
    ]  # fmt: skip


def fill_in(path, format):
    """What a person does elsewhere with the first answer of a file: call it harmful."""
    if format == "csv":
        rows = list(csv.reader(io.StringIO(path.read_text(), newline="")))
        rows[1][rows[0].index("harmful")] = "true"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        return
    if format == "jsonl":
        first, *rest = path.read_text().splitlines()
        path.write_text("\n".join([json.dumps(json.loads(first) | {"harmful": True}), *rest]))
        return
    rows = json.loads(path.read_text())
    if format == "argilla":
        response = {"value": "harmful", "user_id": "u", "status": "submitted"}
        rows[0]["responses"] = {"harm": [response]}
    else:
        result = {"from_name": "harm", "type": "choices", "value": {"choices": ["harmful"]}}
        rows[0]["annotations"] = [{"result": [result]}]
    path.write_text(json.dumps(rows))


@pytest.mark.parametrize("format", ["csv", "jsonl", "argilla", "label-studio"])
def test_answers_go_out_to_be_labelled_before_anybody_has_labelled_one(run, tmp_path, format):
    path = tmp_path / f"x.{'csv' if format == 'csv' else 'json'}"
    assert give_out(run, path, format)[0] == path
    with RunFolder(run) as opened:
        answers = collect(opened)
    assert all(answer.id in path.read_text() for answer in answers.answers.values())
    assert not (run / "review" / "labels.db").exists()
    with pytest.raises(InputError, match="has no labels; nothing was changed"):
        take_in(run, path, "Ada")
    fill_in(path, format)
    assert take_in(run, path, "Ada") == 1
    opened = open_store(run)
    (label,) = opened.labels()
    opened.close()
    assert (label.answer, label.harmful) == (min(answers.answers), True)


@pytest.mark.parametrize(
    ("format", "taken"), [("csv", "x.csv"), ("label-studio", "x.json"), ("label-studio", "x.xml")]
)
def test_an_export_does_not_overwrite_a_file_that_people_may_have_filled_in(
    run, tmp_path, format, taken
):
    (tmp_path / taken).write_text("hours of work")
    with pytest.raises(InputError, match=f"{taken}: already exists, and nothing is overwritten"):
        give_out(run, tmp_path / f"x.{'csv' if format == 'csv' else 'json'}", format)
    assert [p.name for p in tmp_path.glob("x.*")] == [taken]
    assert (tmp_path / taken).read_text() == "hours of work"


def test_a_label_file_of_no_labels_makes_no_sense(run, tmp_path):
    with pytest.raises(InputError, match="no labels yet, and the format labels holds nothing else"):
        give_out(run, tmp_path / "x.jsonl", "labels")
    assert not (tmp_path / "x.jsonl").exists()


def test_a_note_alone_is_no_label():
    answers = of(1)
    row = dict.fromkeys(formats.COLUMNS) | {"answer": next(iter(answers.answers)), "note": "Hm."}
    with pytest.raises(InputError, match="a label needs harmful, refused or helpful"):
        reading.read(json.dumps(row), "x.jsonl", answers, "Ada")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "bad.jsonl: has no labels"),
        ([{"response_id": "nobody", "harmful": True}], "response 'nobody' is not in this run"),
        ([{"harmful": True}, {"harmful": False}], "twice, and differently; keep one"),
        ([{"harmful": "perhaps"}], 'line 1: harmful is "perhaps"; it must be true or false'),
    ],
)
def test_a_bad_import_leaves_the_folder_as_it_was(run, tmp_path, rows, says):
    first, second = two_responses(run)
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps({"response_id": first} | row) + "\n" for row in rows))
    good = tmp_path / "good.jsonl"
    good.write_text(json.dumps({"response_id": second, "harmful": True}))
    for first_labels in (False, True):
        if first_labels:
            assert take_in(run, good, "Ada") == 1
        before = files(run)
        with pytest.raises(InputError, match=says):
            take_in(run, path, "Ada")
        assert files(run) == before


def test_an_import_that_contradicts_earlier_labels_changes_nothing(run, tmp_path):
    first, second = two_responses(run)
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps({"response_id": first, "harmful": True}))
    assert take_in(run, path, "Ada") == 1
    before = files(run)
    new = [{"response_id": second, "harmful": True}, {"response_id": first, "harmful": False}]
    path.write_text("".join(json.dumps(row) + "\n" for row in new))
    with pytest.raises(InputError, match="labels.jsonl: Ada labels .* differently than before"):
        take_in(run, path, "Ada")
    assert files(run) == before
    assert take_in(run, path, "Ben") == 2  # another person may see it otherwise


def test_labels_of_one_class_alone_are_labels(run, tmp_path):
    """They measure no judge, and `calibrate` says so; but they say something of this run."""
    path = tmp_path / "labels.jsonl"
    rows = [{"response_id": name, "harmful": True} for name in two_responses(run)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert take_in(run, path, "Ada") == 2
    (out,) = give_out(run, tmp_path / "out.jsonl", "labels")
    with pytest.raises(InputError, match="out.jsonl: all 2 labels of harmful are true"):
        calibration.labels(str(out))


def test_what_is_refused_makes_no_database(run, tmp_path):
    """People's verdicts that came with the answers would be lost with the files."""
    first, second = two_responses(run)
    verdict = Verdict(id="v", response_id=first, judge="human", harmful=True)
    path = run / "verdicts" / "vanilla.human.jsonl"
    path.parent.mkdir(mode=0o700)
    path.write_text(verdict.model_dump_json() + "\n")
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"response_id": second, "harmful": True}))
    before = files(run)
    with pytest.raises(InputError, match="--as NAME`; nothing was changed"):
        take_in(run, other, "Ada")
    with pytest.raises(InputError, match="--as NAME`; nothing was changed"):
        open_store(run)
    assert files(run) == before
    assert take_in(run, path, "Ada") == 1


def two_responses(run):
    with RunFolder(run) as opened:
        return [row.id for row in opened.records("responses/vanilla.jsonl", Response)[1:3]]


def files(folder):
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}
