"""Alarms: every one is in a list, says something, and looks only at the results."""

import inspect
from collections.abc import Iterator

import pytest

from setbacks.measure import RunInfo, findings, measure
from setbacks.measure.findings import ALARMS, all_findings, answers, judges, training
from setbacks.measure.results import Coefficient, Finding, JudgeReport, Measurement, Spoken

EMPTY = JudgeReport((), None, (), (), (), None)


def alarms_of(module):
    """The public functions of a module that take results, or a judge's report, and yield."""
    made = inspect.getmembers(module, inspect.isfunction)
    of_results = {"results"}, {"judge", "report"}
    return {
        function
        for name, function in made
        if function.__module__ == module.__name__
        and not name.startswith("_")
        and {*inspect.signature(function).parameters} in of_results
        and inspect.isgeneratorfunction(function)
    }


@pytest.mark.parametrize("module", [answers, judges, training], ids=lambda m: m.__name__)
def test_every_alarm_is_in_a_list(module):
    """One that is written and not listed never rings."""
    written = alarms_of(module)
    assert written and written <= {*ALARMS, *judges.ALARMS}


def test_nothing_rings_where_nothing_was_measured():
    nothing = measure(RunInfo(), responses={}, verdicts={})
    assert list(all_findings(nothing)) == []
    rung = [alarm for alarm in judges.ALARMS if list(alarm("human", EMPTY))]
    assert rung == []
    assert list(judges.never_measured("llm", EMPTY)), "but a judge that nobody has measured"


def test_a_finding_is_said_once_and_in_the_order_of_the_list(monkeypatch):
    def first(results: Measurement) -> Iterator[Finding]:
        yield Finding("note", "<first>")

    def second(results: Measurement) -> Iterator[Finding]:
        yield Finding("warning", "<second>")
        yield Finding("note", "<first>")

    monkeypatch.setattr(findings, "ALARMS", (first, second))
    nothing = measure(RunInfo(), responses={}, verdicts={})
    assert [finding.text for finding in all_findings(nothing)] == ["<first>", "<second>"]
    assert [finding.text for finding in nothing.findings] == ["<first>", "<second>"]


@pytest.mark.parametrize(
    ("auc", "rings"),
    [((0.7, 0.55, 0.8), False), ((0.7, 0.45, 0.9), True), ((0.55, 0.52, 0.6), True)],
)
def test_near_chance_is_a_low_auc_or_an_interval_that_reaches_a_half(auc, rings):
    spoken = Spoken(60, Coefficient(*auc), Coefficient(0.1, 0.05, 0.2))
    warning = training.near_chance(spoken)
    assert (warning is not None) == rings
    assert not rings or f"AUC {auc[0]:.2f} [{auc[1]:.2f}, {auc[2]:.2f}]" in warning
