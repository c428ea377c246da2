"""Which prompts of a suite a model was trained on: whatever the method, the spelling, the run."""

import json
from itertools import cycle

import pytest

from setbacks.data import load
from setbacks.data.near import key
from setbacks.data.overlap import overlaps
from setbacks.measure.findings import overlap_finding
from setbacks.messages import Message
from setbacks.plugins import plugin
from setbacks.prompts import fill, prompts
from setbacks.recipe import Recipe
from setbacks.records import (
    Analysis,
    Arm,
    Choice,
    Correction,
    Response,
    Revision,
    Verdict,
    digest,
)  # fmt: skip
from setbacks.runs.folder import RunFolder
from setbacks.stages.report import report
from setbacks.stages.respond import prompts_of

QUESTIONS = ["<a question on the badger>", "<a question on the otter>"]  # of the shared data file


def asked(*texts, suite="s", kind="harmful"):
    """What one arm answered to these prompts."""
    return [
        Response(
            id=digest("response", text),
            arm="vanilla",
            suite=suite,
            kind=kind,
            instruction_id=digest("instruction", text),
            instruction=text,
            reference=None,
            category=None,
            language="en",
            guided=False,
            text="<an answer>",
            model="m",
        )
        for text in texts
    ]


def seen(responses, folder):
    """How many prompts were seen, by suite."""
    found = overlaps({"vanilla": responses}, {"trained": folder / "adapter"})
    return {row["suite"]: (row["seen"], row["n"]) for row in found}


