"""Replay: counts that hold for all conversations, whatever the shards, and nothing lost."""

import json

import pytest
from typer.testing import CliRunner

from setbacks.cli import app
from setbacks.cli.arguments import evaluation, replayed
from setbacks.errors import InputError
from setbacks.loop import replay as work
from setbacks.loop.logs import Logs
from setbacks.loop.replay import shard
from setbacks.loop.replay.report import findings, write_report
from setbacks.recipe import Recipe
from setbacks.records import Response, Verdict
from setbacks.runs.folder import Run


def chat(*turns, **more):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": t} for i, t in enumerate(turns)]} | more


@pytest.fixture
def log(tmp_path):
    """Write a log; text stays as it is."""

    def write(*rows, name="log.jsonl"):
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines))
        return str(path)

    return write


@pytest.fixture
def chats(log):
    """A log of 14 conversations by three users; four of them have the same prompt."""
    rows = [chat(f"Where is room {n}?", "Upstairs.", user=f"u{n % 3}") for n in range(10)]
    return log(*rows, *[chat("Hello.", "Hi.", user="u0")] * 4)


@pytest.fixture
def probed(fake_engine, fake_model):
    """A recipe in which a model that talks and one that refuses answer, judged by the probe."""
    arms = [{"name": name, "model": fake_model(name)} for name in ("talker", "refuser")]
    return Recipe.model_validate({"evaluate": arms, "respond": {"guidance": False}})


@pytest.fixture
def models(probed, fake_model):
    """The same, judged by a fake model, which is faster and says nothing about refusals."""
    judge = {"judge": "llm", "engine": fake_model("rater")}
    return Recipe.model_validate(probed.model_dump() | {"judges": [judge]})


def rate_of(replayed, arm, event):
    (rate,) = [rate for rate in replayed.rates if (rate.arm, rate.event) == (arm, event)]
    return rate


def outcomes(folder, clusters=False):
    """What is left of all shards, in order."""
    shards = [json.loads(path.read_text()) for path in sorted(folder.glob("shards/*.json"))]
    return [shard["arms"] for shard in shards]


def test_every_conversation_counts_and_each_prompt_is_answered_once(
    chats, probed, tmp_path, fake_engine
):
    result = work.replay(Logs([chats]), probed, tmp_path / "out")
    assert (result.conversations, result.prompts, result.clusters) == (14, 11, None)
    assert sum(len(requests) for requests, *_ in fake_engine.batches) == 2 * 11
    run = Run(tmp_path / "out" / "shards" / "00000")
    for arm in ("talker", "refuser"):
        verdicts = {v.response_id: v for v in run.records(f"verdicts/{arm}.probe.jsonl", Verdict)}
        times = {"Hello.": 4}
        harmful = sum(
            times.get(r.instruction, 1) * verdicts[r.id].harmful
            for r in run.records(f"responses/{arm}.jsonl", Response)
        )
        rate = rate_of(result, arm, "harmful")
        assert rate.judged.value == harmful / 14 and rate.judged.n == 14 and not rate.unscored
    refused = rate_of(result, "refuser", "refused")
    assert refused.judged.value == 1 and refused.at_most == 1
    (change,) = [change for change in result.changes if change.event == "refused"]
    assert (change.arm, change.against) == ("refuser", "talker")
    assert change.judged.value == 1 - rate_of(result, "talker", "refused").judged.value > 0.5
    assert change.true is not None and change.true.value >= change.judged.value


def test_shards_give_the_same_rates_as_one(chats, models, tmp_path):
    whole = work.replay(Logs([chats], cluster="user"), models, tmp_path / "whole")
    parts = work.replay(Logs([chats], cluster="user"), models, tmp_path / "parts", size=4)
    assert len(outcomes(tmp_path / "parts")) == 4
    assert parts.rates == whole.rates and parts.changes == whole.changes
    assert (parts.clusters, parts.largest) == (3, 8)
    alone = work.replay(Logs([chats]), models, tmp_path / "alone")
    by_user, by_chat = (rate_of(r, "refuser", "harmful").judged for r in (whole, alone))
    assert by_user.value == by_chat.value and by_user.high > by_chat.high


def test_a_shard_that_was_cut_is_named_with_what_to_do(chats, models, tmp_path):
    work.replay(Logs([chats]), models, tmp_path / "out")
    shard = tmp_path / "out" / "shards" / "00000.json"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-20])
    with pytest.raises(InputError, match=f"{shard}: damaged at line 1; delete it"):
        work.replay(Logs([chats]), models, tmp_path / "out")
    shard.unlink()
    work.replay(Logs([chats]), models, tmp_path / "out")
    assert shard.read_bytes() == whole


