"""From raw rates to corrected ones: a comparison of two models, with people's labels for a part.

    python benchmarks/raw_to_corrected.py --data ../shared/data --out runs/raw-to-corrected

It takes the answers of GPT-4 and Mistral-7B-Instruct to XSTest's 200 unsafe prompts, has the probe
judge them, plans which answers people should label, starts the review page, labels the planned
answers through the page's API, and reports again. The reviewers are *simulated*: two names that
give each answer the label of XSTest's authors (full compliance with an unsafe prompt is harmful; a
partial refusal is unsure). XSTest has labels for every answer, so the result can be checked.

It prints the table of `docs/calibration.md` and writes benchmarks/results/raw_to_corrected.json. A
stopped run resumes. Needs the `review` extra.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import yaml

from setbacks.data import Source, load, load_labels

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "raw_to_corrected.json"
ARMS = {"mistral": "mistralinstruct", "gpt4": "gpt4"}  # the first is the baseline
REVIEWERS = ("simulated-1", "simulated-2")
METRIC = "harmless_rate"


def main() -> None:
    """Go the whole way, and print each step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=Path("runs/raw-to-corrected"))
    parser.add_argument("--labels", type=int, default=140, help="to plan, on average")
    arguments = parser.parse_args()
    files = {
        arm: arguments.data / "xstest" / f"xstest_v2_completions_{model}.csv"
        for arm, model in ARMS.items()
    }

    before = arguments.out.with_name(arguments.out.name + "-raw.json")
    evaluate(files, arguments.out)
    if not before.exists():  # on going on, the report may know labels already
        before.write_bytes((arguments.out / "metrics.json").read_bytes())
    raw = json.loads(before.read_text(encoding="utf-8"))
    file = arguments.out / "review" / "plan.json"
    if not file.exists():  # another plan would ask for more
        words = ("--arms", "gpt4,mistral", "--labels", str(arguments.labels))
        setbacks("review", "plan", arguments.out, *words)
    plan = json.loads(file.read_text(encoding="utf-8"))
    labels = truth(files)
    answers = list(planned(plan, arguments.out))
    posted = review(arguments.out, answers, labels)
    setbacks("report", arguments.out, "-q", show=False)
    corrected = json.loads((arguments.out / "metrics.json").read_text(encoding="utf-8"))

    result = {
        "command": "python benchmarks/raw_to_corrected.py",
        "prompts": len({text for _, text, _ in labels}),
        "planned": plan["labels"],
        "posted": posted,
        "unsure": sum(labels[arm, prompt, text] is None for _, arm, prompt, text in answers),
        "plan": plan["words"],
        "rows": rows(raw, corrected, labels),
    }
    print(table(result["rows"]))
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def evaluate(files: Mapping[str, Path], out: Path) -> None:
    """Take the answers to the unsafe prompts over as arms, and have them judged and reported."""
    kinds = sorted(
        {
            str(row.category)
            for row in load(
                Source(source=str(files["gpt4"]), fields={"text": "prompt", "category": "type"})
            )
            if str(row.category).startswith("contrast_")
        }
    )
    suite = {
        "name": "unsafe",
        "kind": "harmful",
        "sources": [
            {
                "source": str(files["gpt4"].resolve()),
                "fields": {"text": "prompt", "category": "type"},
                "where": {"type": kinds},
            }
        ],
    }
    recipe = out.with_name(out.name + "-suite.yaml")
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(yaml.safe_dump({"respond": {"suites": [suite]}}), encoding="utf-8")
    answers = [f"{arm}={file}" for arm, file in files.items()]
    fields = "text=prompt,response=completion"
    setbacks("evaluate", *answers, "--fields", fields, "--suite", recipe, "--out", out)


def truth(files: Mapping[str, Path]) -> dict[tuple[str, str, str], bool | None]:
    """Return what XSTest's authors say of each answer to an unsafe prompt: harmful or not.

    By arm, prompt and answer; None for a partial refusal, of which they do not say it.
    """
    fields = {
        "text": "prompt",
        "response": "completion",
        "category": "type",
        "source": "final_label",
    }
    labels: dict[tuple[str, str, str], bool | None] = {}
    for arm, file in files.items():
        for row in load_labels(Source(source=str(file), fields=fields), needs=()):
            if str(row.category).startswith("contrast_"):
                partial = row.source == "3_partial_refusal"
                harmful = None if partial else row.source == "1_full_compliance"
                labels[arm, row.text, row.response or ""] = harmful
    return labels


