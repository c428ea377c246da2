"""Setbacks from chat logs: judged, selected, labeled, and read again as training data."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from setbacks.cli.arguments import judge_recipe
from setbacks.errors import InputError
from setbacks.loop.harvest import harvest, recipe_of
from setbacks.loop.harvest.clusters import clusters
from setbacks.loop.harvest.result import write
from setbacks.loop.harvest.retention import expire, learned_from_logs
from setbacks.loop.harvest.selection import finding
from setbacks.loop.harvest.settings import Settings
from setbacks.loop.logs import Logs
from setbacks.pipeline import open_run
from setbacks.recipe import Recipe, Source
from setbacks.records import Example, Message, Mistake, Response, Verdict
from setbacks.stages.induce import existing

# A judge of another package: an answer says how likely it is to be harmful, and to refuse.
JUDGE = """
import re

from setbacks.judges import Judge, Opinion

seen = []  # every answer that was judged
broken_from = []  # number of answers after which it fails


class Marks(Judge):
    def judge(self, items):
        if broken_from and len(seen) >= broken_from[0]:
            raise RuntimeError("the judge fell over")
        seen.extend(items)
        return [self.opinion(item.response) for item in items]

    def plan(self, items):
        return [list(range(start, min(start + 4, len(items)))) for start in range(0, len(items), 4)]

    def opinion(self, text):
        harm, refusal = (float(re.search(f"{name}=([0-9.]+)", text)[1]) for name in ("h", "r"))
        return Opinion(harm >= 0.5, refusal >= 0.5, harm, refusal)
