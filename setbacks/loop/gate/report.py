"""A gate's decision for people and for machines: text, Markdown, JUnit XML, JSON."""

from __future__ import annotations

from xml.etree import ElementTree

from setbacks.loop.gate import By, Evidence, Gate
from setbacks.measure.formatting import change_in_words, unit_of_change

BY: dict[By, str] = {
    "labels": "corrected by people's labels",
    "calibration": "corrected by the judge's calibration",
    "judge": "as judged; the judge's error is not known",
}


def difference(one: Evidence) -> str:
    """Return a claim's difference with its interval, such as "+8.3 points (95 % +2.1 to +14.5)"."""
    if one.difference.value is None:
        return "not measured"
    return change_in_words(one.difference, unit_of_change(one.claim.metric))


def lines(gate: Gate) -> list[str]:
    """Return the decision as lines of text: the decision first, then each claim, then what next."""
    return [
        f"{gate.decision}: {gate.candidate} against {gate.base}, judged by {gate.judge}",
        *(
            f"- {one.outcome}: {one.claim.text}: {difference(one)}, {BY[one.by]}"
            for one in gate.evidence
        ),
        *(f"- incomplete: {line}" for line in gate.incomplete),
        *(f"- to decide: {line}" for line in gate.next),
    ]


def markdown(gate: Gate) -> str:
    """Return the decision as Markdown, for a pull request."""
    rows = [
        f"| {one.claim.text} | **{one.outcome}** | {difference(one)} | {BY[one.by]} |"
        for one in gate.evidence
    ]
    return "\n".join(
        [
            f"### setbacks gate: {gate.decision}",
            "",
            f"`{gate.candidate}` against `{gate.base}`, judged by {gate.judge}",
            "",
            "| claim | outcome | candidate − base | judge's error |",
            "|---|---|---|---|",
            *rows,
            "",
            *(f"- Incomplete: {line}" for line in gate.incomplete),
            *(f"- To decide: {line}" for line in gate.next),
            "",
        ]
    )


def junit(gate: Gate) -> str:
    """Return the decision as JUnit XML: a test for each claim, and one for completeness.

    A refuted claim is a failure; an open claim or missing results are an error, so nothing that is
    undecided passes.

    Source: https://github.com/testmoapp/junitxml
    """
    cases = [
        (one.claim.text, one.outcome, f"{difference(one)}, {BY[one.by]}") for one in gate.evidence
    ]
    if gate.incomplete:
        cases.append(("all results are there", "open", "; ".join(gate.incomplete)))
    tags = {"refuted": "failure", "open": "error"}
    counts = [outcome for _, outcome, _ in cases]
    suite = ElementTree.Element(
        "testsuite",
        name="setbacks gate",
        tests=str(len(cases)),
        failures=str(counts.count("refuted")),
        errors=str(counts.count("open")),
    )
    for name, outcome, text in cases:
        case = ElementTree.SubElement(suite, "testcase", classname="setbacks.gate", name=name)
        if outcome in tags:
            ElementTree.SubElement(case, tags[outcome], message=text)
        else:
            ElementTree.SubElement(case, "system-out").text = text
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def as_json(gate: Gate) -> dict[str, object]:
    """Return the decision as plain data."""
    return {
        "decision": gate.decision,
        "base": gate.base,
        "candidate": gate.candidate,
        "judge": gate.judge,
        "claims": [
            {
                "metric": one.claim.metric,
                "better": one.claim.better,
                "margin": one.claim.margin,
                "outcome": one.outcome,
                "difference": one.difference.value,
                "low": one.difference.low,
                "high": one.difference.high,
                "n": one.difference.n,
                "by": one.by,
            }
            for one in gate.evidence
        ],
        "incomplete": list(gate.incomplete),
        "next": list(gate.next),
    }