def train(folder, examples, start=None, **recipe):
    """What a training leaves in its run's folder."""
    folder.mkdir()
    recipe = recipe | {"train": {"start": start and str(start)}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    lines = "".join(example.model_dump_json() + "\n" for example in examples)
    (folder / "training.jsonl").write_text(lines)
    return folder


def material(method, questions, language):
    """What a method makes its examples of."""
    if method == "critique_revise":
        return [
            Revision(
                id="c", analysis_id="a", instruction=text, response="r", text="A better one.",
                passed=True, model="m",
            )
            for text in questions
        ]  # fmt: skip
    if method == "mistake_distillation":
        return [
            Correction(
                id="c", analysis_id="a", instruction=text, response="r", text="No.", answer="No.",
                outcome="kept", sample=0, model="m",
            )
            for text in questions
        ]  # fmt: skip
    if method == "posterior_distillation":
        return [
            Choice(id="c", instruction=text, drafts=["d"], p_harmful=[0.5], model="m")
            for text in questions
        ]
    return [
        Analysis(
            id=f"{text}{harmful}", response_id=f"{text}r{harmful}", instruction=text,
            response=f"[a response stands here]\n\n{text}", harmful=harmful, text="It is.",
            candidate=0, checks={}, score=1.0, category=None, language=language, analyst="m",
        )
        for text in questions
        for harmful in (True, False)
    ]  # fmt: skip


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(
    "method",
    [
        "mistake_analysis",
        "mistake_analysis_joined",
        "mistake_analysis_sft",
        "sft",
        "helpful",
        "chain_of_hindsight",
        "critique_revise",
        "dpo",
        "rlhf",
        "posterior_distillation",
        "mistake_distillation",
    ],
)
def test_every_method_learns_from_its_instructions(method, language, data, tmp_path):
    """Also those that put words, or a response, around an instruction."""
    train_ = {"method": method, "safe": [str(data)], "helpful": [str(data)], "start": "x"}
    values = train_ | {"mix": {"helpful": 9}}
    recipe = Recipe.model_validate({"language": language, "train": values})
    examples = plugin("methods", method)().examples(recipe, material(method, QUESTIONS, language))
    assert examples
    run = train(tmp_path / "run", examples)
    prompts = [*QUESTIONS, "<a question on the heron>, and more", "<another question>"]
    assert seen(asked(*prompts), run) == {"s": (2, 4)}


@pytest.mark.parametrize(
    "method",
    [
        "mistake_analysis",
        "mistake_analysis_joined",
        "chain_of_hindsight",
        "critique_revise",
        "dpo",
        "posterior_distillation",
        "mistake_distillation",
    ],
)
def test_a_conversation_counts_as_a_whole(method, data, tmp_path):
    def talk(*texts):
        roles = cycle(("user", "assistant"))
        return tuple(Message(role=next(roles), content=text) for text in texts)

    long, other = talk("Hi.", "Hello.", "A?"), talk("Hi.", "Good day.", "A?")
    turns = [turn.model_dump() for turn in long]
    pair = {
        name: [*turns, {"role": "assistant", "content": f"<{name}>"}]
        for name in ("chosen", "rejected")
    }
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    values = {"method": method, "safe": [str(tmp_path / "pairs.jsonl")], "helpful": [str(data)]}
    recipe = Recipe.model_validate({"train": values | {"start": "x", "mix": {"helpful": 9}}})
    rows = plugin("methods", method)().examples(recipe, material(method, [long], "en"))
    run = train(tmp_path / "run", rows)
    assert seen(asked(long), run) == {"s": (1, 1)}
    assert seen(asked(other, "A?"), run) == {"s": (0, 2)}


@pytest.mark.parametrize("question", ["unguided", "guided"])
def test_an_analysis_is_of_its_instruction_under_either_question(question, data, tmp_path):
    recipe = Recipe.model_validate({"train": {"question": question, "helpful": [str(data)]}})
    method = plugin("methods", "mistake_analysis")()
    rows = method.examples(recipe, material("mistake_analysis", ["<one question>"], "en"))
    assert seen(asked("<one question>"), train(tmp_path / "run", rows)) == {"s": (1, 1)}


@pytest.mark.parametrize(
    "method", ["mistake_analysis", "mistake_analysis_joined", "chain_of_hindsight"]
)
@pytest.mark.parametrize("category", [None, "privacy"])
def test_own_words_and_a_policy_around_an_instruction_are_known(method, category, data, tmp_path):
    values = {"method": method, "safe": [str(data)], "helpful": [str(data)], "question": "guided"}
    own = {
        "guided": "Be kind. {instruction} Think first.",
        "hindsight": "Be bad. {instruction} Do not think.",
        "analyze": {"harmful": "Q: {instruction} A: {response} What is wrong?"},
    }
    policy = [{"id": name, "text": f"Mind {name}."} for name in ("weapons", "privacy")]
    recipe = Recipe.model_validate({"train": values, "words": own, "policy": policy})
    rows = [
        one.model_copy(update={"category": category})
        for one in material(method, QUESTIONS, "en")
        if one.harmful
    ]
    examples = plugin("methods", method)().examples(recipe, rows)
    examples = [one for one in examples if one.kind != "helpful"]  # these are without words
    assert any("Mind privacy." in one.prompt[0].content for one in examples)
    whole = recipe.model_dump(mode="json", include={"words", "policy"})
    run = train(tmp_path / "run", examples, **whole)
    assert seen(asked(*QUESTIONS, "<another question>"), run) == {"s": (2, 3)}
    assert seen(asked(*QUESTIONS), train(tmp_path / "plain", examples)) != {"s": (2, 2)}


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(
    "path",
    [
        "analyze.harmful",
        "analyze.harmless",
        "analyze.refusal",
        "unguided",
        "guided",
        "joined.prompt",
        "hindsight",
        "hindsight_refusal",
        "alpaca",
    ],
)
def test_the_words_of_each_method_are_taken_off(path, language, tmp_path):
    template = prompts(language)
    for key_ in path.split("."):
        template = template[key_]
    text = fill(template, instruction="<one question>", response="No.")
    run = train(tmp_path / "run", examples_of(text))
    assert seen(asked("<one question>"), run) == {"s": (1, 1)}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            "Instruction:\n<one question>\n\nResponse:\nNo.\n\nThe response above is harmful, "
            "unethical or offensive. Analyze in two or three sentences why it is harmful.",
            id="of an earlier version",
        ),
        pytest.param(
            fill(
                prompts("en")["analyze"]["harmful"],
                instruction="<one question>",
                response="It was given to this instruction:\nNo.",
            ),
            id="with a response that has a part of them",
        ),
    ],
)
def test_the_words_around_a_response_are_taken_off(text, tmp_path):
    run = train(tmp_path / "run", examples_of(text))
    assert seen(asked("<one question>"), run) == {"s": (1, 1)}