"""

TOPICS = "badger otter heron lizard salmon beetle falcon walrus".split()


@pytest.fixture
def marks(tmp_path, monkeypatch):
    """The module of the judge, found through its entry point."""
    import importlib

    from setbacks.plugins import installed

    folder = tmp_path / "judge"
    (folder / "marks-1.0.dist-info").mkdir(parents=True)
    (folder / "marks_for_setbacks.py").write_text(JUDGE)
    (folder / "marks-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: marks\nVersion: 1.0\n"
    )
    (folder / "marks-1.0.dist-info" / "entry_points.txt").write_text(
        "[setbacks.judges]\nmarks=marks_for_setbacks:Marks\n"
    )
    monkeypatch.syspath_prepend(folder)
    installed.cache_clear()
    yield importlib.import_module("marks_for_setbacks")
    del sys.modules["marks_for_setbacks"]
    installed.cache_clear()


def ask(topic):
    return f"What does a {topic} eat in winter when there is snow on the hills?"


def row(prompt, harm, refusal, **more):
    answer = f"PLACEHOLDER h={harm} r={refusal}"
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **more}


def log(path, rows):
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(path)


@pytest.fixture
def chats(tmp_path):
    """One answer of each kind: harmful, a refusal, two doubtful ones, and a good one."""
    outcomes = [(0.9, 0.1), (0.1, 0.95), (0.55, 0.1), (0.1, 0.4), (0.05, 0.05)]
    rows = [row(ask(t), *p) for t, p in zip(TOPICS, outcomes, strict=False)]
    return log(tmp_path / "chat.jsonl", rows)


def run(out, *sources, **settings):
    recipe = recipe_of(judge_recipe("marks"), out)
    return harvest(recipe, out, Logs(sources), Settings(**settings))


def setbacks(out):
    return [json.loads(line) for line in (out / "setbacks.jsonl").read_text().splitlines()]


def contents(folder):
    times = ("costs.jsonl", "run.log")
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in times)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_both_kinds_of_setbacks_are_kept_and_the_doubtful_wait(marks, tmp_path, chats):
    about = run(tmp_path / "out", chats, safe=True)
    harmful, refusal = setbacks(tmp_path / "out")
    assert harmful["text"] == ask("badger") and refusal["text"] == ask("otter")
    assert (harmful["harmful"], harmful["refused"], harmful["kind"]) == (True, False, "harmful")
    assert (refusal["harmful"], refusal["refused"], refusal["kind"]) == (False, True, "refusal")
    assert refusal["p_refused"] == 0.95 and refusal["source"] == "harvested:chat.jsonl"
    assert about["setbacks"] == {"harmful": 1, "refusal": 1} and about["waiting"] == 2


def test_a_refusal_counts_only_if_the_request_is_known_to_be_safe(marks, tmp_path):
    rows = [
        row(ask("badger"), 0.1, 0.9),
        row(ask("otter"), 0.1, 0.9, prompt_harmful=False),
        row(ask("heron"), 0.1, 0.9, prompt_harmful=True),
    ]
    source = log(tmp_path / "chat.jsonl", rows)
    about = run(tmp_path / "a", source)
    assert [one["text"] for one in setbacks(tmp_path / "a")] == [ask("otter")]
    assert about["counts"]["unknown"] == 1
    run(tmp_path / "b", source, safe=True)
    assert [one["text"] for one in setbacks(tmp_path / "b")] == [ask("badger"), ask("otter")]


@pytest.mark.parametrize(
    ("verdict", "unsure", "expected"),
    [
        ({"harmful": True}, 0.2, ("harmful", None, False)),
        ({"harmful": False, "refused": False}, 0.2, None),
        ({"p_harmful": 0.69}, 0.2, ("harmful", 0.69, True)),
        ({"p_harmful": 0.31}, 0.2, ("harmful", 0.31, True)),
        ({"p_harmful": 0.29}, 0.2, None),
        ({"p_harmful": 0.3}, 0.2, None),
        ({"p_harmful": 0.0}, 0.5, None),
        ({"p_harmful": 1.0}, 0.5, ("harmful", 1.0, False)),
        ({"p_harmful": 0.49}, 0, None),
        ({"p_harmful": 0.5}, 0, ("harmful", 0.5, False)),
        ({"p_harmful": 0.6, "p_refused": 0.9}, 0.2, ("refusal", 0.9, False)),
        ({"p_harmful": 0.8, "p_refused": 0.9}, 0.2, ("refusal", 0.9, False)),
        ({"p_harmful": 0.9, "p_refused": 0.8}, 0.2, ("harmful", 0.9, False)),
    ],
)
def test_what_is_wrong_with_an_answer(verdict, unsure, expected):
    assert finding(Verdict(id="", response_id="", judge="", **verdict), True, unsure) == expected


def test_repeats_and_prompts_of_suites_and_of_earlier_rounds_are_dropped(marks, tmp_path):
    suite = log(tmp_path / "suite.jsonl", [{"text": ask("salmon")}])
    recipe = {
        "respond": {"suites": [{"name": "mine", "kind": "harmful", "sources": [suite]}]},
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(recipe))
    seen = tmp_path / "seen"
    seen.mkdir()
    (seen / "recipe.yaml").write_text("{}")
    turns = [Message(role="user", content=ask("heron"))]
    example = Example(id="1", kind="safe", prompt=turns, completion="PLACEHOLDER", parents=[])
    (seen / "training.jsonl").write_text(example.model_dump_json() + "\n")
    rows = [
        row(ask("badger"), 0.9, 0),
        row(ask("badger"), 0.9, 0),  # an exact repeat
        row(ask("badger").upper(), 0.8, 0),
        row("Please tell me. " + ask("badger") + " Thanks.", 0.9, 0),
        row(ask("heron"), 0.9, 0),
        row(ask("salmon") + " ", 0.9, 0),
        row(built_in_prompt(), 0.9, 0),
        row(ask("walrus"), 0.9, 0),
    ]
    out = tmp_path / "out"
    about = run(
        out,
        log(tmp_path / "chat.jsonl", rows),
        seen=[seen],
        against=[str(tmp_path / "mine.yaml")],
    )
    kept = {one["text"]: one["times"] for one in setbacks(out)}
    assert kept == {ask("badger"): 2, ask("walrus"): 1}
    counts = about["counts"]
    assert [counts[name] for name in ("repeats", "near", "seen", "suites")] == [1, 2, 1, 2]
    with pytest.raises(InputError, match="not a run that trained a model"):
        run(tmp_path / "other", str(tmp_path / "chat.jsonl"), seen=[tmp_path])


def test_test_and_validation_prompts_are_dropped_whatever_their_number(marks, tmp_path):
    """Those of the built-in sets beyond the default limits, and those of a recipe's loop."""
    from setbacks.data import load

    parts = [("redteam", "test"), ("redteam", "validation"), ("twins", "validation")]
    parts += [("safe", "test"), ("redteam_zh", "test"), ("hijacking", "validation")]
    sources = [Source(source=f"builtin:{name}", split=split) for name, split in parts]
    prompts = [load(source)[-1].text for source in sources]
    suite = {
        "name": "mine",
        "kind": "safe",
        "sources": [log(tmp_path / "a.jsonl", [{"text": "V?"}])],
    }
    recipe = {
        "loop": {"validation": [suite]},
        "held_out": [log(tmp_path / "b.jsonl", [{"text": "H?"}])],
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(recipe))
    trained = load(Source(source="builtin:redteam", split="train"))[0].text
    rows = [row(text, 0.9, 0) for text in (*prompts, "V?", "H?", trained)]
    out = tmp_path / "out"
    about = run(out, log(tmp_path / "chat.jsonl", rows), against=[str(tmp_path / "mine.yaml")])
    assert [one["text"] for one in setbacks(out)] == [trained]
    assert about["counts"]["suites"] == 8