@pytest.mark.slow
def test_a_killed_replay_resumes_to_the_same_bytes(chats, models, tmp_path, fake_engine):
    def files(folder):
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*.json*"))
            if path.name not in ("costs.jsonl", "environment.json")
        }

    class Killed(BaseException):
        pass

    expected = work.replay(Logs([chats]), models, tmp_path / "a", size=5)
    steps = []
    work.replay(Logs([chats]), models, tmp_path / "b", 5, lambda *step: steps.append(step))
    for kill_at in range(2, len(steps), 8):

        def kill(*step, at=kill_at, seen=[0]):  # noqa: B006  counts the calls
            seen[0] += 1
            if seen[0] == at:
                raise Killed

        folder = tmp_path / f"killed-{kill_at}"
        with pytest.raises(Killed):
            work.replay(Logs([chats]), models, folder, 5, kill)
        assert work.replay(Logs([chats]), models, folder, 5) == expected
        same = {k: v.replace(b"/a/", b"/") for k, v in files(tmp_path / "a").items()}
        here = {k: v.replace(f"/{folder.name}/".encode(), b"/") for k, v in files(folder).items()}
        assert here == same
    fake_engine.batches.clear()
    assert work.replay(Logs([chats]), models, tmp_path / "a", 5) == expected
    assert fake_engine.batches == [], "what is done is not done again"


def test_only_a_shard_of_conversations_is_in_memory(chats, models, tmp_path, monkeypatch):
    """A log is read as far as the shard at work needs, and no further."""
    read = []

    class Watched(Logs):
        def __iter__(self):
            for logged in super().__iter__():
                read.append(logged)
                yield logged

    known = []
    answered = shard.carry_out
    monkeypatch.setattr(shard, "carry_out", lambda *a: known.append(len(read)) or answered(*a))
    work.replay(Watched([chats]), models, tmp_path / "out", size=4)
    assert known == [4, 8, 12, 14]


def test_lines_that_cannot_be_used_are_left_out_and_named(log, models, tmp_path, caplog):
    rows = [chat(f"Where is room {n}?", "Upstairs.") for n in range(5)]
    source = log(*rows[:2], '{"messages": [', *rows[2:], chat("Nobody answers?"))
    result = work.replay(Logs([source]), models, tmp_path / "out")
    assert result.conversations == 5
    assert "left out 1 entry: not JSON; the first is line 3" in caplog.text
    assert "left out 1 entry: no answer of the assistant; the first is line 7" in caplog.text


def test_a_log_without_answers_is_one_line(log, models, tmp_path):
    source = log(chat("Hello?"), chat("Anybody?"))
    with pytest.raises(InputError, match="has no logged answer: no answer of the assistant in 2"):
        work.replay(Logs([source]), models, tmp_path / "out")


def test_a_field_for_clusters_must_exist(chats, models, tmp_path):
    with pytest.raises(InputError, match=r'no field "usr" \(cluster\)\. Did you mean "user"\?'):
        work.replay(Logs([chats], cluster="usr"), models, tmp_path / "out")


def test_another_log_or_other_settings_are_refused(log, chats, models, tmp_path):
    folder = tmp_path / "out"
    work.replay(Logs([chats]), models, folder, size=5)
    with pytest.raises(InputError, match=r"other settings \(conversations_per_shard: 5 -> 6\)"):
        work.replay(Logs([chats]), models, folder, size=6)
    kept = (tmp_path / "log.jsonl").read_text().splitlines()
    for lines in (kept[:4], kept[:5], [kept[-1], *kept[1:]], [*kept[:-1]]):
        log(*lines)
        with pytest.raises(InputError, match="the logs have changed"):
            work.replay(Logs([chats]), models, folder, size=5)
    log(*kept)
    work.replay(Logs([chats]), models, folder, size=5)


def test_prompts_that_look_like_a_conversation_are_replayed(log, models, tmp_path):
    odd = ('[{"role": "user", "content": "Where is room 1?"}]', "Up\u2028or down\x85?", "  Up? ")
    result = work.replay(Logs([log(*[chat(text, "Up.") for text in odd])]), models, tmp_path / "a")
    assert result.conversations == 3
    path = tmp_path / "results.json"
    raw = json.dumps([{"role": "system", "content": ""}, {"role": "user", "content": "Up?"}])
    results = [{"prompt": {"raw": raw}, "provider": "p", "response": {"output": "Up."}}]
    path.write_text(json.dumps({"results": {"results": results}}))
    assert work.replay(Logs([str(path)]), models, tmp_path / "b").conversations == 1


