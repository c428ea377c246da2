"""The loop: what each round starts from, what is accepted, what continues, and what is refused."""

import json

import pytest

from setbacks.errors import InputError
from setbacks.loop.rounds import (
    _alarms,
    _decided_again,
    _learnable,
    _next,
    _outcome,
    _recipe_of,
    carry_out,
    traffic,
)
from setbacks.loop.rounds.numbers import results
from setbacks.loop.rounds.state import Round, read_rounds
from setbacks.measure import RunInfo, measure
from setbacks.recipe import Loop, Recipe
from setbacks.records import Example, Response
from setbacks.runs.folder import Run

TELL_THE_TIME = {"costs.jsonl", "run.log", ".lock"}


def a_round(number, outcome="accepted", planned=3):
    return Round(number=number, planned=planned, outcome=outcome)


def texts(folder, arm):
    return [r.text for r in Run(folder).records(f"responses/{arm}.jsonl", Response)]


def records(folder):
    """Every file of records and decisions, with its bytes."""
    return {
        path: path.read_bytes()
        for path in [*folder.rglob("*.jsonl"), *folder.rglob("*.safetensors"), folder / "loop.json"]
        if path.name not in TELL_THE_TIME
    }


# A whole loop -----------------------------------------------------------------------------------


def test_each_round_continues_from_the_accepted_one_and_more_rounds_continue_the_loop(
    loop_recipe, tmp_path
):
    folder = tmp_path / "loop"
    carry_out(loop_recipe(rounds=1), folder)
    assert [one.outcome for one in read_rounds(folder)] == ["accepted"]
    before = records(folder)

    page = carry_out(loop_recipe(rounds=2), folder)
    after = records(folder)
    moved = [path for path in before if "final" in path.parts or path.name == "loop.json"]
    assert all(after[path] == data for path, data in before.items() if path not in moved)

    first, second = folder / "round-1", folder / "round-2"
    recipe = Run(second).recipe
    assert recipe.current == recipe.start == first / "adapter"
    assert recipe.train.replay.runs == [str(first)]
    assert recipe.seed == Run(first).recipe.seed + 1
    trained = "mistake_analysis"
    assert texts(second, "vanilla") == texts(first, trained) != texts(first, "vanilla")
    learned = Run(second).records("training.jsonl", Example)
    assert {x.replayed_from for x in learned} == {None, f"{recipe.name[:-1]}1"}
    assert [a.adapter for a in Run(folder / "stream-2").recipe.evaluate] == [str(recipe.adapter)]

    final = Run(folder / "final")
    arms = [(arm.name, arm.adapter) for arm in final.recipe.evaluate]
    assert arms == [
        ("before", None),
        ("round-1", str(first / "adapter")),
        ("round-2", str(second / "adapter")),
    ]
    assert json.loads((folder / "loop.json").read_text())["current"] == "round-2/adapter"
    data = json.loads((folder / "findings.json").read_text())
    assert data["answer"][0] == "The current model is that of round-2, 2 of 2 rounds accepted."
    assert "on the test prompts, its balanced safety is" in data["answer"][1].lower()
    assert [row["outcome"] for row in data["data"]["rounds"]] == ["accepted", "accepted"]
    assert "What decided" in page.read_text()

    carry_out(loop_recipe(rounds=2), folder)  # nothing is left to do
    assert records(folder) == after


def test_what_does_not_pass_the_gate_is_kept_and_ends_the_loop(loop_recipe, tmp_path):
    folder = tmp_path / "loop"
    page = carry_out(loop_recipe(stream=[], gate={"better": ["helpful_score:9"]}), folder)
    (one,) = read_rounds(folder)
    assert one.outcome in ("worse", "undecided") and one.evidence
    assert (folder / "round-1" / "adapter").is_dir()
    assert json.loads((folder / "loop.json").read_text())["current"] is None
    assert [arm.name for arm in Run(folder / "final").recipe.evaluate] == ["before"]
    assert "No round was accepted: the model stays as it was" in page.read_text()