def test_a_greeting_in_common_makes_no_repeat_but_a_test_prompt_in_any_turn_does(marks, tmp_path):
    hello = [{"role": "user", "content": "Hello!"}]
    answer = {"role": "assistant", "content": "PLACEHOLDER h=0.9 r=0"}

    def later(text):
        return {"messages": [*hello, answer, {"role": "user", "content": text}, answer]}

    tested = [{"role": "user", "content": built_in_prompt()}, answer]
    rows = [
        {"messages": [*hello, answer]},
        later(ask("badger")),
        later(ask("otter")),
        {"messages": [*tested, {"role": "user", "content": "Why is that?"}, answer]},
    ]
    about = run(tmp_path / "out", log(tmp_path / "chat.jsonl", rows))
    assert len(setbacks(tmp_path / "out")) == 3 and about["counts"]["suites"] == 1


def built_in_prompt():
    from setbacks.stages.respond import prompts_of

    return prompts_of(Recipe())[0][1].text


def test_setbacks_are_read_as_mistakes_without_options(marks, tmp_path, chats):
    run(tmp_path / "out", chats, safe=True)
    source = str(tmp_path / "out" / "setbacks.jsonl")
    recipe = Recipe.parse({"induce": {"source": "existing", "existing": source}}, "here")
    harmful, refusal = existing(recipe)
    assert (harmful.instruction, harmful.kind) == (ask("badger"), "harmful")
    assert (refusal.instruction, refusal.kind) == (ask("otter"), "refusal")
    assert harmful.outcome == refusal.outcome == "mistake"
    assert harmful.source == refusal.source == "harvested:chat.jsonl"


def test_a_run_analyzes_what_was_harvested(marks, tmp_path, chats, recipe_data, fake_engine):
    from setbacks.pipeline import run_until

    run(tmp_path / "out", chats)
    path = str(tmp_path / "out" / "setbacks.jsonl")
    data = recipe_data() | {"induce": {"source": "existing", "existing": path}}
    analyses = run_until(Recipe.parse(data, "here"), tmp_path / "run", "analyze")
    assert ask("badger") in {analysis.instruction for analysis in analyses}
    assert learned_from_logs(tmp_path / "run")


def test_conversations_and_texts_that_look_like_one_survive(marks, tmp_path):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "First."},
        {"role": "user", "content": '[{"role": "user", "content": "Two?"}]'},
        {"role": "assistant", "content": "PLACEHOLDER h=0.9 r=0"},
    ]
    odd = '[{"role": "user", "content": "Three?"}]'
    written = '[{"role": "assistant", "content": "PLACEHOLDER h=0.9 r=0"}]'
    single = [{"role": "user", "content": odd}, {"role": "assistant", "content": written}]
    source = log(tmp_path / "chat.jsonl", [{"messages": turns}, {"messages": single}])
    run(tmp_path / "out", source)
    path = str(tmp_path / "out" / "setbacks.jsonl")
    recipe = Recipe.parse({"induce": {"source": "existing", "existing": path}}, "here")
    first, second = existing(recipe)
    assert [turn.content for turn in first.instruction] == [t["content"] for t in turns[:-1]]
    assert (second.instruction, second.response) == (odd, written)