def test_a_folder_with_other_files_is_refused_and_stays(chats, models, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir(mode=0o755)
    (folder / "report.html").write_text("mine")
    with pytest.raises(InputError, match="not empty, and not a replay; choose another"):
        work.replay(Logs([chats]), models, folder)
    assert [path.name for path in folder.iterdir()] == ["report.html"]
    assert folder.stat().st_mode & 0o777 == 0o755


def test_conversations_go_with_their_turns(log, models, tmp_path, fake_engine):
    """Only the last answer is replaced; what comes after it is left out."""
    folder = tmp_path / "out"
    source = log(chat("Hello.", "Hi.", "Where is room 1?", "Upstairs.", "Thanks."))
    recipe = models.model_copy(update={"evaluate": models.evaluate[1:]})
    work.replay(Logs([source]), recipe, folder)
    (row,) = Run(folder / "shards" / "00000").records("responses/refuser.jsonl", Response)
    assert [turn.content for turn in row.instruction] == ["Hello.", "Hi.", "Where is room 1?"]


def test_names_of_users_stay_in_the_log(log, models, tmp_path):
    source = log(*[chat(f"Room {n}?", "Up.", user="Jane Doe") for n in range(3)])
    work.replay(Logs([source], cluster="user"), models, tmp_path / "out")
    texts = [p.read_text() for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert not any("Jane" in text for text in texts)


def test_a_mistake_leaves_no_folder_that_takes_nothing_else(chats, log, models, tmp_path):
    arms = [{"name": "a", "model": "no-such-model"}]
    missing = Recipe.model_validate(models.model_dump() | {"evaluate": arms})
    for logs, recipe in ((chats, missing), (log(name="empty.jsonl"), models)):
        with pytest.raises(InputError):
            work.replay(Logs([logs]), recipe, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_the_page_and_the_file_have_the_numbers(chats, probed, tmp_path):
    folder = tmp_path / "out"
    result = work.replay(Logs([chats], cluster="user"), probed, folder)
    page = write_report(folder, result, ["log.jsonl"])
    data = json.loads((folder / "replay.json").read_text())
    assert data["conversations"] == 14 and data["clusters"] == 3
    row = next(r for r in data["rates"] if (r["arm"], r["event"]) == ("refuser", "refused"))
    assert row["judged"]["value"] == 1 and row["judged"]["n"] == 14
    text = page.read_text()
    assert "3 clusters, the largest with 8" in text and "10000.0" in text
    written = findings(result, ["log.jsonl"])
    assert any("refuser: probe calls 0 answers of 14 harmful" in line for line in written.answer)
    for path in (page, folder / "replay.json", folder / "settings.json"):
        assert path.stat().st_mode & 0o077 == 0


# The command line -------------------------------------------------------------------------------


def test_models_are_named_as_in_an_evaluation(tmp_path):
    logs, recipe = replayed("smollm2-135m,new=gemma3-270m", ["a.jsonl", "seed=3"])
    assert logs == ["a.jsonl"] and recipe.seed == 3
    assert [arm.name for arm in recipe.evaluate] == ["smollm2-135m", "new"]
    with pytest.raises(InputError, match="nothing to replay"):
        replayed("smollm2-135m", ["seed=3"])
    with pytest.raises(InputError, match="a file of answers; name a model"):
        replayed("old=answers.jsonl", ["a.jsonl"])


def test_a_run_folder_stands_for_its_model(tmp_path):
    run, model = tmp_path / "run", {"model": "m/m", "engine": "local", "system": "Be brief."}
    run.mkdir()
    recipe = Recipe.model_validate({"model": model, "train": {"method": "sft"}})
    (run / "recipe.yaml").write_text(recipe.to_yaml())
    before, after, named = evaluation([f"{run}:vanilla", str(run), f"x={run}:sft"]).evaluate
    assert (before.name, before.adapter, before.model.system) == ("vanilla", None, "Be brief.")
    assert (after.name, named.name) == ("run", "x")
    assert after.adapter == named.adapter == str(run / "adapter")
    assert after.model.model == "m/m"
    with pytest.raises(InputError, match=r'no arm "sft-guided" without guidance.*vanilla, sft$'):
        evaluation([f"{run}:sft-guided"])


def test_an_arm_of_an_evaluation_can_be_replayed_too(tmp_path):
    recipe = evaluation(["old=smollm2-135m", "new=gemma3-270m", "seed=1"])
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(recipe.to_yaml())
    (arm,) = evaluation([f"{run}:new"]).evaluate
    assert arm.model == recipe.evaluate[1].model
    with pytest.raises(InputError, match="has no trained arms. Name one as .*: old, new"):
        evaluation([str(run)])


def test_the_command_prints_the_rates(chats, fake_engine, fake_model, tmp_path):
    out = tmp_path / "out"
    spec = fake_model("refuser")
    words = ["replay", chats, "--models", spec["model"], "--out", str(out), "--json", "--quiet"]
    judge = "judges=[{judge: llm, engine: {model: %s, engine: rules}}]"
    keys = ["model.engine=rules", judge % fake_model("rater")["model"]]
    done = CliRunner().invoke(app, [*words, *keys])
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert data["conversations"] == 14 and data["changes"] == []
    assert {rate["event"] for rate in data["rates"]} == {"harmful", "refused", "degenerate"}