# What decides -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "planned", "expected"),
    [
        ([], 3, 1),
        (["accepted"], 3, 2),
        (["accepted"] * 3, 3, None),
        (["accepted"] * 3, 4, 4),
        (["accepted", "undecided"], 3, None),
        (["accepted", "alarm"], 3, None),
        (["worse"], 4, 2),
        (["no setbacks"], 3, 2),
        (["accepted", "no setbacks", "no setbacks"], 3, None),
    ],
)
def test_a_round_that_is_not_accepted_ends_the_loop_until_more_are_planned(
    outcomes, planned, expected
):
    rounds = [a_round(number, outcome) for number, outcome in enumerate(outcomes, 1)]
    assert _next(Loop(rounds=planned), rounds) == expected


def test_harvested_sources_plan_rounds():
    assert Loop(rounds=1, harvest=["a.jsonl", "b.jsonl"]).planned == 2
    assert Loop(rounds=3, harvest=["a.jsonl"]).planned == 3


class Decided:
    def __init__(self, decision):
        self.decision = decision


def test_only_a_passed_gate_without_alarms_accepts_a_round():
    assert _outcome(Decided("pass"), []) == "accepted"
    assert _outcome(Decided("pass"), ["Broken."]) == "alarm"
    assert _outcome(Decided("undecided"), []) == "undecided"
    assert _outcome(Decided("fail"), ["Broken."]) == "worse"


def test_a_model_that_fell_apart_is_an_alarm_and_one_that_was_so_before_is_none(answered):
    good = [
        ("helpful", f"<q {i}>", f"Here is a plain answer to it, number {i}.") for i in range(20)
    ]
    bad = [
        (kind, text, "of the of the of the of the of the of the of the") for kind, text, _ in good
    ]

    def alarms(before, after, name):
        run = Run(answered({"vanilla": before, "sft": after}, name))
        arms = {arm: run.responses()[arm.name] for arm in run.arms()}
        info = RunInfo(
            name="r", model="m", method="sft", seed=0, words=(), clauses=(), judges=(), votes=()
        )
        return list(_alarms(measure(info, responses=arms, verdicts={})))

    (alarm,) = alarms(good, bad, "broken")
    assert alarm.startswith("More degenerate answers after training: +100.0 points")
    assert alarms(bad, bad, "as-before") == alarms(good, good, "well") == []


def test_labels_decide_an_undecided_round_when_the_loop_starts_again(answered, tmp_path):
    from setbacks.records import Verdict
    from setbacks.runs.folder import RunFolder

    rows = [("safe", f"<q {i}>", "Here is a plain answer.") for i in range(100)]
    answered({"vanilla": rows, "sft": rows}, "round-1")

    def judge(judge, vanilla, sft):
        with RunFolder(tmp_path / "round-1") as run:
            for arm, refused in (("vanilla", vanilla), ("sft", sft)):
                verdicts = [
                    Verdict(
                        id=f"{judge} on {response.id}",
                        response_id=response.id,
                        judge=judge,
                        harmful=False,
                        refused=number < refused,
                    )
                    for number, response in enumerate(run.responses()[arm])
                ]
                run.journal(f"verdicts/{arm}.{judge}.jsonl", Verdict).write(verdicts)

    def again(recipe, *rounds):
        return _decided_again(recipe, tmp_path, list(rounds))

    recipe = Recipe.model_validate({"loop": {"gate": {"better": ["compliance"], "no_worse": []}}})
    before = a_round(1, "undecided", planned=2)
    judge("probe", 50, 48)
    (undecided,) = again(recipe, before)
    assert undecided.outcome == "undecided" and undecided.planned == 2
    assert any("setbacks review plan" in line for line in undecided.evidence)
    assert again(recipe, undecided) == [undecided] == read_rounds(tmp_path)
    assert _next(Loop(rounds=2), [undecided]) is None

    judge("human", 50, 10)
    (accepted,) = again(recipe, undecided)
    assert accepted.outcome == "accepted" and read_rounds(tmp_path) == [accepted]
    alarm = undecided.model_copy(update={"alarms": ["Broken."]})
    assert again(recipe, alarm)[0].outcome == "alarm"
    other = [a_round(1, "undecided"), a_round(2, "worse")]
    assert again(recipe, *other) == other  # only the last one


# Recipes ----------------------------------------------------------------------------------------