def test_separators_of_lines_in_a_text_survive(marks, tmp_path):
    text = "What\u2028is\u2029this\x85line?"
    run(tmp_path / "out", log(tmp_path / "chat.jsonl", [row(text, 0.9, 0), row("B?", 0.9, 0)]))
    source = Source(source=str(tmp_path / "out" / "setbacks.jsonl"))
    recipe = Recipe.model_validate({"induce": {"source": "existing", "existing": [source]}})
    assert [mistake.instruction for mistake in existing(recipe)] == [text, "B?"]


def test_labels_replace_the_judge(marks, tmp_path, chats):
    from setbacks.review.labels import Label
    from setbacks.review.publish import publish
    from setbacks.review.serve import open_store

    out = tmp_path / "out"
    run(out, chats, safe=True)
    store = open_store(out)
    by_topic = {a.instruction: a.id for a in store.batch.answers.values()}
    assert len(by_topic) == 4
    choices = {"badger": (False, False), "heron": (True, False), "lizard": (False, True)}
    for topic, (harmful, refused) in choices.items():
        made = {"answer": by_topic[ask(topic)], "reviewer": "Ada", "made_at": 1.0}
        store.add([Label(**made, harmful=harmful, refused=refused)])
    publish(out, store)
    store.close()
    with open_run(out) as folder:
        about = write(folder)
    kinds = {one["text"]: one["kind"] for one in setbacks(out)}
    assert kinds == {ask("otter"): "refusal", ask("heron"): "harmful", ask("lizard"): "refusal"}
    assert about["waiting"] == 0


def test_a_label_of_harm_alone_leaves_the_refusal_to_the_judge(marks, tmp_path, chats):
    out = tmp_path / "out"
    run(out, chats, safe=True)
    with open_run(out) as folder:
        labels = [
            Verdict(id=r.id, response_id=r.id, judge="human", harmful=False)
            for r in folder.records("responses/logs.jsonl", Response)
        ]
        folder.journal("verdicts/logs.human.jsonl", Verdict).write(labels)
        about = write(folder)
    assert {one["text"]: one["kind"] for one in setbacks(out)} == {ask("otter"): "refusal"}
    assert about["waiting"] == 1, "a doubtful refusal still waits"


def test_the_review_begins_where_the_judge_is_unsure(marks, tmp_path, chats):
    from setbacks.review.answers import collect, queue
    from setbacks.runs.folder import Run

    run(tmp_path / "out", chats, safe=True)
    batch = collect(Run(tmp_path / "out"))
    asked = [answer.instruction for answer in queue(batch, "Ada")]
    assert asked == [ask(topic) for topic in ("heron", "lizard", "badger", "otter")]


def test_a_harvest_that_was_stopped_ends_with_the_same_bytes(marks, tmp_path):
    rows = [row(f"{ask(t)} {n}", 0.1 + 0.8 * (n % 2), 0.9) for n in range(3) for t in TOPICS]
    source = log(tmp_path / "chat.jsonl", rows)
    out = tmp_path / "here" / "out"
    run(out, source)
    whole = contents(out)
    judged = len(marks.seen)
    out.rename(tmp_path / "whole")
    marks.seen.clear()
    marks.broken_from.append(10)
    with pytest.raises(RuntimeError):
        run(out, source)
    assert not (out / "setbacks.jsonl").exists()
    marks.broken_from.clear()
    run(out, source)
    assert contents(out) == whole
    assert len(marks.seen) == judged, "nothing is judged twice"


@pytest.mark.slow
def test_a_killed_harvest_ends_with_the_same_bytes(marks, tmp_path, command, environment):
    """The real command, killed while it judges, at several places."""
    folder = tmp_path / "judge"
    module = folder / "marks_for_setbacks.py"
    text = module.read_text().replace(
        "        seen.ext", "        time.sleep(0.05)\n        seen.ext"
    )
    module.write_text("import time\n" + text)
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), environment["PYTHONPATH"]])
    rows = [row(f"{ask(t)} {n}", 0.1 + 0.8 * (n % 2), 0.9) for n in range(20) for t in TOPICS]
    log(tmp_path / "chat.jsonl", rows)
    words = [*command, "harvest", "chat.jsonl", "--out", "out", "--judge", "marks", "--no-redact"]
    child = {"cwd": tmp_path, "env": environment, "stderr": subprocess.DEVNULL}
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, **child)
    whole = contents(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "whole")
    scanned = tmp_path / "out" / "scanned.jsonl"
    for least in (1, 4000, 12000):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, **child)
        while not (scanned.exists() and scanned.stat().st_size >= least):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, **child)
    assert contents(tmp_path / "out") == whole


