"""Folders of earlier releases open, are reported, and go on where they stopped."""

import json
import shutil
from pathlib import Path

import pytest

from setbacks.errors import SetbacksError
from setbacks.judges import probe
from setbacks.records import SCHEMA_VERSION, Analysis, Example, Mistake, Response, Verdict
from setbacks.runs.folder import RunFolder
from setbacks.stages.report import report

OLD = sorted((Path(__file__).parents[1] / "data").glob("run-*"))
ARMS = ["vanilla", "vanilla-guided", "mistake_analysis", "mistake_analysis-guided"]


@pytest.fixture(params=OLD, ids=lambda folder: folder.name)
def old(request, tmp_path):
    """A copy of a folder that an earlier release left."""
    return shutil.copytree(request.param, tmp_path / "run")


def records(folder):
    """The bytes of every file of records, and of the adapter."""
    found = [*folder.rglob("*.jsonl"), *folder.glob("adapter/*")]
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in found
        if path.name != "costs.jsonl"
    }


def test_the_first_release_is_kept():
    assert "run-0.1.0" in [folder.name for folder in OLD]


def test_every_record_is_read_and_says_its_version(old):
    with RunFolder(old) as run:
        names = {
            "mistakes": Mistake,
            "analyses": Analysis,
            "training": Example,
            **{f"responses/{arm}": Response for arm in ARMS},
            **{f"verdicts/{arm}.probe": Verdict for arm in ARMS},
        }
        for name, kind in names.items():
            found = run.records(f"{name}.jsonl", kind)
            assert found and all(1 <= record.v <= SCHEMA_VERSION for record in found), name


def values(data, path=()):
    """Every value of plain data, by its path; floats to 6 places."""
    if isinstance(data, dict | list) and data:
        items = data.items() if isinstance(data, dict) else enumerate(data)
        return {k: v for key, item in items for k, v in values(item, (*path, key)).items()}
    return {path: round(data, 6) if isinstance(data, float) else data}


def test_it_is_reported_with_the_same_keys_and_numbers(old):
    """By the release of today, without a model: nothing in the records means something else now."""
    before = values(json.loads((old / "metrics.json").read_text()))
    with RunFolder(old) as run:
        assert report(run).path.exists()
    after = values(json.loads((old / "metrics.json").read_text()))
    words = ("findings", "summary")  # what the numbers mean may be said in other words
    numbers = {path: value for path, value in before.items() if path[0] not in words}
    assert len(numbers) > 400
    assert {path: after.get(path) for path in numbers} == numbers


def test_a_record_of_a_later_release_is_told(old):
    """Its words may mean what this release does not know."""
    path = old / "mistakes.jsonl"
    newer = f'"v":{SCHEMA_VERSION + 1}'
    path.write_text(path.read_text().replace('"v":1', newer))
    with RunFolder(old) as run, pytest.raises(SetbacksError, match="later version of setbacks"):
        run.records("mistakes.jsonl", Mistake)


@pytest.mark.slow
def test_it_is_whole_and_nothing_is_done_again(old, cli):
    before = records(old)
    ran = cli("report", "run", timeout=600)
    assert ran.returncode == 0, ran.stderr
    assert before.items() <= records(old).items()


@pytest.mark.slow
def test_it_goes_on_where_it_stopped(old, cli):
    """Other versions of libraries may make other words; the records are those that were planned."""
    cut = "responses/mistake_analysis.jsonl"
    before = records(old)
    (old / cut).unlink()
    shutil.rmtree(old / "verdicts")  # today's judge is another one
    before = {name: data for name, data in before.items() if not name.startswith("verdicts/")}
    ran = cli("report", "run", timeout=600)
    assert ran.returncode == 0, ran.stderr
    after = records(old)
    ids, planned = (
        [json.loads(line)["id"] for line in found.pop(cut).splitlines()]
        for found in (after, before)
    )
    assert ids == planned
    assert before.items() <= after.items()


@pytest.mark.slow
def test_verdicts_of_two_versions_of_a_judge_are_not_mixed(old, cli):
    (old / "verdicts/vanilla.probe.jsonl").unlink()
    before = records(old)
    ran = cli("report", "run", timeout=600)
    assert ran.returncode == 2 and before.items() <= records(old).items()
    now = probe.VERSION
    assert f"holds verdicts by version 1 of probe, which is version {now} now" in ran.stderr
    ran = cli("report", "run", "--from", "judge", timeout=600)
    assert ran.returncode == 0, ran.stderr
    with RunFolder(old) as run:
        assert {v.version for v in run.verdicts("probe").values()} == {now}