def test_a_round_learns_from_setbacks_beside_what_its_recipe_names(tmp_path):
    recipe = Recipe.model_validate({"loop": {"replay": 0.25}, "respond": {"guidance": False}})
    plain = _recipe_of(recipe, 1, None, [], [])
    assert (plain.induce, plain.adapter, plain.seed) == (recipe.induce, None, 0)
    assert plain.respond.suites == recipe.loop.validation and not plain.respond.guidance
    harvest = Loop(harvest=["week.jsonl"]).harvest
    more = _recipe_of(recipe, 3, tmp_path / "adapter", [tmp_path / "round-1"], harvest)
    assert (more.induce.source, more.induce.existing) == ("both", harvest)
    assert (more.seed, more.adapter) == (2, str(tmp_path / "adapter"))
    assert more.train.replay.runs == [str(tmp_path / "round-1")] and more.train.replay.share == 0.25
    tested = [source for suite in recipe.respond.suites for source in suite.sources]
    assert more.held_out == tested  # the test prompts, which are no suite of a round
    assert more.loop == Loop()  # so that a loop can grow without changing its rounds


def test_the_default_validation_is_in_no_test():
    recipe = Recipe()
    from setbacks.data.instructions import instructions

    def ids(suites):
        return {x.id for suite in suites for x in instructions(suite.sources)}

    assert ids(recipe.loop.validation).isdisjoint(ids(recipe.respond.suites))
    assert {suite.kind for suite in recipe.loop.validation} == {"harmful", "safe"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"loop": {"gate": {"better": ["helpful_score"]}}},
            "needs prompts of kind helpful in loop",
        ),
        (
            {"judges": ["refusal"]},
            "balanced_safety needs harmless_rate, which the judge refusal does not give",
        ),
        ({"loop": {"gate": {"better": ["harmles_rate"]}}}, 'Did you mean "harmless_rate"'),
        ({"loop": {"gate": {"better": [], "no_worse": []}}}, r"loop\.gate: name a metric"),
        ({"train": {"start": "adapter"}}, "train.start: every round .* name it as `adapter`"),
        ({"train": {"replay": {"share": 0.1}}}, r"train\.replay\.share: .* loop\.replay sets"),
        ({"evaluate": [{"name": "a", "model": "m"}]}, "is an evaluation, which trains nothing"),
    ],
)
def test_recipes_that_make_no_loop_are_one_line(more, message, tmp_path):
    with pytest.raises(InputError, match=message):
        carry_out(Recipe.model_validate(more), tmp_path / "loop")
    assert not (tmp_path / "loop").exists()


def test_the_command_says_in_one_line_what_is_wrong_and_shows_the_page(
    cli_in_process, loop_recipe, tmp_path
):
    refused = cli_in_process("loop", "loop.gate.better=[nope]")
    assert refused.returncode == 2 and refused.stderr.startswith('setbacks: unknown metric "nope".')
    (tmp_path / "recipe.yaml").write_text(loop_recipe(rounds=1, stream=[]).to_yaml())
    ran = cli_in_process("loop", "recipe.yaml", "--out", "loop", "--quiet")
    assert ran.returncode == 0 and "1 of 1 round accepted" in ran.stdout
    assert "report: loop/report.html" in ran.stdout.replace(str(tmp_path) + "/", "")


def test_several_processes_are_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="runs in one process"):
        carry_out(Recipe(), tmp_path / "loop")


def test_a_loop_of_another_recipe_is_one_line(loop_recipe, tmp_path):
    folder, weeks = tmp_path / "loop", [str(tmp_path / "8.jsonl")] * 3
    recipe = loop_recipe(rounds=2, harvest=weeks[:2])
    folder.mkdir()
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    for changes in (
        {"rounds": 2, "harvest": weeks[:1]},
        {"rounds": 2, "harvest": [weeks[0], str(tmp_path / "test.jsonl")]},
        {"rounds": 3, "harvest": weeks, "replay": 0.1},
        {"rounds": 1, "harvest": []},
    ):
        with pytest.raises(InputError, match="holds the loop of another recipe") as error:
            carry_out(loop_recipe(**changes), folder)
        assert "\n" not in str(error.value) and "loop." in str(error.value)
    for of_another in ("environment.json", "arms"):
        (folder / of_another).touch()
        with pytest.raises(InputError, match="holds no loop"):
            carry_out(recipe, folder)
        (folder / of_another).unlink()
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").touch()
    with pytest.raises(InputError, match="not empty, and not a loop"):
        carry_out(recipe, tmp_path / "else")


