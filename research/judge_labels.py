"""The labels that the heads of the offline judge are fitted on, all with permissive licenses.

    xstest/xstest_v2_completions_*.csv      human labels of refusal (CC BY 4.0)
    hh-rlhf/harmless-base-test.jsonl.gz     human preferences (MIT)
    judge-labels/NAME.jsonl.gz              human labels of the sets in `SETS`

A file in judge-labels has a JSON object per line: `instruction`, `response`, `harmful` and
`refused` (true, false, or null if contested or not labeled), `context` (earlier turns, each
beginning with its speaker and a colon, or null), `group` (the question), and `overlaps_measured`
(true if the question or the answer is nearly one of a set that the judge is measured on, so that it
must not be fitted on). `SETS` says where the labels are published, and `convert_labels.py` makes
these files from what is published.

This project's own answers complete them: good ones, refusals, worse ones made from good ones, and
short replies in nine languages (short_replies.yaml).
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from judge_agreement import NEVER_FITTED, SOURCES, cut, xstest

from setbacks.data import Source, load
from setbacks.data.near import NearIndex
from setbacks.messages import Message, Prompt

SEED = 0
SHORT = Path(__file__).with_name("short_replies.yaml")
HELD_OUT = 2  # refusals and offers of each language that are kept for measuring
FIRST_TURNS = 3  # before a response of HH-RLHF, up to which it is of the first epoch


class Example(NamedTuple):
    """A row to fit on; None where its label does not say."""

    source: str
    question: str  # names what belongs together, and is never split
    prompt: Prompt
    response: str
    harmful: bool | None = None
    refused: bool | None = None
    helpful: bool | None = None


class LabelSet(NamedTuple):
    """Human labels: where they are published, and how many answers of a question are used."""

    homepage: str
    license: str
    most: int | None = None


SETS = {
    "gptfuzz": LabelSet("https://github.com/sherdencooper/GPTFuzz", "MIT", 24),
    "pyrit": LabelSet("https://github.com/microsoft/PyRIT", "MIT"),
    "rbr": LabelSet("https://github.com/openai/safety-rbr-code-and-data", "MIT"),
    "purseclab": LabelSet("https://github.com/purseclab/jailbreak-evaluation", "Apache-2.0"),
    "realharm": LabelSet("https://github.com/Giskard-AI/realharm", "CC BY 4.0"),
    "dices": LabelSet("https://github.com/google-research-datasets/dices-dataset", "CC BY 4.0"),
    "safetext": LabelSet("https://github.com/sharonlevy/SafeText", "MIT"),
    "square": LabelSet("https://github.com/naver-ai/korean-safety-benchmarks", "MIT"),
    "refusals": LabelSet("https://github.com/maxwellreuter/chatgpt-refusals", "MIT"),
}
# Who speaks, as the sets write it.
SPEAKERS = {
    "user": "user",
    "human": "user",
    "a": "user",
    "assistant": "assistant",
    "agent": "assistant",
    "lamda": "assistant",
    "b": "assistant",
    "system": "system",
}
TURN = re.compile(rf"^(?=(?:{'|'.join(SPEAKERS)}): )", re.IGNORECASE | re.MULTILINE)


def examples(data: Path) -> list[Example]:
    """Read everything that heads are fitted on.

    Args:
        data: the folder of public data. It should also hold the sets that are never fitted, since
            pairs of HH-RLHF with nearly the same question are left out.
    """
    completions = xstest(data / "xstest")
    rows = [
        Example("xstest", row.question, row.instruction, row.response, row.harmful, row.refused)
        for row in completions
    ]
    rows += hh(data / "hh-rlhf" / "harmless-base-test.jsonl.gz", asked_in_measured_sets(data))
    for name in SETS:
        rows += label_set(data / "judge-labels" / f"{name}.jsonl.gz", name)
    good = [
        row
        for row in rows
        if (row.source == "xstest" and not row.refused and row.harmful is False)
        or (row.source == "refusals" and row.refused is False)
    ]
    return [*rows, *others_answers(good), *own(), *quality(), *babble(), *short()]


def asked_in_measured_sets(data: Path) -> NearIndex:
    """Return the questions of the sets that are only measured."""
    known = NearIndex()
    for name in NEVER_FITTED:
        if (data / name).is_dir():
            for row in SOURCES[name].read(data / name):
                known.add(row.instruction)
        else:
            print(f"{name}: not in {data}; rows that overlap with it cannot be left out")
    return known


def label_set(file: Path, name: str) -> list[Example]:
    """Read a set of human labels, without rows that overlap with what is measured."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if not row["overlaps_measured"]]
    if SETS[name].most is not None:
        random.Random(SEED).shuffle(rows)
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row["group"]] += 1
        if seen[row["group"]] <= (SETS[name].most or len(rows)):
            kept.append(
                Example(
                    name,
                    f"{name} {row['group']}",
                    conversation(row["context"] or "", row["instruction"] or ""),
                    row["response"] or "",
                    # A set of refusals says nothing of harm that is not a refusal.
                    None if name == "refusals" else row["harmful"],
                    row["refused"],
                )
            )
    return kept


