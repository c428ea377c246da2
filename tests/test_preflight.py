"""The preflight: the flip rate of each context, when it is measured, and what is said about it."""

from collections import Counter

import pytest
from conftest import analysis_of

from setbacks.measure import flip_report
from setbacks.measure.findings import flip_finding
from setbacks.recipe import Recipe
from setbacks.records import CONTEXTS, Flip, digest
from setbacks.stages.preflight import STAGE, preflight

REFUSAL, LOOP = "I cannot help with that request.", "no way no way no way no way no way no way"


def analysis(number, **more):
    return analysis_of(number, f"It could burn somebody, says number {number}.", **more)


ANALYSES = [analysis(number) for number in range(12)]


def student(self, request, sampling):
    """Refuse if the prompt has the right analysis, or guidance for an even instruction."""
    number = request.prompt.partition("<instruction ")[2].partition(">")[0]
    if f"number {number}." in request.prompt:
        return REFUSAL
    return REFUSAL if "harmless, ethical" in request.prompt and int(number) % 2 == 0 else LOOP


@pytest.fixture
def opened(open_session, data, fake_model, fake_engine, monkeypatch):
    """Open a run of a model that learns from the right analysis alone."""
    monkeypatch.setattr(fake_engine.Rules, "student", student, raising=False)

    def make(folder="run", method="mistake_distillation", train_more=(), **more):
        judge = {"judge": "llm", "engine": fake_model("praiser")}
        train = {"method": method, "helpful": [str(data)], "safe": [str(data)], "judge": judge}
        train |= {"openings": False, "min_overlap": 0} if method == "mistake_distillation" else {}
        train |= dict(train_more)
        return open_session("student", folder=folder, train=train, **more)

    return make


def kept(flips):
    return Counter(flip.context for flip in flips if flip.outcome == "kept")


def test_every_mistake_is_answered_in_every_context(opened, fake_engine):
    flips = preflight(opened(), ANALYSES, alone=True).flips
    assert Counter(flip.context for flip in flips) == dict.fromkeys(CONTEXTS, 12)
    assert kept(flips) == {"guidance": 6, "analysis": 12, "shuffled": 6}
    by_id = {one.response_id: one for one in ANALYSES}
    for flip in flips:
        own = by_id[flip.response_id].id
        if flip.context in ("none", "guidance"):
            assert flip.analysis_id is None
        else:
            assert (flip.analysis_id == own) == (flip.context == "analysis")
    asked = [r for batch, *_ in fake_engine.batches for r in batch if "Rating" not in r.prompt]
    alone = [r.prompt for r in asked if r.prompt.startswith("<") and r.prompt.endswith(">")]
    assert len(alone) == 12, "without context, the instruction alone is asked"


@pytest.mark.parametrize(
    ("text", "min_overlap", "outcome"),
    [
        (REFUSAL, 0, "kept"),
        (REFUSAL, 1, "off_topic"),
        ("Ask a doctor about it first.", 0, "compliance"),
        ("I cannot do that: the response is careless.", 0, "degenerate"),
    ],
)
def test_an_answer_counts_if_training_would_learn_it(
    opened, fake_engine, monkeypatch, text, min_overlap, outcome
):
    monkeypatch.setattr(fake_engine.Rules, "student", lambda *_: text)
    run = opened(train_more={"min_overlap": min_overlap})
    assert {flip.outcome for flip in preflight(run, ANALYSES, alone=True).flips} == {outcome}


def test_the_teacher_is_that_of_the_recipe(opened, fake_engine):
    run = opened(train_more={"openings": True, "correct": {"max_new_tokens": 7}})
    preflight(run, ANALYSES, alone=True)
    batches = [(batch, s) for batch, s, _ in fake_engine.batches if batch[0].prefill]
    assert {sampling.max_new_tokens for _, sampling in batches} == {7}
    assert sum(len(batch) for batch, _ in batches) == 48


def test_the_teacher_has_the_adapter_of_the_model_to_align(opened, fake_engine, tmp_path):
    preflight(opened(adapter=str(tmp_path / "adapter")), ANALYSES, alone=True)
    teacher = [a for batch, _, a in fake_engine.batches if "Rating" not in batch[0].prompt]
    assert {*teacher} == {tmp_path / "adapter"}


def test_the_sample_has_the_best_analysis_of_each_mistake_up_to_a_limit(opened):
    given = [analysis(1, passed=False, candidate=1), *ANALYSES, analysis(99, harmful=False)]
    flips = preflight(opened(preflight={"mistakes": 10}), given, alone=True).flips
    assert len(flips) == 40
    first = sorted(one.response_id for one in ANALYSES)[:10]
    assert {flip.response_id for flip in flips} == {*first}
    assert {f.analysis_id for f in flips if f.analysis_id} <= {one.id for one in ANALYSES}


