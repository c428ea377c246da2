"""Public sets that are known by name: where each is, and how to read it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any, NamedTuple

from setbacks.data.conversations import unwritten
from setbacks.data.labels import truth


def _safer_and_less_safe(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Name the two responses of PKU-SafeRLHF by which one is safer."""
    second = truth("safer_response_id", row["safer_response_id"])  # 0 or 1, or a CSV copy's "0"
    if second is None:
        raise ValueError("safer_response_id is missing")
    safer, less = (1, 0) if second else (0, 1)
    name = f"is_response_{less}_safe"
    safe = truth(name, row[name])
    return [
        row
        | {
            "safer": row[f"response_{safer}"],
            "less_safe": row[f"response_{less}"],
            "less_safe_is_harmful": None if safe is None else not safe,
            "less_safe_category": row.get(f"response_{less}_harm_category"),
        }
    ]


def _each_model(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Turn a row of Do-Not-Answer with six models' labeled responses into six rows."""
    models = [key.removesuffix("_harmful") for key in row if key.endswith("_harmful")]
    return [
        row | {"model": m, "response": row[f"{m}_response"], "harmful": row[f"{m}_harmful"]}
        for m in models
    ]


def _by_turns(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Give the turns of LIMA, a list of texts, the roles of a user and an assistant in turn."""
    texts = row["conversations"]
    if isinstance(texts, str):  # in a CSV copy
        texts = unwritten(texts)
    roles = cycle(("user", "assistant"))
    turns = [{"role": next(roles), "content": text} for text in texts]
    return [row | {"conversations": turns}]


class Preset(NamedTuple):
    """A public set known by name: where it is on the hub, and how to read it."""

    source: str
    split: str | None
    fields: dict[str, str]
    license: str
    homepage: str
    note: str
    language: str = "en"
    reshape: Callable[[dict[str, Any]], list[dict[str, Any]]] | None = None


# The project's own sets, for `setbacks list`; data/sets/README.md describes them.
SETS = {
    "everyday": "harmless prompts in the forms of red-team prompts and of chat; train: 200",
    "helpful": "240 everyday tasks with short answers; train: 160, test: 80",
    "hijacking": "140 harmless tasks with a harmful goal injected; train: 20, validation: 20, "
    "test: 100",
    "redteam": "406 harmful requests in 14 categories, without answers; train: 84, validation: 70, "
    "test: 252",
    "redteam_zh": "40 harmful requests in Chinese, without answers; train: 20, test: 20",
    "refusals": "safe answers to the training prompts of redteam and redteam_zh; train: 104",
    "safe": "160 harmless prompts that look alarming; train: 40 with answers, validation: 40, "
    "test: 80",
    "safe_zh": "40 harmless prompts that look alarming, in Chinese; train: 20, test: 20",
    "twins": "a harmless prompt with the same alarming words for each prompt of redteam; "
    "train: 84 with answers, validation: 70, test: 252",
}

# Some name one file of their repository: AlpacaEval and LIMA come with a loading script, which
# `datasets` no longer runs, and Safety-Prompts is one object of categories.
PRESETS: dict[str, Preset] = {
    "pku-saferlhf": Preset(
        "hub:PKU-Alignment/PKU-SafeRLHF",
        "train",
        {
            "text": "prompt",
            "answer": "safer",
            "response": "less_safe",
            "harmful": "less_safe_is_harmful",
            "category": "less_safe_category",
        },
        "CC BY-NC 4.0",
        "https://sites.google.com/view/pku-saferlhf",
        "preference pairs: answer is the safer response, response the other; "
        "where: {less_safe_is_harmful: true} keeps the pairs with a harmful one",
        reshape=_safer_and_less_safe,
    ),
    "hh-rlhf": Preset(
        "hub:Anthropic/hh-rlhf/harmless-base/train.jsonl.gz",
        None,
        {"text": "chosen", "answer": "chosen", "response": "rejected"},
        "MIT",
        "https://github.com/anthropics/hh-rlhf",
        "preference pairs of several turns: answer is the preferred reply, which is not always "
        "harmless",
    ),
    "beavertails": Preset(
        "hub:PKU-Alignment/BeaverTails",
        "30k_train",
        {
            "text": "prompt",
            "response": "response",
            "harmful": "not is_safe",
            "category": "category",
        },
        "CC BY-NC 4.0",
        "https://sites.google.com/view/pku-beavertails",
        "labeled answers; other splits: 30k_test, 330k_train, 330k_test",
    ),
    "do-not-answer": Preset(
        "hub:LibrAI/do-not-answer",
        "train",
        {"text": "question", "category": "types_of_harm", "id": "id"},
        "CC BY-NC-SA 4.0 (the hub's card says Apache-2.0)",
        "https://github.com/Libr-AI/do-not-answer",
        "939 instructions that a model should not follow, in 12 types of harm",
    ),
    "do-not-answer-labels": Preset(
        "hub:LibrAI/do-not-answer",
        "train",
        {
            "text": "question",
            "response": "response",
            "harmful": "harmful",
            "category": "types_of_harm",
        },
        "CC BY-NC-SA 4.0 (the hub's card says Apache-2.0)",
        "https://github.com/Libr-AI/do-not-answer",
        "the same with six models' responses, labeled by people; where: {model: GPT4} keeps one",
        reshape=_each_model,
    ),
    "xstest": Preset(
        "hub:Paul/XSTest",
        "train",
        {"text": "prompt", "harmful": "label", "category": "type", "id": "id"},
        "CC BY 4.0",
        "https://github.com/paul-rottger/xstest",
        "250 safe prompts that look unsafe, 200 unsafe ones; where: {label: safe} keeps the former",
    ),
    "safety-prompts": Preset(
        "hub:thu-coai/Safety-Prompts/typical_safety_scenarios.json",
        None,
        {"text": "prompt", "answer": "response", "category": "category"},
        "Apache-2.0",
        "https://github.com/thu-coai/Safety-Prompts",
        "Chinese, seven typical scenarios, answered by ChatGPT",
        language="zh",
    ),
    "safety-prompts-attacks": Preset(
        "hub:thu-coai/Safety-Prompts/instruction_attack_scenarios.json",
        None,
        {"text": "prompt", "answer": "response", "category": "category"},
        "Apache-2.0",
        "https://github.com/thu-coai/Safety-Prompts",
        "Chinese, six instruction attacks; where: {category: Goal_Hijacking} keeps one",
        language="zh",
    ),
    "alpaca-eval": Preset(
        "hub:tatsu-lab/alpaca_eval/alpaca_eval.json",
        None,
        {"text": "instruction", "answer": "output", "category": "dataset"},
        "CC BY-NC 4.0",
        "https://github.com/tatsu-lab/alpaca_eval",
        "805 instructions to measure helpfulness, with text_davinci_003's answers",
    ),
    "alpaca": Preset(
        "hub:tatsu-lab/alpaca",
        "train",
        {"text": "instruction", "input": "input", "answer": "output"},
        "CC BY-NC 4.0",
        "https://github.com/tatsu-lab/stanford_alpaca",
        "52,002 instructions with answers, to mix in as helpful data",
    ),
    "lima": Preset(
        "hub:GAIR/lima/train.jsonl",
        None,
        {"text": "conversations", "answer": "conversations", "category": "source"},
        "CC BY-NC-SA 4.0, or stricter, as in its own sources",
        "https://huggingface.co/datasets/GAIR/lima",
        "about 1,000 careful answers, some to conversations; gated: its terms must be accepted on "
        "the hub first",
        reshape=_by_turns,
    ),
}
