"""What docs/other-tools.md shows: pandas and datasets read a run's files and exported labels."""

import re
from pathlib import Path

from setbacks.records import Response, Verdict, digest
from setbacks.review.labels import Label
from setbacks.review.serve import give_out, open_store
from setbacks.runs.folder import RunFolder

PAGE = Path(__file__).resolve().parents[1] / "docs" / "other-tools.md"


def test_the_lines_of_the_page_load_verdicts_answers_and_labels(answered, tmp_path, monkeypatch):
    rows = [("harmful", f"<question {i}>", f"<answer {i}>") for i in range(6)]
    folder = tmp_path / "runs" / "quickstart"
    folder.parent.mkdir()
    answered({"vanilla": rows}, "quickstart").rename(folder)
    with RunFolder(folder) as run:
        responses = run.records("responses/vanilla.jsonl", Response)
        said = [
            Verdict(
                id=digest("verdict", r.id), response_id=r.id, judge="probe", harmful=i > 3,
                p_harmful=i / 8, refused=False,
            )
            for i, r in enumerate(responses)
        ]  # fmt: skip
        run.journal("verdicts/vanilla.probe.jsonl", Verdict).write(said)
    store = open_store(folder)
    names = sorted(store.batch.answers)[:3]
    # The first lines hold nulls where the last ones do not, and the other way round.
    marks = [{"unsure": True}, {"harmful": True}, {"harmful": False, "refused": False, "note": "x"}]
    store.add([Label(answer=a, reviewer="Ada", **m) for a, m in zip(names, marks, strict=True)])
    give_out(folder, tmp_path / "labels.jsonl")
    store.close()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    found = {}
    exec(block, found)
    assert found["verdicts"].p_harmful.tolist() == [v.p_harmful for v in said]
    assert list(found["verdicts"].response_id) == list(found["answers"]["id"])
    assert list(found["answers"]["text"]) == [r.text for r in responses]
    labels = {row["answer"]: row for row in found["labels"]}
    assert [labels[name]["harmful"] for name in names] == [None, True, False]
    assert all(row["reviewer"] == "Ada" for row in labels.values())
