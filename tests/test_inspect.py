"""Inspect AI, the real one: suites as tasks, judges as scorers, a run's responses as its logs."""

import json
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

pytest.importorskip("inspect_ai")

from inspect_ai import Task, score
from inspect_ai import eval as evaluate
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import read_eval_log, write_eval_log
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from inspect_ai.solver import generate

from setbacks.data.instructions import instructions
from setbacks.inspect_ai import guidance, harmful, harmless, helpful, safe, system_prompt
from setbacks.inspect_ai.logs import logs
from setbacks.inspect_ai.messages import as_input, from_input
from setbacks.messages import Function, Message, ToolCall, transcript
from setbacks.models.embedded import resolve
from setbacks.prompts import fill, prompts
from setbacks.recipe import Recipe
from setbacks.records import Arm, Response, Verdict
from setbacks.runs.folder import RunFolder

# Its extra is installed for the slow tests, and it takes tens of seconds to start.
pytestmark = pytest.mark.slow

QUESTIONS = ["<a question on the otter>", "<a question on the heron>", "<a question>"]


@pytest.fixture
def asked(tmp_path):
    """A file of three prompts."""
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in QUESTIONS))
    return str(path)


@pytest.fixture
def answers(spec):
    """The model to test on, by Inspect's own provider for transformers."""
    return get_model("hf/under-test", model_path=resolve(spec.model), device="cpu")


def rated(fake_model, name="rater"):
    return {"judge": "llm", "engine": fake_model(name), "retries": 0}


def run(task, model, tmp_path, **more):
    (log,) = evaluate(
        task, model=model, log_dir=str(tmp_path / "logs"), display="none", max_tokens=8, **more
    )
    assert log.status == "success", log.error
    return log


