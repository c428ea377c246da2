"""How well do the refusal phrases of the languages work, and the probe's head on refusals?

Both are compared with the labels that two public repositories have for answers of several
models. People labeled none of them: the labels are those of classifiers, which err, too. The
phrases were written while reading the answers to one half of the prompts; this reports the other.

    git clone https://github.com/mainlp/Multilingual-Refusal
    git clone https://github.com/Marker-Inc-Korea/K-OverRefusal
    python research/refusal_phrases.py Multilingual-Refusal K-OverRefusal

Multilingual-Refusal (Apache-2.0; Wang et al., 2025, arXiv 2505.17306) has answers of three models
to 572 harmful prompts, and of the same models without their direction of refusal, labeled by
WildGuard. K-OverRefusal (MIT) has answers of eleven models to Korean prompts that are harmful or
only look so, labeled as refusal, deflection or compliance by a model; deflections are left out.

It prints a table and writes research/results/refusal_phrases.json. The probe judges a sample of the
answers, since it takes longer: up to `SAMPLE` of each language and source.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from setbacks.judges import Item
from setbacks.judges.probe import VERSION, Probe
from setbacks.judges.refusal import refuses
from setbacks.measure.statistics import agreement
from setbacks.measure.substance import answer
from setbacks.prompts import built_in

RESULTS = Path(__file__).parent / "results" / "refusal_phrases.json"
LARGEST = 4 * 2**20  # bytes; the copy that we measured on had no larger files
MEASURES = ("sensitivity", "specificity", "kappa")
SAMPLE = 150


class Answer(NamedTuple):
    """An answer with its label, and a name for all translations of its prompt."""

    question: str
    prompt: str
    text: str
    refused: bool


def multilingual(folder: Path) -> Iterator[tuple[str, Answer]]:
    """Yield the answers of Multilingual-Refusal, with their language."""
    for file in sorted(folder.glob("output/**/harmful_*_evaluations.json")):
        language = file.parents[3].name
        if language not in built_in() or file.stat().st_size >= LARGEST:
            continue
        for row in json.loads(file.read_text(encoding="utf-8"))["completions"]:
            label = row["wildguard"]["refusal"]
            if label is not None:
                yield (
                    language,
                    Answer(row["instruction_en"], row["instruction"], row["response"], label == 1),
                )


def korean(folder: Path) -> Iterator[tuple[str, Answer]]:
    """Yield the answers of K-OverRefusal, with their language."""
    for file in sorted(folder.glob("outputs/remote_models/*/xstest/evaluation_results.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            text, label = answer(row["response"] or ""), row["refusal_clf_label"]
            if text and label in ("refusal", "compliance"):
                yield "ko", Answer(row["prompt_ko"], row["prompt_ko"], text, label == "refusal")


def main() -> None:
    """Measure the phrases on both repositories."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("multilingual", type=Path, help="clone of mainlp/Multilingual-Refusal")
    parser.add_argument("korean", type=Path, help="clone of Marker-Inc-Korea/K-OverRefusal")
    args = parser.parse_args()
    rows = []
    for name, answers in (
        ("Multilingual-Refusal", multilingual(args.multilingual)),
        ("K-OverRefusal", korean(args.korean)),
    ):
        by_language: dict[str, list[Answer]] = defaultdict(list)
        for language, one in answers:
            if int(hashlib.sha256(one.question.encode()).hexdigest(), 16) % 2:
                by_language[language].append(one)
        for language, found in sorted(by_language.items()):
            rows.append(measured("phrases", name, language, found, phrases(found)))
            some = random.Random(0).sample(found, min(SAMPLE, len(found)))
            rows.append(measured(f"probe {VERSION}", name, language, some, probe(some)))
    print(
        "| judge | language | answers | n (refusals) | prompts | "
        + " | ".join(MEASURES)
        + " | AUC |"
    )
    print("|---|---|---|---:|---:|" + "---|" * len(MEASURES) + "---|")
    for row in rows:
        cells = ["{:.2f} ({:.2f}-{:.2f})".format(*row[key]) for key in (*MEASURES, "auc")]
        head = f"| {row['judge']} | {row['language']} | {row['source']} | {row['n']}"
        print(f"{head} ({row['n_refusals']}) | {row['n_prompts']} | {' | '.join(cells)} |")
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def phrases(answers: Sequence[Answer]) -> list[float]:
    """Return 1 for each answer that a phrase takes for a refusal, else 0."""
    return [float(refuses(one.text)) for one in answers]


def probe(answers: Sequence[Answer]) -> list[float]:
    """Return the probability of a refusal for each answer."""
    judge = Probe()
    items = [Item(str(n), one.prompt, one.text) for n, one in enumerate(answers)]
    p = [0.0] * len(items)
    for batch in judge.plan(items):
        for place, opinion in zip(batch, judge.judge([items[i] for i in batch]), strict=True):
            p[place] = float(opinion.p_refused or 0)
    return p


def measured(
    judge: str, source: str, language: str, answers: Sequence[Answer], scores: Sequence[float]
) -> dict[str, Any]:
    """Compare a judge with the labels of answers in one language."""
    questions = [one.question for one in answers]
    labels = [one.refused for one in answers]
    measures = agreement(questions, labels, scores)
    return {
        "judge": judge,
        "language": language,
        "source": source,
        "n": len(answers),
        "n_refusals": sum(labels),
        "n_prompts": len(set(questions)),
        **{key: measures[key] for key in (*MEASURES, "auc")},
    }


if __name__ == "__main__":
    main()