def test_a_folder_of_another_harvest_is_refused_and_stays(marks, tmp_path, chats):
    out = tmp_path / "out"
    run(out, chats)
    before = contents(out)
    with pytest.raises(InputError, match="holds another harvest .unsure: 0.2 -> 0.1"):
        run(out, chats, unsure=0.1)
    Path(chats).write_text(Path(chats).read_text().replace("badger", "wombat"))
    with pytest.raises(InputError, match="the logs have changed since this harvest began"):
        run(out, chats)
    assert contents(out) == before


def test_a_log_that_grew_is_refused_and_the_old_one_still_fits(marks, tmp_path):
    rows = [row(ask(topic), 0.9, 0.1) for topic in TOPICS[:4]]
    source, out = log(tmp_path / "chat.jsonl", rows), tmp_path / "out"
    run(out, source)
    before = contents(out)
    for changed in ([*rows, row(ask("walrus"), 0.9, 0.1)], [*rows, rows[0]]):
        log(tmp_path / "chat.jsonl", changed)
        with pytest.raises(InputError, match="the logs have changed since this harvest began"):
            run(out, source)
        assert contents(out) == before
    log(tmp_path / "chat.jsonl", rows)
    recipe = recipe_of(judge_recipe("marks"), out)
    fields = {"text": "messages", "response": "messages"}
    with pytest.raises(InputError, match=r"\(fields\.text: \(not set\) -> messages"):
        harvest(recipe, out, Logs([source], fields), Settings())
    run(out, source)
    assert contents(out) == before


def test_every_answer_is_judged_once(marks, tmp_path, chats):
    from setbacks.runs.session import Session
    from setbacks.stages.judge import judge
    from setbacks.stages.respond import respond

    out = tmp_path / "out"
    run(out, chats, safe=True)
    assert len(marks.seen) == 5
    before = contents(out)
    with open_run(out) as folder, Session(folder) as session:
        verdicts = judge(session, respond(session))["logs", "marks"]
    assert sorted(v.p_harmful for v in verdicts) == [0.1, 0.1, 0.55, 0.9]
    assert len(marks.seen) == 5 and contents(out) == before


def test_a_log_without_setbacks_gives_none(marks, tmp_path, cli_in_process):
    source = log(tmp_path / "chat.jsonl", [row(ask("badger"), 0.1, 0.1)])
    about = run(tmp_path / "out", source)
    assert (about["setbacks"], about["waiting"]) == ({}, 0)
    assert setbacks(tmp_path / "out") == []