def inspect(*words, cwd, environment):
    """Inspect's own command line."""
    return subprocess.run(
        [Path(sys.executable).with_name("inspect"), *map(str, words)],
        cwd=cwd, env=environment | {"INSPECT_DISPLAY": "plain"}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip


# -- tasks and scorers --------------------------------------------------------------------------


def test_a_suite_is_a_task_and_a_judge_its_scorer(
    answers, asked, fake_engine, fake_model, tmp_path
):
    log = run(harmful(source=asked, judge=rated(fake_model)), answers, tmp_path)
    assert sorted(sample.input for sample in log.samples) == sorted(QUESTIONS)
    values = []
    for sample in log.samples:
        (said,) = sample.scores.values()
        assert said.answer == sample.output.completion
        stars = said.metadata["harmless_score"]  # what the judge said is all kept
        assert said.value == float(stars > 5)
        values.append(said.value)
    metrics = log.results.scores[0].metrics
    assert metrics["harmless_rate"].value == pytest.approx(sum(values) / len(values))
    assert metrics["lower"].value <= metrics["harmless_rate"].value <= metrics["upper"].value


def test_samples_have_the_ids_that_a_run_gives_them(asked, fake_engine, fake_model):
    recipe = Recipe.parse(
        {"respond": {"suites": [{"name": "harmful", "kind": "harmful", "sources": asked}]}}, "here"
    )
    theirs = harmful(source=asked, judge=rated(fake_model)).dataset
    ours = instructions(recipe.respond.suites[0].sources)
    assert [sample.id for sample in theirs] == [instruction.id for instruction in ours]


def test_the_built_in_suites_are_asked_where_no_source_is_named():
    for task, name in ((harmful, "harmful"), (safe, "safe"), (helpful, "helpful")):
        suite = next(s for s in Recipe().respond.suites if s.kind == name)
        assert len(task().dataset) == len(instructions(suite.sources)) > 10


def test_guidance_is_said_to_the_model_and_not_to_the_judge(
    answers, asked, fake_engine, fake_model, tmp_path
):
    log = run(harmful(source=asked, guided=True, judge=rated(fake_model)), answers, tmp_path)
    data = prompts("en")["guided"].replace("{instruction}", "").split()[0]
    assert sorted(sample.input for sample in log.samples) == sorted(QUESTIONS)
    for sample in log.samples:
        question = sample.input
        spoken = sample.messages[0].text
        assert question in spoken and spoken != question and data in spoken
    judged = "".join(request.prompt for requests, *_ in fake_engine.batches for request in requests)
    assert QUESTIONS[0] in judged and log.samples[0].messages[0].text not in judged


def test_several_judges_score_one_task(answers, asked, fake_engine, fake_model, tmp_path):
    judges = [rated(fake_model, "praiser"), rated(fake_model, "scolder") | {"name": "other"}]
    log = run(harmful(source=asked, judge=judges), answers, tmp_path)
    rates = [scorer.metrics["harmless_rate"].value for scorer in log.results.scores]
    assert rates == [1, 0]


def test_what_cannot_be_judged_enters_no_rate(answers, asked, fake_engine, fake_model, tmp_path):
    log = run(harmful(source=asked, judge=rated(fake_model, "mumbler")), answers, tmp_path)
    (scores,) = log.results.scores
    assert scores.unscored_samples == 3 and scores.scored_samples == 0
    value = scores.metrics["harmless_rate"].value
    assert value is None or value != value  # never a rate of 0


@pytest.mark.parametrize(
    ("said", "end", "value"),
    [
        ("", "stop", None),
        (" \u200b", "stop", None),
        ("<think>I cannot", "max_tokens", None),
        ("<think>I cannot answer.</think> Mix them.", "stop", 1),
        ("", "content_filter", 0),
    ],
)
def test_silence_is_unscored_and_a_filter_refuses(asked, tmp_path, said, end, value):
    output = ModelOutput.from_content("mockllm", said, end)
    output.usage = ModelUsage()  # else it counts tokens, for which it needs a network
    outputs = [output for _ in QUESTIONS]
    model = get_model("mockllm/model", custom_outputs=outputs)
    log = run(safe(source=asked, judge="refusal"), model, tmp_path)
    (scores,) = log.results.scores
    assert scores.scored_samples == (0 if value is None else 3)
    for sample in log.samples:
        (score,) = sample.scores.values()
        if value is None:
            assert score.reason == "no_response"
        else:
            assert score.value == value


def test_a_degenerate_answer_is_a_failure_whatever_the_judge_says(asked, tmp_path):
    loop = ModelOutput.from_content("mockllm", "The heron is a heron. " * 9)
    loop.usage = ModelUsage()  # as above
    model = get_model("mockllm/model", custom_outputs=[loop for _ in QUESTIONS])
    log = run(safe(source=asked, judge="refusal"), model, tmp_path)  # it sees no refusal
    for sample in log.samples:
        (said,) = sample.scores.values()
        assert (said.value, said.metadata["degenerate"]) == (0, "repeats")


def test_a_judge_without_a_model_asks_the_grader(answers, asked, tmp_path):
    log = run(
        helpful(source=asked, judge={"judge": "llm", "retries": 0}),
        answers,
        tmp_path,
        model_roles={"grader": answers},
    )
    for sample in log.samples:
        (said,) = sample.scores.values()
        assert said.explanation is not None  # what the grader wrote, rating or not
    # A judge is given the samples that wait together: one's transcript may hold another's question.
    graded = []
    for sample in log.samples:
        called = [event for event in sample.events if event.event == "model"]
        assert [event.role for event in called].count(None) == 1
        for event in called:
            if event.role == "grader":
                text = event.input[0].text
                graded.append(sample.attachments.get(text.removeprefix("attachment://"), text))
    assert len(graded) == len(log.samples) and all("Rating" in text for text in graded)


TALK = (
    Message(role="system", content="Be brief."),
    Message(role="user", content="<a question on the otter>"),
    Message(
        role="assistant",
        tool_calls=(
            ToolCall(id="c1", function=Function(name="seek", arguments='{"for": "otter"}')),
        ),
    ),
    Message(role="tool", name="seek", tool_call_id="c1", content="<what was found>"),
    Message(role="assistant", content="<an answer>"),
    Message(role="user", content="<a last question>"),
)


def test_a_conversation_is_asked_with_its_turns_and_judged_by_them(
    fake_engine, fake_model, tmp_path
):
    output = ModelOutput.from_content("mockllm", "<the answer>")
    output.usage = ModelUsage()
    task = Task(
        dataset=MemoryDataset([Sample(id="1", input=as_input(TALK)), Sample(id="2", input="<x>")]),
        solver=[system_prompt("Be kind."), guidance(), generate()],
        scorer=harmless(judge=rated(fake_model)),
    )
    log = run(task, get_model("mockllm/model", custom_outputs=[output, output]), tmp_path)
    talk, plain = log.samples
    assert from_input(talk.input) == TALK and plain.input == "<x>"  # as they were
    guided = fill(prompts("en")["guided"], instruction="<a last question>")
    said = [*(turn.content for turn in TALK[1:-1]), guided, "<the answer>"]
    assert [m.text for m in talk.messages] == ["Be kind.\n\nBe brief.", *said]
    assert [m.role for m in plain.messages] == ["system", "user", "assistant"]
    assert plain.messages[0].text == "Be kind."
    judged = "".join(request.prompt for requests, *_ in fake_engine.batches for request in requests)
    assert transcript(TALK) in judged and "Be kind." not in judged and guided not in judged


@pytest.mark.slow
def test_the_embedded_model_before_the_probe(environment, tmp_path):
    """The documented command, whole: `inspect eval setbacks/harmful --model hf/...`."""
    ran = inspect(
        "eval", "setbacks/harmful", "--model", "hf/smollm2",
        "-M", f"model_path={resolve('smollm2-135m')}", "--limit", 3, "--max-tokens", 8,
        "--log-dir", "logs", cwd=tmp_path, environment=environment,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (file,) = (tmp_path / "logs").glob("*.eval")
    log = read_eval_log(str(file))
    assert len(log.samples) == 3
    assert all(0 <= s.scores["harmless"].metadata["p_harmful"] <= 1 for s in log.samples)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["judge=nosuch"], "nosuch"),
        (["source=missing.jsonl"], "missing.jsonl"),
        (["language=nosuch"], "language"),
    ],
)
def test_bad_words_are_one_line_of_inspects_command(environment, tmp_path, words, said):
    data = [part for word in words for part in ("-T", word)]
    ran = inspect("eval", "setbacks/harmful", "--model", "mockllm/model", *data,
                  "--log-dir", "logs", cwd=tmp_path, environment=environment)  # fmt: skip
    out = ran.stdout + ran.stderr
    assert ran.returncode != 0 and said in out and "Traceback" not in out, out
    assert not list(tmp_path.rglob("*.eval"))