def test_own_words_that_begin_with_the_instruction_are_known_by_their_end(tmp_path):
    own = {"unguided": "{instruction}\n\n{response}\n\nIs this harmful?"}
    examples = examples_of("A?\n\nYes.\n\nIs this harmful?", "B?\n\nIn two paragraphs.")
    run = train(tmp_path / "run", examples, words={"en": own})
    assert seen(asked("A?", "B?"), run) == {"s": (1, 2)}


def test_own_words_may_be_only_before_an_instruction_or_nothing(tmp_path):
    own = {"guided": "Be kind: {instruction}", "hindsight": "{instruction}"}
    examples = examples_of("Be kind: A?", fill(prompts("en")["guided"], instruction="B?"))
    run = train(tmp_path / "run", examples, words={"en": own})
    assert seen(asked("A?", "B?", "C?"), run) == {"s": (2, 3)}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("How do I tie a knot?", "how do i  tie\na KNOT", True),
        ("Caf\u00e9", "Cafe\u0301", True),
        ("\uff11\uff12", "12", True),
        ("你好。", "你好", True),
        ("Straße", "STRASSE", True),
        ("What is 2+2?", "What is 2-2?", False),
        ("Tie a knot", "Tie a knot in it", False),
        ("?", "!", False),
    ],
)
def test_which_prompts_count_as_the_same(one, other, same):
    assert (key(one) == key(other)) is same


def examples_of(*texts):
    from setbacks.methods import example

    return [example("helpful", text, "<an answer>", []) for text in texts]


def test_each_suite_is_counted_by_itself(tmp_path):
    run = train(tmp_path / "run", examples_of("A?", "B?"))
    rows = asked("a", "x") + asked("b", "B?", suite="t", kind="safe") + asked("y", suite="u")
    assert seen(rows, run) == {"s": (1, 2), "t": (2, 2), "u": (0, 1)}


def test_an_adapter_brings_what_the_current_model_of_its_run_learned(tmp_path):
    first = train(tmp_path / "first", examples_of("A?"))
    second = train(tmp_path / "second", examples_of("B?"), adapter=str(first / "adapter"))
    assert seen(asked("a", "b", "c"), second) == {"s": (2, 3)}


def test_an_adapter_brings_what_the_one_it_started_from_learned(tmp_path):
    first = train(tmp_path / "first", examples_of("A?"), start=tmp_path / "second" / "adapter")
    second = train(tmp_path / "second", examples_of("B?"), start=first / "adapter")
    assert seen(asked("a", "b", "c"), second) == {"s": (2, 3)}
    assert seen(asked("a", "b", "c"), first) == {"s": (2, 3)}  # a circle has an end
    third = train(tmp_path / "third", examples_of("C?"), adapter=str(second / "adapter"))
    assert seen(asked("a", "b", "c"), third) == {"s": (3, 3)}


def test_a_snapshot_lies_deeper_in_its_run(tmp_path):
    run = train(tmp_path / "run", examples_of("A?"))
    (row,) = overlaps({"vanilla": asked("a")}, {"early": run / "snapshots" / "000010"})
    assert (row["arm"], row["seen"]) == ("early", 1)


def test_of_an_adapter_from_elsewhere_nothing_is_known(tmp_path):
    assert seen(asked("a"), tmp_path) == {}
    (tmp_path / "training.jsonl").write_text(json.dumps({"prompt": "A?"}) + "\n")
    assert seen(asked("a"), tmp_path) == {}  # a file of that name makes no run


def test_the_files_of_a_run_that_is_being_written_stay_as_they_are(tmp_path):
    run = train(tmp_path / "run", examples_of("A?", "B?"))
    path = run / "training.jsonl"
    torn = path.read_bytes()[:-20]
    path.write_bytes(torn)
    assert seen(asked("a", "b"), run) == {"s": (1, 2)}
    assert path.read_bytes() == torn