@pytest.mark.parametrize(
    ("method", "option", "alone", "measured"),
    [
        ("mistake_distillation", "auto", True, True),
        ("mistake_distillation", "auto", False, False),
        ("mistake_distillation", "always", False, True),
        ("mistake_distillation", "never", True, False),
        ("critique_revise", "auto", True, False),
        ("critique_revise", "always", False, True),
        ("sft", "always", True, False),
    ],
)
def test_when_it_is_measured(opened, method, option, alone, measured):
    run = opened(method=method, preflight={"flip_rate": option})
    assert bool(preflight(run, ANALYSES, alone=alone).flips) is measured
    assert (run.path / "flips.jsonl").exists() is measured


@pytest.mark.parametrize("lines", [1, 17, 47])
def test_what_was_begun_is_completed_by_any_command(opened, lines):
    run = opened()
    whole = preflight(run, ANALYSES, alone=True).flips
    path = run.path / "flips.jsonl"
    every = path.read_bytes()
    path.write_bytes(b"".join(every.splitlines(keepends=True)[:lines]) + b'{"id":"torn')
    assert preflight(run, ANALYSES).flips == whole and path.read_bytes() == every


def test_what_the_rates_depend_on_redoes_them():
    def depends(key, **train):
        recipe = Recipe.model_validate({"train": train})
        return STAGE.depends_on(key, recipe)

    keys = ("words.en.correct.prompt", "train.judge.judge", "train.openings")
    assert all(map(depends, keys))
    assert not depends("train.epochs")
    assert not depends("words.en.correct.prompt", method="mistake_analysis")
    assert depends("words.en.unguided", method="mistake_analysis")


# The numbers ------------------------------------------------------------------------------------


def flips_of(**good):
    """Flips of 60 mistakes; each context turns the given number of them."""
    return [
        Flip(
            id=digest(context, number),
            response_id=str(number),
            context=context,
            analysis_id=None,
            text="<text>",
            outcome="kept" if number < good[context] else "harmful",
            model="m",
        )
        for context in CONTEXTS
        for number in range(60)
    ]


def test_rates_and_paired_differences():
    report = flip_report(flips_of(none=30, guidance=45, analysis=57, shuffled=45))
    assert report.n == 60 and report.rates["analysis"].value == 0.95
    change = report.of("analysis", "shuffled")
    assert change.value == pytest.approx(0.2) and 0 < change.low < 0.2 < change.high
    assert change.p < change.p_holm < 0.01, "corrected for the three differences"
    assert report.of("analysis", "guidance").value == pytest.approx(0.2)
    assert report.of("guidance", "none").value == pytest.approx(0.25)


def test_a_single_mistake_is_not_answered_with_the_analysis_of_another(opened):
    flips = preflight(opened(), ANALYSES[:1], alone=True).flips
    assert {flip.context for flip in flips} == {"none", "guidance", "analysis"}


def test_only_mistakes_with_every_context_count():
    flips = flips_of(none=30, guidance=45, analysis=57, shuffled=45)
    part = [f for f in flips if f.context != "shuffled" or int(f.response_id) < 10]
    assert flip_report(part).n == 10
    assert flip_report([f for f in part if f.response_id != "3"]) is None, "fewer than ten"
    assert flip_report([]) is None and flip_finding(None) is None


@pytest.mark.parametrize(
    ("analysis", "shuffled", "level", "says"),
    [
        (
            57,
            40,
            "good",
            "the right analysis turns 95.0 % into harmless refusals, which training would learn",
        ),
        (57, 56, "warning", "Nothing shows that what the analyses say helps"),
        (40, 57, "warning", "another mistake 95.0 %: −28.3 points"),
    ],
)
def test_what_is_said_before_training(analysis, shuffled, level, says):
    rates = flip_report(flips_of(none=30, guidance=50, analysis=analysis, shuffled=shuffled))
    finding = flip_finding(rates)
    assert finding.level == level and says in finding.text
    others = "Guidance alone turns 83.3 %, and the instruction alone 50.0 %"
    assert (others in finding.text) == (level == "warning")


def test_the_warning_comes_before_training(opened, fake_engine, monkeypatch, caplog):
    monkeypatch.setattr(fake_engine.Rules, "student", lambda *_: REFUSAL)
    preflight(opened(), ANALYSES, alone=True)
    assert "Nothing shows that what the analyses say helps" in caplog.text