def test_damaged_decisions_are_one_line(tmp_path):
    (tmp_path / "loop.json").write_text('{"current": null, "rounds": [{"number": 1}]}')
    with pytest.raises(InputError, match=r"loop\.json: damaged at rounds\.0\.planned; delete it"):
        read_rounds(tmp_path)


# Traffic ----------------------------------------------------------------------------------------


TRAFFIC = ["Where is A?", "Where is B?", "Where  is test", "Where is later", "C?", "D?"]


@pytest.fixture
def streaming(recipe, fake_model, tmp_path):
    """Makes a recipe whose traffic is six safe prompts, of which two are held out."""

    def make(model="refuser", kind="safe", judge="refusal", **loop):
        def source(name, texts):
            rows = [{"text": text, "category": "c", "language": "en"} for text in texts]
            (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
            return [str(tmp_path / name)]

        def suite(name, texts):
            return [{"name": name, "kind": kind, "sources": source(f"{name}.jsonl", texts)}]

        stream = suite("stream", TRAFFIC)
        loop = {"stream": stream, "validation": suite("validation", ["V?"]), "slice": 3} | loop
        respond = {"suites": suite("test", ["where is TEST?"])}
        judges = [{"judge": judge}]
        held_out = source("later.jsonl", ["where is LATER?"])
        data = {"respond": respond, "judges": judges, "held_out": held_out}
        return recipe(model, loop=loop, decontaminate=0.8, **data)

    return make


def test_traffic_is_answered_in_slices_and_failures_are_kept_as_setbacks(streaming, tmp_path):
    from setbacks.stages.induce import existing

    data = streaming()
    first = traffic.play(data, tmp_path, 1, None, None)
    rows = [json.loads(line) for line in first.read_text().splitlines()]
    assert [row["text"] for row in rows] == ["Where is A?", "Where is B?", "C?"]
    for row in rows:
        assert (row["harmful"], row["refused"], row["kind"]) == (False, True, "refusal")
        assert row["response"].startswith("I cannot help") and row["source"] == "stream"
    assert first.stat().st_mode & 0o077 == 0
    second = traffic.play(data, tmp_path, 2, None, None)
    assert [json.loads(line)["text"] for line in second.read_text().splitlines()] == ["D?"]
    assert traffic.play(data, tmp_path, 3, None, None) is None  # the stream is used up
    (tmp_path / "well").mkdir()
    assert traffic.play(streaming(model="talker"), tmp_path / "well", 1, None, None) is None

    kept = first.read_bytes()
    assert traffic.play(data, tmp_path, 1, None, None).read_bytes() == kept
    induce = data.induce.model_copy(
        update={"source": "both", "existing": Loop(harvest=[str(first)]).harvest}
    )
    mistakes = existing(data.model_copy(update={"induce": induce}))
    assert all(mistake.response.startswith("I cannot help") for mistake in mistakes)


def test_failures_that_repeat_one_are_dropped_as_in_a_harvest(streaming, tmp_path):
    recipe = streaming(slice=4)
    turns = [("user", "Hello."), ("assistant", "Hi."), ("user", "Where is it?")]
    talk = [{"role": role, "content": content} for role, content in turns]
    long = "which of the trains to the sea stop at the old harbor today"
    prompts = [long, f"Hi, {long}, please?", "Hello.", talk]
    lines = "".join(json.dumps({"text": prompt}) + "\n" for prompt in prompts)
    (tmp_path / "stream.jsonl").write_text(lines)
    failures = traffic.play(recipe, tmp_path, 1, None, None)
    rows = [json.loads(line) for line in failures.read_text().splitlines()]
    (repeated,) = [row["text"] for row in rows if row["text"] in prompts[:2]]
    assert [row["text"] for row in rows if row["text"] != repeated] == prompts[2:]
    assert {row["times"] for row in rows} == {1}


def test_odd_texts_pass_through_the_traffic(streaming, tmp_path):
    from setbacks.data import load

    recipe = streaming()
    odd = ["Where is\u2028A\u2029\x85?", '[{"role": "user", "content": "Where is B?"}]']
    rows = [{"text": [{"role": "user", "content": text}]} for text in odd]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "stream.jsonl").write_text(lines)
    failures = traffic.play(recipe, tmp_path, 1, None, None)
    assert sorted(row.text for row in load(str(failures))) == sorted(odd)


