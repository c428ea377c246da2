"""Results as plain data: `metrics.json` keeps the keys that its readers know."""

import json
from dataclasses import FrozenInstanceError, fields, is_dataclass
from pathlib import Path

import pytest
from test_measure import (
    LEARNED,
    WORTH,
    analysis,
    arm,
    labeled,
    mistake,
    plain,
    read,
    read_refusals,
    sound,
    usual,
    verdict,
)
from test_preflight import flips_of

from setbacks.measure import RunInfo, measure
from setbacks.measure.results import Change, Coefficient, Finding, Score, Spoken, to_json
from setbacks.measure.statistics import Estimate
from setbacks.records import OwnAnswer

# Every key of a report that has all parts, a line each: to add one, write it there as well.
KEYS = Path(__file__).parent / "data" / "metrics-keys.txt"

OWN = OwnAnswer(
    id="own",
    instruction_id="<an id>",
    instruction="<an instruction>",
    text="<an answer>",
    answer="<an answer>",
    outcome="kept",
    language="en",
    source="<a source>",
    model="some-model",
)


def whole() -> dict:
    """A report with all its parts: two judges, people, training, what the model says, costs."""
    arms = usual()
    rows, found = arms["vanilla"]
    rows[:] = [
        r.model_copy(update={"reference": "<another answer>", "prompt_harmful": True})
        if r.kind == "helpful"
        else r.model_copy(update={"thought": "<a thought>", "thought_tokens": 3})
        for r in rows
    ]
    found[:] = [v.model_copy(update={"preferred": v.helpful_score is not None}) for v in found]
    arms |= {"sft": arm("sft", 90, 95)}
    verdicts = {(name, "probe"): said for name, (_, said) in arms.items()}
    for name, (rows, _) in arms.items():
        verdicts[name, "llm"] = [
            verdict(r, "llm", harmful=i % 3 == 0, refused=i % 5 == 0) for i, r in enumerate(rows)
        ]
        if name in ("vanilla", "sft"):
            verdicts[name, "human"] = labeled(rows, 60)
    return plain(
        responses={name: rows for name, (rows, _) in arms.items()},
        verdicts=verdicts,
        thoughts={("vanilla", "probe"): verdicts["vanilla", "probe"]},
        environment={"python": "3"},
        mistakes=[
            mistake(0, 0, "mistake"),
            mistake(1, 0, "refusal"),
            mistake(2, 0, "mistake").model_copy(update={"kind": "refusal"}),
        ],
        analyses=[
            analysis(0, 0, length=True),
            analysis(0, 1, length=False),
            analysis(2, 0, harmful=False).model_copy(update={"kind": "refusal"}),
        ],
        checked={"own answers": [OWN]},
        examples=LEARNED,
        loss=[{"step": n, "loss": 1 / n, "loss_analysis": 1 / n} for n in range(1, 9)],
        trained={"examples": 9, "cut": 2, "left_out": 1},
        preflight=read([0.9, 0.1] * 30),
        flips=flips_of(none=30, guidance=45, analysis=57, shuffled=45),
        introspected=read([0.9, 0.1] * 30, sound()) + read_refusals(["It was wrong to refuse."]),
        overlap=[{"arm": "sft", "suite": "safe", "kind": "safe", "n": 100, "seen": 3}],
        left_out={"<a source>": {"<a suite>": {"exact": 1, "near": 2}}},
        worth={"probe": [WORTH]},
        costs=[{"stage": "judge", "seconds": 1.5, "records": 9, "prompt_tokens": 5, "tokens": 50}],
    )


NAMES = {*usual(), "sft", "probe", "llm", "human", "<a source>", "<a suite>"}


def keys(value, path="") -> set[str]:
    """The path of every value and its type; * is any name of NAMES, [] any place of a list."""
    if isinstance(value, dict) and value:
        return {
            line
            for key, item in value.items()
            for line in keys(item, f"{path}.{'*' if key in NAMES else key}")
        }
    if isinstance(value, list) and value:
        return {line for item in value for line in keys(item, f"{path}[]")}
    kind = {int: "number", float: "number"}.get(type(value), type(value).__name__)
    return {f"{path.removeprefix('.')}: {kind}"}


def test_metrics_json_has_the_keys_that_its_readers_know():
    known = set(KEYS.read_text().splitlines())
    now = keys(whole())
    assert known - now == set(), "gone"
    assert now - known == set(), f"new: write these into {KEYS.name}"


def test_it_is_json_as_it_stands():
    made = whole()
    assert json.loads(json.dumps(made, allow_nan=False)) == made


def test_a_coefficient_is_a_list_and_an_estimate_an_object():
    spoken = Spoken(60, Coefficient(0.71, 0.6, 0.8), Coefficient(0.1, None, None))
    assert to_json(spoken) == {"n": 60, "auc": [0.71, 0.6, 0.8], "ece": [0.1, None, None]}
    assert to_json(Estimate(0.5, 0.4, 0.6, 9)) == {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    assert to_json([Finding("note", "<words>")]) == [{"level": "note", "text": "<words>"}]


def test_what_was_not_tested_has_no_corrected_p():
    change = {"value": 0.1, "low": None, "high": None, "n": 1, "p": None}
    assert to_json(Change(**change)) == change
    assert to_json(Change(**change | {"p": 0.01, "p_holm": 0.02}))["p_holm"] == 0.02


def test_floats_are_rounded_and_zero_has_no_sign():
    assert to_json({"a": (0.12345678, -1e-9)}) == {"a": [0.123457, 0.0]}
    assert str(to_json(-1e-9)) == "0.0"


def test_a_score_of_an_earlier_version_was_asked_of_all_that_it_counts():
    cell = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    assert Score.of_json(cell) == Score(0.5, 0.4, 0.6, 9, 9)
    assert Score.of_json(cell | {"asked": 12}).asked == 12


def test_results_cannot_be_changed():
    result = measure(RunInfo(), responses={}, verdicts={})
    for part in (result, result.data, result.data.induction):
        assert is_dataclass(part)
        with pytest.raises(FrozenInstanceError):
            setattr(part, fields(part)[0].name, None)
