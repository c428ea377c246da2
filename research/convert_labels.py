"""Make the files in judge-labels/ from the repositories in which the labels are published.

Clone the repositories into one folder, each under its own name, and run this from the root of this
repository:

    git clone --depth 1 https://github.com/sherdencooper/GPTFuzz RAW/GPTFuzz       # and so on
    python research/convert_labels.py --raw RAW --data DIR

`SETS` names the repositories. It writes DIR/judge-labels/NAME.jsonl.gz for each one that is there.
DIR must already hold the sets that the judge is measured on (`judge_agreement.py` lists them): a
row with nearly a question or an answer of theirs gets `overlaps_measured`, and is never fitted on.
XSTest and HH-RLHF need no conversion: `judge_labels.py` reads them as they are published.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from judge_agreement import NEVER_FITTED, SOURCES

from setbacks.data.near import NearIndex

LOW, HIGH = 1 / 3, 2 / 3  # severity: up to the first is harmless, from the second harmful
UNSAFE, SAFE = 0.5, 0.25  # share of raters: from the first is harmful, below the second harmless

csv.field_size_limit(10**9)


def gptfuzz(folder: Path) -> Iterator[dict[str, Any]]:
    """Answers to jailbreaks; 1: it gives what was asked. The question is a number in a list."""
    with open(folder / "datasets/questions/question_list.csv", encoding="utf-8") as file:
        questions = [row["text"] for row in csv.DictReader(file)]
    for part in sorted((folder / "datasets/responses_labeled").glob("*.csv")):
        for row in table(part):
            asked = questions[int(row["question"])]
            yield {
                "instruction": asked,
                "response": row["Response"],
                "harmful": row["label"] == "1",
            }


def pyrit(folder: Path) -> Iterator[dict[str, Any]]:
    """Severity of harm from 0 to 1, by one to three people; or whether an objective is reached."""
    for part in sorted((folder / "pyrit/datasets/scorer_evals").glob("*/*.csv")):
        if part.parent.name not in ("harm", "objective"):
            continue
        with open(part, encoding="utf-8", errors="replace", newline="") as file:
            lines = (line for line in file if not line.startswith("# dataset_version"))
            for row in csv.DictReader(lines):
                names = [name for name in row if name and name.startswith("human_score")]
                scores = [float(row[name]) for name in names if row[name]]
                if row.get("data_type") != "text" or not scores:
                    continue
                mean = sum(scores) / len(scores)
                yield {
                    "instruction": row["objective"],
                    "response": row["assistant_response"],
                    "harmful": True if mean >= HIGH else False if mean <= LOW else None,
                    "score": mean,
                    "category": f"{part.parent.name}/{part.stem}",
                }


def rbr(folder: Path) -> Iterator[dict[str, Any]]:
    """Researchers' labels of what an answer holds: disallowed content is harmful."""
    for part in sorted((folder / "data/rbr_gold_data").glob("*.jsonl")):
        for line in part.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            *earlier, last = row["prompt"]
            says = row["propositions"]
            yield {
                "context": "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in earlier),
                "instruction": last["content"],
                "response": row["completion"][0]["content"],
                "harmful": bool(says["disallowed_content"]),
                "refused": True if says["inability_to_comply"] else None,
                "category": row["category"],
                "group": row["prompt"][0]["content"],
            }


def purseclab(folder: Path) -> Iterator[dict[str, Any]]:
    """The authors' labels: does an answer to a jailbreak violate the policy?"""
    for row in table(folder / "raw-data/manual_data.csv"):
        harmful = row["manual_safeguard_violation_label"] == "True"
        yield {"instruction": row["intent"], "response": row["response"], "harmful": harmful}


def realharm(folder: Path) -> Iterator[dict[str, Any]]:
    """Real incidents, and their safe versions."""
    for part in sorted((folder / "data").glob("*safe/*.yml")):
        row = yaml.safe_load(part.read_text(encoding="utf-8"))
        turns = row["conversation"]
        if len(turns) < 2 or turns[-1]["role"] != "agent":
            continue
        yield {
            "context": "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns[:-2]),
            "instruction": turns[-2]["content"],
            "response": turns[-1]["content"],
            "harmful": row["label"] == "unsafe",
            "language": row.get("language", "en"),
            "group": part.name.split("_", 2)[-1],
        }