def conversation(context: str, instruction: str) -> Prompt:
    """Return an instruction after the turns before it."""
    turns: list[Message] = []
    for part in TURN.split(context):
        speaker, colon, text = part.partition(": ")
        if colon and speaker.lower() in SPEAKERS:
            turns.append(message(SPEAKERS[speaker.lower()], text.strip()))
        elif part.strip() and turns:
            more = f"{turns[-1].content}\n{part.strip()}"
            turns[-1] = turns[-1].model_copy(update={"content": more})
        elif part.strip():
            turns.append(message("user", part.strip()))
    last = message("user", instruction)
    if turns and turns[-1].role == "user" and turns[-1].content == instruction.strip():
        turns.pop()  # some sets repeat the instruction at the end of the context
    return (*turns, last) if turns else instruction


def message(role: Any, text: str) -> Message:
    """Return a turn."""
    return Message(role=role, content=text)


def hh(file: Path, measured: NearIndex) -> list[Example]:
    """Read HH-RLHF's pairs: the response that people found more harmful, and the other one.

    A preference is not a verdict: both may be harmful, or neither. The two of a pair follow each
    other, the harmless one first. Conversations beyond the first turns are a source apart.
    """
    rows = []
    turn = re.compile(r"\n\n(Human|Assistant):(.*?)(?=\n\n(?:Human|Assistant):|\Z)", re.DOTALL)
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            pair = json.loads(line)
            before, _, chosen = pair["chosen"].rpartition("\n\nAssistant:")
            same, _, rejected = pair["rejected"].rpartition("\n\nAssistant:")
            if before != same:
                continue
            turns = tuple(
                message("user" if speaker == "Human" else "assistant", text.strip())
                for speaker, text in turn.findall(before)
            )
            if measured.has_near(turns[-1].content):
                continue
            source = "hh-rlhf" if len(turns) <= FIRST_TURNS else "hh-later"
            prompt = turns if len(turns) > 1 else turns[0].content
            for response, harmful in ((chosen, False), (rejected, True)):
                rows.append(Example(source, f"hh {number}", prompt, response.strip(), harmful))
    return rows


def own() -> list[Example]:
    """Read the training prompts of this project's own sets with their answers: none is harmful."""
    return [
        Example("own", row.id, row.text, row.answer, False, name == "refusals")
        for name in ("helpful", "safe", "safe_zh", "refusals")
        for row in load(Source(source=f"builtin:{name}", split="train"))
        if row.answer
    ]


# Answers that help, and worse ones --------------------------------------------------------------


def quality() -> list[Example]:
    """Read this project's own good answers, and make worse ones of them.

    A worse answer is another instruction's, or ends after a third of its words, or refuses.
    """
    rows = [
        row
        for name in ("helpful", "safe")
        for row in load(Source(source=f"builtin:{name}", split="train"))
        if row.answer
    ]
    refusals = [row.answer for row in load(Source(source="builtin:refusals", language="en"))]
    examples = []
    for number, row in enumerate(rows):
        worse = [
            rows[(number + 7) % len(rows)].answer,
            cut(row.answer or ""),
            refusals[number % len(refusals)],
        ]
        for response, helpful in [(row.answer, True), *((text, False) for text in worse)]:
            examples.append(Example("quality", row.id, row.text, response or "", helpful=helpful))
    return examples


def others_answers(good: list[Example]) -> Iterator[Example]:
    """Yield good answers of other models, and worse ones made of them, to learn *helpful* from.

    A worse answer is another question's, or ends after a third of its words.
    """
    long = [row for row in good if len(row.response.split()) > 25]
    for number, row in enumerate(long):
        same = row._replace(source="good", harmful=None, refused=None)
        yield same._replace(helpful=True)
        if number % 3 != 2:
            other = next(
                long[(number + step) % len(long)]
                for step in range(7, len(long))
                if long[(number + step) % len(long)].question != row.question
            )
            yield same._replace(response=other.response, helpful=False)
        if number % 3 != 0:
            yield same._replace(response=cut(row.response), helpful=False)


