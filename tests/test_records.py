"""Records: what names them, and what comes back from a line of JSON."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from setbacks.records import (
    Analysis,
    Example,
    Mistake,
    Response,
    Verdict,
    digest,
)

numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
SCORES = dict.fromkeys(("p_harmful", "p_refused", "harmless_score", "helpful_score"), numbers)
RECORDS = {
    Mistake: {},
    Analysis: {"score": st.floats(allow_nan=False, allow_infinity=False)},
    Example: {},
    Response: {},
    Verdict: SCORES,
}


def test_a_digest_is_the_same_everywhere():
    """Folders made by one version are resumed by the next: these values are for ever."""
    assert digest("mistake", 0, "é\ud800", None, True) == "a32620fbac2ce597"
    assert digest() == "e4a6a0577479b2b4"


parts = st.lists(st.text(st.characters(exclude_characters="\x1f")), min_size=1, max_size=4)


@given(parts, parts)
def test_digests_differ_where_parts_differ(one, other):
    assert (digest(*one) == digest(*other)) == (one == other)


def test_the_order_and_the_bounds_of_parts_count():
    assert len({digest("a", "b"), digest("b", "a"), digest("ab"), digest("ab", "")}) == 4


@pytest.mark.parametrize("kind", RECORDS)
def test_a_line_of_json_gives_the_record_back(kind):
    @given(st.builds(kind, **RECORDS[kind]))
    def check(record):
        line = record.model_dump_json()
        assert "\n" not in line
        assert kind.model_validate_json(line.encode()) == record

    check()


def test_records_neither_change_nor_take_unknown_fields():
    record = Verdict(id="1", response_id="2", judge="<a judge>")
    with pytest.raises(ValidationError):
        record.judge = "<another>"
    with pytest.raises(ValidationError):
        Verdict(id="1", response_id="2", judge="<a judge>", colour="blue")


@pytest.mark.parametrize(
    ("checks", "passed"), [({"a": True, "b": True}, True), ({"a": True, "b": False}, False)]
)
def test_an_analysis_passes_when_every_check_does(checks, passed):
    analysis = Analysis(
        id="1",
        response_id="2",
        instruction="<x>",
        response="<y>",
        harmful=True,
        text="<t>",
        candidate=0,
        checks=checks,
        score=0,
        category=None,
        language="en",
        analyst="m",
    )
    assert analysis.passed is passed