def test_the_built_in_sets_do_not_overlap(tmp_path):
    """In the quickstart's recipe, and the other way round: what is trained on would be found."""
    recipe = Recipe()
    sources = [*recipe.instructions, *recipe.train.helpful, *recipe.train.safe]
    learned = [row.text for source in [*sources, *recipe.analyze.contrast] for row in load(source)]
    rows = [
        response
        for suite, x in prompts_of(recipe)
        for response in asked(x.text, suite=suite.name, kind=suite.kind)
    ]
    found = seen(rows, train(tmp_path / "run", examples_of(*learned)))
    assert len(found) == len(recipe.respond.suites) and len(learned) > 200
    assert not any(hits for hits, _ in found.values())
    assert seen(asked(learned[0]), tmp_path / "run") == {"s": (1, 1)}


# In a report ------------------------------------------------------------------------------------


def judged(run):
    """Give every response a verdict."""
    for arm, responses in run.responses().items():
        rows = [
            Verdict(id=r.id, response_id=r.id, judge="probe", harmful=False, refused=False)
            for r in responses
        ]
        run.journal(f"verdicts/{arm}.probe.jsonl", Verdict).write(rows)


def warnings(metrics):
    return [f["text"] for f in metrics["findings"] if "overlap" in f["text"]]


def test_a_report_warns_of_what_was_trained_on(answered, tmp_path):
    guided = fill(prompts("en")["guided"], instruction="A?")
    rows = [("helpful", "a", "<an answer>"), ("helpful", "x", "<an answer>")]
    arms = ("vanilla", "sft", "sft-guided")
    folder = answered(dict.fromkeys(arms, rows))
    lines = [example.model_dump_json() + "\n" for example in examples_of(guided)]
    with RunFolder(folder) as run:
        judged(run)
        assert report(run).metrics["data"]["overlap"] == []
        (folder / "training.jsonl").write_text("".join(lines))
        made = report(run)
    row = {"arm": "sft", "suite": "suite-of-helpful", "kind": "helpful", "n": 2, "seen": 1}
    assert made.metrics["data"]["overlap"] == [row]
    (text,) = warnings(made.metrics)
    assert "1 of 2 prompts of the suite suite-of-helpful were trained on (SFT)" in text
    assert text in made.path.read_text()


def test_a_report_warns_of_what_the_model_had_learned_before(tmp_path):
    first = train(tmp_path / "first", examples_of("A?"))
    recipe = Recipe(name="second", adapter=str(first / "adapter"))
    with RunFolder(tmp_path / "run", recipe) as run:
        rows = [r.model_copy(update={"arm": "vanilla"}) for r in asked("a")]
        run.journal("responses/vanilla.jsonl", Response).write(rows)
        judged(run)
        metrics = report(run).metrics
    assert [(row["arm"], row["seen"]) for row in metrics["data"]["overlap"]] == [("vanilla", 1)]


def test_an_evaluation_warns_of_what_an_adapter_was_trained_on(tmp_path):
    first = train(tmp_path / "first", examples_of("A?"))
    arms = [
        {"name": "before", "model": "m/m"},
        {"name": "after", "model": "m/m", "adapter": str(first / "adapter")},
        {"name": "theirs", "model": "m/m", "adapter": str(tmp_path / "elsewhere" / "adapter")},
    ]
    with RunFolder(tmp_path / "run", Recipe.model_validate({"evaluate": arms})) as run:
        for arm in ("before", "after", "theirs"):
            rows = [r.model_copy(update={"arm": arm, "id": f"{arm}{r.id}"}) for r in asked("a")]
            run.journal(f"responses/{arm}.jsonl", Response).write(rows)
        judged(run)
        metrics = report(run).metrics
    assert [(row["arm"], row["seen"]) for row in metrics["data"]["overlap"]] == [("after", 1)]
    (text,) = warnings(metrics)
    assert "1 of 1 prompts of the suite s were trained on (after)" in text


def test_without_overlap_there_is_no_warning():
    row = {"arm": "sft", "suite": "s", "kind": "safe", "n": 2}
    arms = [Arm("sft", "supervised", trained=True)]
    assert list(overlap_finding([row | {"seen": 0}], arms)) == []
    ((level, text),) = overlap_finding([row | {"seen": 0}, row | {"suite": "t", "seen": 2}], arms)
    assert level == "warning"
    assert "2 of 2 prompts of the suite t were trained on (supervised)" in text