def dices(folder: Path) -> Iterator[dict[str, Any]]:
    """Is the last answer unsafe? The share of 60 to 123 raters who decided.

    In between it is contested, and so it is if experts rated it as well and contradict.
    """

    def rated(name: str) -> list[dict[str, Any]]:
        rows = json.loads((folder / f"data/dices/{name}.json").read_text(encoding="utf-8"))
        return list(rows["instances"])

    def share(row: dict[str, Any]) -> float:
        votes = row["annotations"]["safety"]["individual_human_scores"]
        return votes.count("Yes") / max(1, votes.count("Yes") + votes.count("No"))  # Yes: unsafe

    experts = {row["id"]: share(row) for row in rated("dices_350_expert")}
    for name in ("dices_350_crowdsourced", "dices_990"):
        for row in rated(name):
            unsafe = share(row)
            harmful = True if unsafe >= UNSAFE else False if unsafe < SAFE else None
            if name.startswith("dices_350") and (experts[row["id"]] >= UNSAFE) is not harmful:
                harmful = None
            context = row["instance"]["user_prompt"].replace("\\n", "\n").strip()
            last = context.rpartition("\n")[2]
            yield {
                "context": context,  # with the last turn
                "instruction": last.partition(": ")[2] or last,
                "response": row["instance"]["response"],
                "harmful": harmful,
                "score": unsafe,
                "group": f"{name} {row['id']}",
            }


def safetext(folder: Path) -> Iterator[dict[str, Any]]:
    """Advice, physically safe or not."""
    rows = json.loads((folder / "SafeText.json").read_text(encoding="utf-8"))
    for asked, advice in rows.items():
        for name, harmful in (("unsafe", True), ("safe", False)):
            for text in advice[name]:
                yield {"instruction": asked, "response": text, "harmful": harmful}


def square(folder: Path) -> Iterator[dict[str, Any]]:
    """Is an answer to a sensitive question acceptable? Korean, in its machine translation."""
    file = folder / "data/SQuARe/response_test_ood.json"
    for row in json.loads(file.read_text(encoding="utf-8")):
        yield {
            "instruction": row["question_en"],
            "response": row["response_en"],
            "harmful": not row["acceptable?"],
            "language": "en (translated from ko)",
            "group": row["question"],
        }


def refusals(folder: Path) -> Iterator[dict[str, Any]]:
    """Answers of ChatGPT, hand-labeled: rejected, complied, or another tone, which stays open."""
    file = folder / "data/all_hand_labeled.json"
    for row in json.loads(file.read_text(encoding="utf-8")):
        yield {
            "instruction": row["prompt"],
            "response": row["response"],
            "harmful": False if row["tone"] == "rejected" else None,
            "refused": {"rejected": True, "complied": False}.get(row["tone"]),
            "category": row["tone"],
        }


class Published(NamedTuple):
    """Where a set of labels is published, and how it is read."""

    repository: str  # on GitHub
    read: Callable[[Path], Iterator[dict[str, Any]]]
    license: str


SETS = {
    "gptfuzz": Published("sherdencooper/GPTFuzz", gptfuzz, "MIT"),
    "pyrit": Published("microsoft/PyRIT", pyrit, "MIT"),
    "rbr": Published("openai/safety-rbr-code-and-data", rbr, "MIT"),
    "purseclab": Published("purseclab/jailbreak-evaluation", purseclab, "Apache-2.0"),
    "realharm": Published("Giskard-AI/realharm", realharm, "CC BY 4.0"),
    "dices": Published("dmg-illc/JUDGE-BENCH", dices, "CC BY 4.0"),  # DICES in a smaller form
    "safetext": Published("sharonlevy/SafeText", safetext, "MIT"),
    "square": Published("naver-ai/korean-safety-benchmarks", square, "MIT"),
    "refusals": Published("maxwellreuter/chatgpt-refusals", refusals, "MIT"),
}


def table(file: Path) -> Iterator[dict[str, str]]:
    """Read a CSV file row by row."""
    with open(file, encoding="utf-8", errors="replace", newline="") as lines:
        yield from csv.DictReader(lines)


def main() -> None:
    """Convert every set that is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", type=Path, required=True, help="folder of the clones")
    parser.add_argument("--data", type=Path, required=True, help="folder of public data")
    arguments = parser.parse_args()
    questions, answers = NearIndex(), NearIndex()
    for name in NEVER_FITTED:
        if (arguments.data / name).is_dir():
            for row in SOURCES[name].read(arguments.data / name):
                questions.add(row.instruction)
                answers.add(row.response)
    folder = arguments.data / "judge-labels"
    folder.mkdir(exist_ok=True)
    for name, published in SETS.items():
        clone = arguments.raw / published.repository.rpartition("/")[2]
        if not clone.is_dir():
            print(f"{name}: no {clone}, left out")
            continue
        seen = set()
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            for row in published.read(clone):
                key = (row.get("context"), row["instruction"], row["response"])
                if key in seen or not row["response"]:
                    continue
                seen.add(key)
                more = {
                    "group": row["instruction"],
                    "context": None,
                    "refused": None,
                    "overlaps_measured": questions.has_near(row["instruction"])
                    or answers.has_near(row["response"]),
                    "source": f"https://github.com/{published.repository}",
                    "license": published.license,
                }
                file.write(json.dumps(more | row, ensure_ascii=False) + "\n")
        print(f"{name}: {len(seen)} rows")


if __name__ == "__main__":
    main()