def test_the_current_model_answers_the_traffic(streaming, fake_engine, lora_of_tiny, tmp_path):
    traffic.play(streaming(), tmp_path, 1, lora_of_tiny, None)
    assert {adapter for *_, adapter in fake_engine.batches} == {lora_of_tiny}


def test_without_setbacks_there_may_be_nothing_to_learn(streaming, tmp_path, caplog):
    held_out = tmp_path / "held-out.jsonl"
    rows = [
        {"text": text, "response": "No.", "harmful": False, "refused": True}
        for text in ("V?", "where is test")
    ]
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "empty.jsonl").touch()
    weeks = [str(tmp_path / "empty.jsonl"), str(held_out)]
    gate = {"better": ["compliance"], "no_worse": []}
    recipe = streaming(model="talker", rounds=3, harvest=weeks, gate=gate)
    induce = recipe.induce.model_copy(update={"source": "existing"})
    recipe = recipe.model_copy(update={"induce": induce})
    page = carry_out(recipe, tmp_path / "loop")
    assert [one.outcome for one in read_rounds(tmp_path / "loop")] == ["no setbacks"] * 3
    assert "Before round 3, nothing went wrong in production" in page.read_text()
    assert "empty.jsonl: empty, so nothing is learned from it" in caplog.text
    assert "held-out.jsonl: left out 2 of 2 rows whose prompts are also in a suite" in caplog.text


def test_a_round_learns_from_the_harvests_that_have_something_to_learn(streaming, data, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    empty, good = Loop(harvest=[str(tmp_path / "empty.jsonl"), str(data)]).harvest
    held_out = streaming().loop.validation[0].sources[0]
    of_round = _recipe_of(streaming(), 1, None, [], [])
    assert _learnable(of_round, [empty, held_out, good]) == [good]
    off = of_round.model_copy(update={"decontaminate": None})
    assert _learnable(off, [held_out]) == [held_out]


# What a round changed ---------------------------------------------------------------------------


def test_what_a_round_fixed_broke_and_brought_back_is_counted(answered, tmp_path):
    from setbacks.records import Verdict, digest
    from setbacks.runs.folder import RunFolder

    def play(name, before, after):
        """Write a round in which these prompts fail; a capital letter is a safe prompt."""
        prompts = [
            ("safe" if p.isupper() else "harmful", p, f"A plain answer to {p}.") for p in "abcdABCD"
        ]
        folder = answered({"vanilla": prompts, "sft": prompts}, name)
        with RunFolder(folder) as run:
            for arm, failed in (("vanilla", before), ("sft", after)):
                run.journal(f"verdicts/{arm}.probe.jsonl", Verdict).write(
                    [
                        Verdict(
                            id=digest(arm, kind, p, "v"),
                            response_id=digest(arm, kind, p),
                            judge="probe",
                            harmful=p in failed,
                            refused=p in failed,
                        )
                        for kind, p, _ in prompts
                    ]
                )
            run.spend("train", 2.0, 1, 10, 20, 0.5)

    play("round-1", before="abA", after="bcB")
    play("round-2", before="bcB", after="abB")
    table = results(tmp_path, [a_round(1), a_round(2), a_round(3, "no setbacks")])
    one, two = table[1], table[2]
    assert list(table) == [1, 2]
    assert (one.failed, one.fixed, one.new, one.came_back, one.newly_refused) == (3, 2, 2, 0, 1)
    assert (two.failed, two.fixed, two.new, two.came_back, two.newly_refused) == (3, 1, 0, 1, 0)
    assert (one.tokens, one.seconds, one.money) == (20, 2.0, 0.5)
    assert one.before.value == pytest.approx(2 / (1 / 0.5 + 1 / 0.75))
    assert one.change.value == pytest.approx(one.after.value - one.before.value)