def test_everything_is_private(marks, tmp_path, chats):
    run(tmp_path / "out", chats)
    for path in (tmp_path / "out", *(tmp_path / "out").rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
    assert "PLACEHOLDER" not in (tmp_path / "out" / "scanned.jsonl").read_text()
    assert "PLACEHOLDER" not in (tmp_path / "out" / "harvest.html").read_text()


def test_prompts_are_on_the_page_behind_a_click_and_nowhere_else(marks, tmp_path, cli_in_process):
    hostile = ask("badger") + " <script>\u202e"
    log(tmp_path / "chat.jsonl", [row(hostile, 0.9, 0)])
    words = ("--out", "out", "--judge", "marks", "--no-redact", "-q")
    ran = cli_in_process("harvest", "chat.jsonl", *words)
    assert "badger" not in ran.stdout
    page = (tmp_path / "out" / "harvest.html").read_text()
    before, _, after = page.partition("<details>")
    assert "badger" not in before and "badger" in after.partition("</details>")[0]
    assert "<script>" not in page and "⟨U+202E⟩" in page
    assert "badger" not in (tmp_path / "out" / "findings.json").read_text()


def test_expired_texts_are_deleted(marks, tmp_path, chats, caplog):
    late, early = tmp_path / "harvests" / "late", tmp_path / "harvests" / "early"
    run(late, chats)
    run(early, chats)
    about = json.loads((early / "harvest.json").read_text())
    yesterday = (datetime.now(UTC).date() - timedelta(1)).isoformat()
    (early / "harvest.json").write_text(json.dumps(about | {"expires": yesterday}))
    with open_run(early) as folder:
        write(folder)
    assert "its texts expired on" in caplog.text
    before = contents(late)
    assert [one[0::2] for one in expire(tmp_path / "harvests")] == [(early, True), (late, False)]
    assert contents(late) == before
    assert {path.name for path in early.iterdir()} <= {"harvest.json", ".lock"}
    assert [deleted for *_, deleted in expire(tmp_path / "harvests")] == [False, False]
    with pytest.raises(InputError, match="has no harvest"):
        list(expire(tmp_path / "judge"))


def test_a_harvest_with_a_problem_does_not_keep_others_from_expiring(
    marks, tmp_path, chats, cli_in_process
):
    folders = [tmp_path / "harvests" / name for name in ("a-busy", "b-list", "c-torn", "d-due")]
    for folder in (folders[0], folders[3]):
        run(folder, chats)
        held = json.loads((folder / "harvest.json").read_text())
        (folder / "harvest.json").write_text(json.dumps(held | {"expires": "2020-01-01"}))
    for folder, text in zip(folders[1:3], ("[]", "{"), strict=True):
        folder.mkdir()
        (folder / "harvest.json").write_text(text)
    with open_run(folders[0]):
        ran = cli_in_process("harvest", "--expire", "harvests")
    assert ran.returncode == 1 and ran.stdout == "harvests/d-due: texts deleted\n"
    assert ran.stderr.startswith("setbacks: 3 of 4 harvests not checked: harvests/a-busy")
    for name in ("b-list", "c-torn"):
        assert f"harvests/{name}/harvest.json: damaged; delete the folder" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert (folders[0] / "setbacks.jsonl").exists() and not (folders[3] / "setbacks.jsonl").exists()


def test_what_learned_from_logs_is_known_by_its_mistakes_its_data_or_its_start(tmp_path):
    runs = {}
    for name, data in {
        "plain": {},
        "data": {"train": {"safe": [str(tmp_path / "harvest" / "setbacks.jsonl")]}},
        "later": {"train": {"start": str(tmp_path / "mistakes" / "adapter")}},
        "current": {"adapter": str(tmp_path / "later" / "adapter")},
        "replayed": {"train": {"replay": {"runs": [str(tmp_path / "data")]}}},
        "mistakes": {},
    }.items():
        runs[name] = tmp_path / name
        runs[name].mkdir()
        (runs[name] / "recipe.yaml").write_text(json.dumps(data))
    (tmp_path / "harvest").mkdir()
    (tmp_path / "harvest" / "harvest.json").write_text("{}")
    mistake = Mistake(
        id="1",
        instruction_id="2",
        instruction="PLACEHOLDER",
        response="PLACEHOLDER",
        outcome="mistake",
        attempt=0,
        hint=None,
        category=None,
        language="en",
        source="harvested:chat.jsonl",
        model=None,
    )
    (runs["mistakes"] / "mistakes.jsonl").write_text(mistake.model_dump_json() + "\n")
    learned = {name for name, folder in runs.items() if learned_from_logs(folder)}
    assert learned == {*runs} - {"plain"}


def test_a_push_of_what_learned_from_logs_must_be_asked_for_twice(
    tmp_path, cli_in_process, monkeypatch
):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "harvest.json").write_text("{}")
    recipe = {"train": {"safe": [str(folder / "setbacks.jsonl")]}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    words = ("export", folder, "--to", tmp_path / "to", "--push", "me/mine")
    ran = cli_in_process(*words)
    assert ran.returncode == 2 and "add --harvested to push it" in ran.stderr
    ran = cli_in_process(*words, "--harvested")
    assert "learned from harvested" not in ran.stderr and "HF_TOKEN" in ran.stderr


def test_clusters_are_named_by_typical_words():
    texts = [f"How do I bake a chocolate cake for {n} guests?" for n in [100] * 12]
    texts += [f"Which tyres fit a bicycle with {n} gears?" for n in range(12)]
    texts += [f"巧克力蛋糕怎么做才好吃第{n}次" for n in "一二三四五六七八九十甲乙"]
    names = clusters(texts)
    assert names == clusters(texts)
    assert not {*names[:12]} & {*names[12:24]} and not {*names[12:24]} & {*names[24:]}
    assert all("cake" in name or "chocolate" in name or "bake" in name for name in names[:12])
    assert all(pair in texts[24] for name in names[24:] for pair in name.split(", "))
    assert "100" not in " ".join(names), "a number is no topic"
    assert clusters(texts[:3]) == ["all"] * 3


def test_without_presidio_nothing_is_read_unless_one_opts_out(
    marks, tmp_path, chats, cli_in_process, monkeypatch
):
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    ran = cli_in_process("harvest", chats, "--out", "out", "--judge", "marks")
    assert ran.returncode == 2 and "pip install 'setbacks[redact]'" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_personal_data_reaches_neither_the_judge_nor_the_folder(marks, tmp_path):
    def redactor(prompt, answer):
        return prompt.replace("Ada", "<PERSON>"), answer.replace("Ada", "<PERSON>")

    redactor.pipeline = None
    rows = [row(ask("badger") + " I am Ada.", 0.9, 0)]
    rows[0]["messages"][1]["content"] += " Hello Ada."
    source = log(tmp_path / "chat.jsonl", rows)
    run(tmp_path / "out", source, redactor=redactor)
    (item,) = marks.seen[:1]
    assert "Ada" not in item.instruction + item.response and "<PERSON>" in item.response
    assert not [path for path, text in contents(tmp_path / "out").items() if b"Ada" in text]
    (kept,) = setbacks(tmp_path / "out")
    assert kept["text"].endswith("I am <PERSON>.") and kept["response"].endswith("Hello <PERSON>.")


def test_redaction_does_not_hide_a_test_prompt(marks, tmp_path):
    """Only the logged text is the test prompt: a mark takes the place of every word of it."""

    def redactor(prompt, answer):
        return "<URL>" if prompt == built_in_prompt() else prompt, answer

    redactor.pipeline = None
    rows = [row(built_in_prompt(), 0.9, 0), row(ask("badger"), 0.9, 0)]
    about = run(tmp_path / "out", log(tmp_path / "chat.jsonl", rows), redactor=redactor)
    assert [one["text"] for one in setbacks(tmp_path / "out")] == [ask("badger")]
    assert about["counts"]["suites"] == 1


def test_a_broken_entry_leaves_nothing_of_itself_in_the_folder(marks, tmp_path):
    broken = row(ask("otter"), 0.9, 0)
    broken["messages"][0]["content"] = {"secret": "Ada"}
    source = log(tmp_path / "chat.jsonl", [row(ask("badger"), 0.9, 0), broken])
    run(tmp_path / "out", source)
    texts = [path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert any("not readable as a conversation; the first is line 2" in text for text in texts)
    assert not any("Ada" in text for text in texts)


def test_on_the_command_line(marks, tmp_path, chats, cli_in_process):
    words = ("harvest", chats, "--out", "out", "--judge", "marks", "--no-redact", "--safe", "-q")
    ran = cli_in_process(*words)
    assert ran.returncode == 0, ran.stderr
    assert "1 harmful answer and 1 refusal of safe requests, of 5 logged" in ran.stdout
    assert "to label: setbacks review serve out" in ran.stdout
    again = cli_in_process("harvest", "--out", "out", "--json")
    assert json.loads(again.stdout)["setbacks"] == {"harmful": 1, "refusal": 1}
    ran = cli_in_process("harvest", "--expire", ".")
    assert ran.stdout.startswith("out: expires on 20")
    for words, message in (
        (("harvest",), "name a folder for the harvest with --out"),
        (("harvest", "--out", "nothing"), "not a run folder"),
        (("harvest", "no.jsonl", "--out", "b", "--no-redact"), "no.jsonl: no such file or folder"),
        (
            ("harvest", chats, "--out", "b", "--judge", "vote", "of=[marks]", "--no-redact"),
            "a vote",
        ),
        (("harvest", "--out", "out", "--safe"), "--safe: name the logs too"),
        (
            ("harvest", chats, "--out", "b", "--no-redact", "--names", "en_core_web_sm"),
            "--names changes nothing with --no-redact",
        ),
        (("harvest", "judge.seed=1", "--out", "out"), "KEY.PATH=VALUE: name the logs too"),
        (("harvest", "--expire", ".", "--out", "out"), "--out: --expire takes no other options"),
    ):
        ran = cli_in_process(*words)
        assert ran.returncode == 2 and message in ran.stderr
        assert len(ran.stderr.splitlines()) == 1
    assert not os.path.exists("b")
