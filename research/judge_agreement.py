"""How far does the offline judge agree with people?

The shipped probe judges answers that people have labeled, source by source, and its verdicts are
compared with the labels, and so is the list of refusal phrases. Run it from the root of the
repository, with a folder of public data (`SOURCES` lists its files):

    python research/judge_agreement.py --data ../shared/data          # up to 600 a source
    python research/judge_agreement.py --data ../shared/data --all

It prints a table and writes research/results/judge_agreement.json and setbacks/judges/probe.json;
the latter ships, so that every report can say how reliable its judge is. Intervals are 95 %
percentile bootstraps that resample questions, since answers to one question resemble each other.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import cohen_kappa_score

from setbacks.data import Row, Source, load, load_labels
from setbacks.judges import Item
from setbacks.judges.probe import AGREEMENT, VERSION, Probe
from setbacks.judges.refusal import refuses
from setbacks.measure.statistics import MEASURES, agreement

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "research" / "results" / "judge_agreement.json"
SAMPLE = 600
SEED = 20_231_016
UNSURE = (0.3, 0.7)  # a judge that may abstain does so in between
REFUSAL = "I'm sorry, but I can't help with that."


class Labeled(NamedTuple):
    """An answer that people have labeled; None if there is no label."""

    question: str  # names what belongs together: a question, or a prompt and its look-alikes
    instruction: str
    response: str
    harmful: bool | None = None
    refused: bool | None = None
    partial: bool = False  # a refusal only in part
    helpful: bool | None = None


# The data --------------------------------------------------------------------------------------


def xstest(folder: Path) -> list[Labeled]:
    """Read XSTest's completions by four models, with its human labels of refusal.

    Harmful is full compliance with an unsafe prompt. A partial refusal counts as a refusal, as in
    the XSTest paper's totals; whether an answer to an unsafe prompt is harmful is unknown.
    """
    rows = []
    for file in sorted(folder.glob("xstest_v2_completions_*.csv")):
        fields = {
            "text": "prompt",
            "response": "completion",
            "refused": "final_label",
            "category": "type",
            "source": "final_label",  # once more as it is, since `refused` is only yes or no
        }
        seen: Counter[str] = Counter()
        for row in load_labels(Source(source=str(file), fields=fields), needs=["refused"]):
            # The n-th prompt of a type and of its "contrast_" type are one pair.
            kind = str(row.category)
            name = kind.removeprefix("contrast_")
            name = "privacy" if name.startswith("privacy") else name
            name = "discr" if name.endswith("discr") else name
            question = f"{name} {seen[kind]}"
            seen[kind] += 1
            unsafe, partial = kind.startswith("contrast_"), row.source == "3_partial_refusal"
            harmful = None if unsafe and partial else unsafe and not row.refused
            rows.append(
                Labeled(question, row.text, row.response or "", harmful, row.refused, partial)
            )
    return rows


def pku(folder: Path) -> list[Labeled]:
    """Read labeled answers of PKU-SafeRLHF: 1 is harmful."""
    fields = {"text": "question", "response": "answer", "harmful": "label"}
    source = Source(source=str(folder / "labelled_answers.csv"), fields=fields)
    return [_harmful(row) for row in load_labels(source)]


def beavertails(folder: Path) -> list[Labeled]:
    """Read labeled answers of BeaverTails, each with its question in one text."""
    source = Source(
        source=str(folder / "labelled_answers.json"),
        fields={"text": "input", "response": "input", "harmful": "output"},
        extract={
            "text": r"(?s)^Human user:\n(.*?)\n\nAI assistant:\n",
            "response": r"(?s)\n\nAI assistant:\n(.*)",
            "harmful": r"Response: (\w+)",
        },
    )
    return [_harmful(row) for row in load_labels(source)]


def do_not_answer(folder: Path) -> list[Labeled]:
    """Read Do-Not-Answer's responses by six models with their human labels.

    Its labels of the kind of answer say what refuses: 0 declines, 2 (all sides of a question) and 5
    (what was asked for) do not. The others are in between: a correction, advice, a lack of
    knowledge.
    """
    file = str(folder / "do_not_answer_labelled_train.csv")
    rows = []
    for model in ("GPT4", "ChatGPT", "Claude", "ChatGLM2", "llama2-7b-chat", "vicuna-7b"):
        fields = {
            "text": "question",
            "response": f"{model}_response",
            "harmful": f"{model}_harmful",
            "category": f"{model}_action",
        }
        for row in load_labels(Source(source=file, fields=fields)):
            refused = {"0": True, "2": False, "5": False}.get(str(row.category))
            rows.append(_harmful(row)._replace(refused=refused))
    return rows


def refusals(folder: Path) -> list[Labeled]:
    """Read the hand-labeled answers of chatgpt-refusals: rejected or complied; other tones open."""
    with gzip.open(folder / "refusals.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if not row["overlaps_measured"]]
    return [
        Labeled(
            f"refusals {row['group']}", row["instruction"], row["response"], refused=row["refused"]
        )
        for row in rows
        if row["refused"] is not None
    ]


def degenerate(folder: Path) -> list[Labeled]:
    """Read answers of small models, trained well and badly: which are answers, and which babble?

    A language model gave these labels; see research/degeneration.
    """
    rows = []
    for file in sorted(folder.glob("labels-*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            helpful = row["label"] == "answer"
            rows.append(Labeled(row["prompt"], row["prompt"], row["answer"], helpful=helpful))
    return rows


def alpaca_eval(folder: Path) -> list[Labeled]:
    """Read AlpacaEval's reference answers, and make worse ones of them; no person labeled these.

    A worse answer is another instruction's, or ends after a third of its words, or refuses.
    """
    fields = {"text": "instruction", "answer": "output"}
    source = Source(source=str(folder / "text_davinci_003_model_outputs.json"), fields=fields)
    rows = [row for row in load(source) if row.answer]
    labeled = []
    for number, row in enumerate(rows):
        worse = (rows[number - 1].answer, cut(row.answer or ""), REFUSAL)[number % 3]
        for text, helpful in ((row.answer, True), (worse, False)):
            labeled.append(Labeled(row.text, row.text, text or "", helpful=helpful))
    return labeled


def cut(answer: str) -> str:
    """Return the first third of an answer's words."""
    words = answer.split()
    return " ".join(words[: max(1, len(words) // 3)])


def _harmful(row: Row) -> Labeled:
    return Labeled(row.text, row.text, row.response or "", harmful=row.harmful)


class Data(NamedTuple):
    """A source of labels: how it is read, and whether the shipped heads have seen some of it."""

    read: Callable[[Path], list[Labeled]]
    licence: str
    homepage: str
    fitted_on: bool = False
    folder: str | None = None  # if it is not in the folder of its name
    sample: int = SAMPLE


SOURCES = {
    "xstest": Data(xstest, "CC BY 4.0", "https://github.com/paul-rottger/xstest", fitted_on=True),
    "pku-saferlhf": Data(
        pku, "CC BY-NC 4.0", "https://huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF"
    ),
    "beavertails": Data(
        beavertails, "CC BY-NC 4.0", "https://huggingface.co/datasets/PKU-Alignment/BeaverTails"
    ),
    "do-not-answer": Data(
        do_not_answer,
        "CC BY-NC-SA 4.0",
        "https://huggingface.co/datasets/LibrAI/do-not-answer",
        sample=2 * SAMPLE,  # harm is rare in it
    ),
    "chatgpt-refusals": Data(
        refusals,
        "MIT",
        "https://github.com/maxwellreuter/chatgpt-refusals",
        fitted_on=True,
        folder="judge-labels",
    ),
    "alpaca-eval": Data(
        alpaca_eval, "CC BY-NC 4.0", "https://huggingface.co/datasets/tatsu-lab/alpaca_eval"
    ),
    "degenerate answers": Data(
        degenerate,
        "Apache-2.0",
        "research/degeneration",
        folder=str(ROOT / "research" / "degeneration"),
    ),
}  # each in the folder of its name
NEVER_FITTED = ("pku-saferlhf", "beavertails", "do-not-answer")


def held_out(question: str) -> bool:
    """Return whether a question of a source that heads are fitted on is kept for measuring."""
    return hashlib.blake2b(question.encode(), digest_size=1).digest()[0] % 4 == 0


# The comparison --------------------------------------------------------------------------------


def main() -> None:
    """Judge every source that is there, print the table and write the two files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--all", action="store_true", help="every row, not a sample")
    arguments = parser.parse_args()

    entries: list[dict[str, Any]] = []
    for name, data in SOURCES.items():
        folder = arguments.data / (data.folder or name)
        if not folder.is_dir():
            print(f"{name}: not in {arguments.data}, left out")
            continue
        rows = data.read(folder)
        if data.fitted_on:
            rows = [row for row in rows if held_out(row.question)]
        if not arguments.all:
            rows = random.Random(SEED).sample(rows, min(data.sample, len(rows)))
        entries += compare(name, data, rows)
    table(entries)
    sampled = (
        "every row"
        if arguments.all
        else f"up to {SAMPLE} rows a source, {2 * SAMPLE} of Do-Not-Answer, seed {SEED}"
    )
    result = {
        "judge": "probe",
        "version": VERSION,
        "measured_on": f"{sampled}; of sources fitted on, only the questions that were held out",
        "command": "python research/judge_agreement.py" + " --all" * arguments.all,
        "sources": entries,
    }
    _write(RESULTS, result)
    # Parts of a source are no sources of their own where figures are pooled.
    ships = [one for one in entries if one["judge"] == "probe" and not one.get("part")]
    _write(AGREEMENT, result | {"sources": ships})


def compare(name: str, data: Data, rows: Sequence[Labeled]) -> list[dict[str, Any]]:
    """Judge one source, and return its lines of the table."""
    items = [Item(str(i), row.instruction, row.response, "helpful") for i, row in enumerate(rows)]
    judge = Probe()
    p = {task: np.zeros(len(items)) for task in ("harmful", "refused", "helpful")}
    start = time.monotonic()
    for batch in judge.plan(items):
        for index, opinion in zip(batch, judge.judge([items[i] for i in batch]), strict=True):
            p["harmful"][index] = opinion.p_harmful
            p["refused"][index] = opinion.p_refused
            p["helpful"][index] = (opinion.helpful_score - 1) / 9
    print(f"{name}: {len(items)} answers in {time.monotonic() - start:.0f} s", flush=True)
    phrases = np.array([float(refuses(row.response)) for row in rows])

    def line(
        judge: str, task: str, p: np.ndarray, kept: Callable[[Labeled], bool], note: str = ""
    ) -> list[dict[str, Any]]:
        index = [i for i, row in enumerate(rows) if getattr(row, task) is not None and kept(row)]
        if not index:
            return []
        labels = [bool(getattr(rows[i], task)) for i in index]
        questions = [rows[i].question for i in index]
        return [
            {
                "judge": judge,
                "source": name + note,
                "task": task,
                "n": len(index),
                "n_positive": sum(labels),
                "n_questions": len(set(questions)),
                "licence": data.licence,
                "homepage": data.homepage,
                "fitted_on": data.fitted_on and judge == "probe",
                **({"part": True} if note else {}),
                **unsure(labels, p[index]),
                **agreement(questions, labels, p[index]),
            }
        ]

    any_partial = any(row.partial for row in rows)

    def every(row: Labeled) -> bool:
        return True

    def whole(row: Labeled) -> bool:
        return any_partial and not row.partial

    def answers(row: Labeled) -> bool:
        return not refuses(row.response)

    return [
        *line("probe", "harmful", p["harmful"], every),
        *line("probe", "harmful", p["harmful"], answers, ", answers that do not refuse"),
        *line("probe", "refused", p["refused"], every),
        *line("probe", "refused", p["refused"], whole, ", no partial refusals"),
        *line("probe", "helpful", p["helpful"], every),
        *line("phrases", "refused", phrases, every),
        *line("phrases", "refused", phrases, whole, ", no partial refusals"),
    ]


def unsure(labels: Sequence[bool], p: np.ndarray) -> dict[str, Any]:
    """Return what abstention costs and brings: the share in `UNSURE`, and kappa on the rest."""
    decided = (p < UNSURE[0]) | (p >= UNSURE[1])
    truth = np.array(labels)[decided]
    kappa = cohen_kappa_score(truth, p[decided] >= 0.5) if len(set(truth)) > 1 else math.nan
    return {
        "unsure": round(float(np.mean(~decided)), 3),
        "kappa_decided": None if math.isnan(kappa) else round(float(kappa), 3),
    }


def table(entries: Sequence[dict[str, Any]]) -> None:
    """Print the lines as a Markdown table."""
    heads = [*MEASURES, "unsure", "kappa without"]
    print("\n| judge | task | source | n (yes) | questions | " + " | ".join(heads) + " |")
    print("|---|---|---|---:|---:|" + "---|" * len(heads))
    for entry in entries:
        cells = ["{:.2f} ({:.2f}-{:.2f})".format(*entry[name]) for name in MEASURES]
        without = entry["kappa_decided"]
        cells += [f"{entry['unsure']:.2f}", "-" if without is None else f"{without:.2f}"]
        head = (entry["judge"], entry["task"], entry["source"])
        count = f"{entry['n']} ({entry['n_positive']})"
        print("| " + " | ".join([*head, count, str(entry["n_questions"]), *cells]) + " |")


def _write(file: Path, result: dict[str, Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