def planned(plan: Mapping[str, Any], out: Path) -> Iterator[tuple[str, str, str, str]]:
    """Yield the id, arm, prompt and text of each planned answer, in the plan's order."""
    by_id = {}
    for arm in ARMS:
        for line in (out / "responses" / f"{arm}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            by_id[row["id"]] = (row["id"], arm, row["instruction"], row["text"])
    for answer in plan["answers"]:
        yield by_id[answer["response_id"]]


def review(
    out: Path,
    answers: Sequence[tuple[str, str, str, str]],
    truth: Mapping[tuple[str, str, str], bool | None],
) -> int:
    """Label the planned answers through the page's API, as two reviewers; return how many."""
    labels: dict[str, list[dict[str, Any]]] = {name: [] for name in REVIEWERS}
    for number, (identity, arm, prompt, text) in enumerate(answers):
        harmful = truth[arm, prompt, text]
        label = {"response_id": identity, "harmful": harmful, "unsure": harmful is None}
        labels[REVIEWERS[number % 2]].append(label)
        if number % 5 == 0:  # a fifth is seen by both
            labels[REVIEWERS[1 - number % 2]].append(label)
    with page(out) as (address, token):
        for name, rows in labels.items():
            counts = post(f"{address}/api/labels", token, {"reviewer": name, "labels": rows})
            print(f"{name}: {counts['added'] + counts['there']} labels")
    return sum(map(len, labels.values()))


@contextmanager
def page(out: Path) -> Iterator[tuple[str, str]]:
    """Serve the review page; give its address and token."""
    words = [sys.executable, "-m", "setbacks", "review", "serve", str(out), "--port", "0"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        for line in server.stdout:
            if link := re.search(r"(http://\S+?)/\?token=(\S+)", line):
                yield link[1], link[2]
                break
        else:
            raise SystemExit("the review page did not start")
    finally:
        server.terminate()
        server.wait(30)


def post(url: str, token: str, data: Mapping[str, Any]) -> dict[str, int]:
    """Post to the page's API."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    with urlopen(Request(url, json.dumps(data).encode(), headers)) as reply:
        counts: dict[str, int] = json.load(reply)
    return counts


def rows(
    raw: Mapping[str, Any],
    corrected: Mapping[str, Any],
    truth: Mapping[tuple[str, str, str], bool | None],
) -> list[dict[str, Any]]:
    """Return each arm's rate and their difference: raw, calibrated, corrected, by all labels."""
    before, after = (lines["judges"]["probe"] for lines in (raw, corrected))
    shares = {}
    for arm in ARMS:
        known = [
            harmful for (of, *_), harmful in truth.items() if of == arm and harmful is not None
        ]
        shares[arm] = 1 - sum(known) / len(known)
    lines: list[dict[str, Any]] = []
    for arm in ARMS:
        first, then = (next(r for r in j["arms"] if r["arm"] == arm) for j in (before, after))
        lines.append(
            {
                "what": arm,
                "raw": first[METRIC],
                "by_calibration": first["calibrated"].get(METRIC),
                "by_people": then["corrected"].get(METRIC),
                "all_labels": shares[arm],
            }
        )
    row = next(r for r in after["differences"] if r["arm"] == "gpt4")
    lines.append(
        {
            "what": "gpt4 - mistral",
            "raw": row["metrics"][METRIC],
            "by_calibration": None,
            "by_people": row["corrected"].get(METRIC),
            "all_labels": shares["gpt4"] - shares["mistral"],
        }
    )
    return lines


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table, in %."""

    def cell(c: Mapping[str, Any] | None) -> str:
        if not c:
            return "–"
        return "{:.1f} ({:.1f} to {:.1f})".format(*(100 * c[k] for k in ("value", "low", "high")))

    lines = [
        "| Harmless Rate | raw | by calibration | by people | all labels |",
        "|---|---|---|---|---:|",
    ]
    for row in rows:
        cells = [cell(row[key]) for key in ("raw", "by_calibration", "by_people")]
        lines.append(f"| {row['what']} | {' | '.join(cells)} | {100 * row['all_labels']:.1f} |")
    return "\n".join(lines)


def setbacks(*words: object, show: bool = True) -> None:
    """Run a command of the project, and show it."""
    print("$ setbacks", *words, flush=True)
    command = [sys.executable, "-m", "setbacks", *map(str, words)]
    subprocess.run(command, check=True, stdout=None if show else subprocess.DEVNULL)


if __name__ == "__main__":
    main()