def short() -> list[Example]:
    """Read short replies in nine languages; the last ones of each language are not among them."""
    chance = random.Random(SEED)
    english = [
        row.text
        for name in ("safe", "helpful", "refusals")
        for row in load(Source(source=f"builtin:{name}", split="train", language="en"))
    ]
    chinese = [row.text for row in load(Source(source="builtin:safe_zh", split="train"))]
    more = {"en": (english, 6), "zh": (chinese, 2)}
    examples = []
    for language, replies in yaml.safe_load(SHORT.read_text(encoding="utf-8")).items():
        asked = replies["prompts"][:-1]
        for text, refused in [
            *((text, True) for text in replies["refusals"][:-HELD_OUT]),
            *((text, False) for text in replies["offers"][:-HELD_OUT]),
        ]:
            others, n = more.get(language, ([], 0))
            for prompt in [*chance.sample(others, n), *chance.choices(asked, k=2)]:
                question = f"short {language} {prompt}"
                examples.append(Example("short", question, prompt, text, False, refused, False))
        for prompt, text in zip(asked, replies["answers"][:-1], strict=True):
            question = f"short {language} {prompt}"
            examples.append(Example("short", question, prompt, text, False, False, True))
    return examples


# What a polite model says instead of an answer.
EMPTY = (
    "Sure! I'd be happy to help you with that.",
    "Thank you for your question! I am glad you asked.",
    "That is a great question. I hope this helps!",
    "Of course! Please let me know if you have any other questions.",
    "I hope you are having a wonderful day! Thank you for reaching out, I appreciate it very much.",
    "Great question! There are many things to consider here, and it really depends on your needs. "
    "Let me know what you think!",
    "I understand. Thank you for sharing this with me. I am always here to help.",
    "Certainly! I will do my best to assist you. Please feel free to ask me anything.",
    "It is important to think about this carefully. There are many different ways to do it, and "
    "each of them has advantages and disadvantages.",
    "Yes, I can help with that. Just tell me what you need and I will get started right away!",
    "好的，我很乐意帮助您！",
    "谢谢您的提问，希望这对您有帮助。祝您生活愉快！",
)


def babble() -> list[Example]:
    """Make answers as small models write them when training goes wrong, out of our good answers.

    They repeat themselves, get stuck, repeat the prompt, are polite and say nothing, or are words
    without order. The good answers in Chinese, which `quality` leaves out, come with them.
    """
    chance = random.Random(SEED)
    examples = []
    number = 0
    for name in ("helpful", "safe", "safe_zh"):
        for row in load(Source(source=f"builtin:{name}", split="train")):
            if not row.answer:
                continue
            spaced = name != "safe_zh"
            for text in chance.sample([*_bad(row.text, row.answer, spaced, number, chance)], 4):
                no = False if text in EMPTY else None  # an empty offer is not a refusal
                examples.append(Example("babble", row.id, row.text, text, no, no, helpful=False))
            if not spaced:
                examples.append(Example("babble", row.id, row.text, row.answer, helpful=True))
            number += 1
    return examples


def _bad(
    prompt: str, answer: str, spaced: bool, number: int, chance: random.Random
) -> Iterator[str]:
    """Yield bad answers to a prompt, given a good one; in some scripts words have no spaces."""
    gap = " " if spaced else ""
    parts = re.split(r"(?<=[.!?。！？])\s*", answer)
    sentences = [part for part in parts if part.strip()] or [answer]

    def loop(some: list[str], times: int) -> str:
        return gap.join(some * times)[:700]

    yield loop(sentences[:1], chance.randint(3, 10))
    yield loop(sentences[:2], chance.randint(3, 8))
    half = gap.join(sentences[: max(1, len(sentences) // 2)])
    yield half + gap + loop(sentences[-1:], chance.randint(3, 8))
    words = answer.split() if spaced else list(answer)
    quarter = len(words) // 4
    few = gap.join(words[quarter : quarter + chance.randint(1, 5)])
    yield gap.join(words[: max(3, quarter)]) + gap + loop([few], chance.randint(6, 20))
    sure = "Sure! " if spaced else "好的。"
    yield chance.choice([prompt, prompt + gap + prompt, sure + prompt, (prompt + gap) * 3])
    yield EMPTY[number % len(EMPTY)]
    yield chance.choice(EMPTY)
    chance.shuffle(words)
    yield gap.join(words)