# -- a run's responses --------------------------------------------------------------------------


@pytest.fixture
def judged(fake_engine, recipe_data, cli_in_process, tmp_path):
    """The folder of an evaluation: two arms, one with human labels that came with it."""
    for name, refuses in (("a", True), ("b", False)):
        rows = [
            {"prompt": text, "response": f"<{name} on {text}>", "harmful": i == 0,
             "refused": refuses and i == 1}
            for i, text in enumerate(QUESTIONS)
        ]  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    ran = cli_in_process(
        "evaluate", "a.jsonl", "b.jsonl", "--suite", "harmful=a.jsonl", "--out", "run", "-q",
        f"judges={json.dumps([recipe_data()['judges'][0]])}",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return tmp_path / "run"


@pytest.mark.slow
def test_a_run_is_exported_as_logs_that_inspect_opens(
    judged, cli_in_process, environment, tmp_path
):
    ran = cli_in_process("export", "run", "--to", "logs", "--format", "inspect")
    assert ran.returncode == 0, ran.stderr
    files = sorted((tmp_path / "logs").glob("*.eval"))
    assert [file.name for file in files] == ["a.harmful.eval", "b.harmful.eval"]
    assert all(stat.S_IMODE(os.stat(file).st_mode) == 0o600 for file in files)
    metrics = json.loads((judged / "metrics.json").read_text())["judges"]
    for file in files:
        ran = inspect("log", "dump", file, cwd=tmp_path, environment=environment)
        assert ran.returncode == 0, ran.stderr
        dumped = json.loads(ran.stdout)
        arm = file.name.split(".")[0]
        with RunFolder(judged) as folder:
            responses = folder.records(f"responses/{arm}.jsonl", Response)
        about = dumped["eval"]["metadata"]
        assert (about["arm"], about["label"], about["trained"]) == (arm, arm, False)
        assert about["way"] == "unguided" and about["guided"] is False
        data = {s["id"]: s["messages"][-1]["content"] for s in dumped["samples"]}
        assert data == {r.instruction_id: r.text for r in responses}
        # The rates are those of the report, of people as of the judge.
        for scores in dumped["results"]["scores"]:
            (row,) = [row for row in metrics[scores["name"]]["arms"] if row["arm"] == arm]
            value = scores["metrics"]["harmless_rate"]["value"]
            assert value == pytest.approx(row["harmless_rate"]["value"], abs=1e-6)
        assert {scores["name"] for scores in dumped["results"]["scores"]} == {"llm", "human"}


def test_logs_hold_conversations_under_the_system_prompt(tmp_path):
    recipe = Recipe.parse({"model": {"model": "m", "system": "Be kind."}}, "here")
    answered = [
        Response(
            id=str(n),
            arm="vanilla",
            suite="s",
            kind="harmful",
            instruction_id=f"x{n}",
            instruction=prompt,
            reference=None,
            category=None,
            language="en",
            guided=n == 0,
            text="<the answer>",
            model="m",
        )  # fmt: skip
        for n, prompt in enumerate((TALK, "<x>"))
    ]
    verdict = Verdict(id="v", response_id="0", judge="probe", harmful=False)
    when = datetime.fromtimestamp(0, UTC)
    (log,) = logs(recipe, Arm.untrained(), answered, {"probe": [verdict]}, when)
    write_eval_log(log, str(tmp_path / "log.eval"))
    talk, plain = read_eval_log(str(tmp_path / "log.eval")).samples
    assert from_input(talk.input) == TALK and plain.input == "<x>"
    system, *others = talk.messages
    assert system.text == "Be kind.\n\nBe brief."
    *before, question, answer = from_input(others)
    assert before == list(TALK[1:-1]) and answer.content == "<the answer>"
    assert question.content == fill(prompts("en")["guided"], instruction="<a last question>")
    assert [m.text for m in plain.messages] == ["Be kind.", "<x>", "<the answer>"]
    thinking = answered[1].model_copy(
        update={"thought": "<a thought>", "prompt_tokens": 5, "tokens": 9, "thought_tokens": 4}
    )
    (log,) = logs(recipe, Arm.untrained(), [thinking], {}, when)
    write_eval_log(log, str(tmp_path / "thinking.eval"))
    (sample,) = read_eval_log(str(tmp_path / "thinking.eval")).samples
    assert sample.output.completion == sample.messages[-1].text == "<the answer>"
    assert sample.messages[-1].content[0].reasoning == "<a thought>"
    assert sample.output.usage.reasoning_tokens == 4
    # A model of an evaluation has a system prompt of its own; given answers have none.
    models = [{"name": "a", "model": {"model": "m", "system": "Be brief."}}]
    models += [{"name": "b", "answers": ["b.jsonl"]}]
    recipe = Recipe.parse({"evaluate": models}, "here")
    for arm, expected in (("a", ["Be brief.", "<x>"]), ("b", ["<x>"])):
        rows = [answered[1].model_copy(update={"arm": arm})]
        (log,) = logs(recipe, Arm.evaluated(arm), rows, {}, when)
        assert [m.text for m in log.samples[0].messages] == [*expected, "<the answer>"]


@pytest.mark.slow
def test_inspects_viewer_lists_exported_logs(judged, cli_in_process, environment, tmp_path):
    assert cli_in_process("export", "run", "--to", "logs", "--format", "inspect").returncode == 0
    ran = inspect("view", "bundle", "--log-dir", "logs", "--output-dir", "page",
                  cwd=tmp_path, environment=environment)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    listing = json.loads((tmp_path / "page" / "logs" / "listing.json").read_text())
    assert set(listing) == {"a.harmful.eval", "b.harmful.eval"}
    assert (tmp_path / "page" / "index.html").exists()


def test_a_run_is_exported_while_another_process_has_its_lock(judged, cli_in_process, tmp_path):
    with RunFolder(judged):
        ran = cli_in_process("export", "run", "--to", "logs", "--format", "inspect")
    assert ran.returncode == 0, ran.stderr
    assert len(list((tmp_path / "logs").glob("*.eval"))) == 2


def test_exported_logs_are_scored_again(judged, cli_in_process, fake_model, tmp_path):
    assert cli_in_process("export", "run", "--to", "logs", "--format", "inspect").returncode == 0
    log = read_eval_log(str(tmp_path / "logs" / "a.harmful.eval"))
    again = score(
        log, harmless(judge=rated(fake_model, "scolder")), action="append", display="none"
    )
    assert set(again.samples[0].scores) == {"llm", "human", "harmless"}
    (new,) = [s for s in again.results.scores if s.name == "harmless"]
    assert new.metrics["harmless_rate"].value == 0


def test_logs_of_a_run_without_verdicts_are_none(
    recipe_data, fake_engine, cli_in_process, tmp_path
):
    (tmp_path / "told.yaml").write_text(json.dumps(recipe_data()))
    with RunFolder(tmp_path / "run", Recipe.load(tmp_path / "told.yaml")):
        pass
    ran = cli_in_process("export", "run", "--to", "logs", "--format", "inspect")
    assert ran.returncode == 2 and "no responses yet" in ran.stderr
    assert not (tmp_path / "logs").exists()
