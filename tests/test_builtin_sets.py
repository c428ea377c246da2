"""The project's own instruction sets keep what their card promises."""

import importlib.util
import json
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "setbacks" / "data" / "sets"

FIELDS = ["id", "text", "category", "language", "split"]
PROMPT_SETS = (
    *("redteam", "hijacking", "safe", "twins", "helpful", "everyday", "redteam_zh", "safe_zh"),
)

# File -> its fields, language, prompts by split, and number of categories.
PROMISED = {
    "redteam": (FIELDS, "en", {"train": 84, "validation": 70, "test": 252}, 14),
    "hijacking": (FIELDS, "en", {"train": 20, "validation": 20, "test": 100}, 5),
    "safe": ([*FIELDS, "answer"], "en", {"train": 40, "validation": 40, "test": 80}, 10),
    "twins": (
        [*FIELDS, "answer", "twin_of"],
        "en",
        {"train": 84, "validation": 70, "test": 252},
        14,
    ),
    "helpful": ([*FIELDS, "answer"], "en", {"train": 160, "test": 80}, 16),
    "everyday": ([*FIELDS, "answer"], "en", {"train": 200}, 5),
    "redteam_zh": (FIELDS, "zh", {"train": 20, "test": 20}, 14),
    "safe_zh": ([*FIELDS, "answer"], "zh", {"train": 20, "test": 20}, 10),
    "refusals": ([*FIELDS, "answer"], None, {"train": 104}, 14),
}
# Words of a request that say nothing about its topic.
REQUEST_WORDS = set("best draft explain help list make people tell use write".split())
ANSWER_WORDS = 70
ANSWER_CHARACTERS_ZH = 120


def read(name: str) -> list[dict]:
    lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def load_near_duplicates() -> ModuleType:
    """research/ is not a package, so the script is loaded by its path."""
    path = ROOT / "research" / "near_duplicates.py"
    spec = importlib.util.spec_from_file_location("near_duplicates", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", PROMISED)
def test_fields_and_counts(name: str) -> None:
    rows = read(name)
    fields, language, by_split, categories = PROMISED[name]
    assert all(list(row) == fields for row in rows)
    assert all(row["language"] in ("en", "zh") for row in rows)
    if language:
        assert {row["language"] for row in rows} == {language}
    assert Counter(row["split"] for row in rows) == by_split
    assert len({row["category"] for row in rows}) == categories


@pytest.mark.parametrize("name", PROMPT_SETS)
def test_every_category_is_split_alike(name: str) -> None:
    """The share of each split is the same in every category of a file."""
    rows = read(name)
    for category in {row["category"] for row in rows}:
        found = Counter(row["split"] for row in rows if row["category"] == category)
        for split, n in PROMISED[name][2].items():
            assert found[split] * len(rows) == n * found.total(), (category, split)


def test_red_team_categories_are_shared_by_both_languages() -> None:
    english = {row["category"] for row in read("redteam")}
    assert {row["category"] for row in read("redteam_zh")} == english
    assert {row["category"] for row in read("safe_zh")} == {row["category"] for row in read("safe")}


def test_ids_are_unique_and_say_where_they_belong() -> None:
    rows = [(name, row) for name in PROMPT_SETS for row in read(name)]
    assert len({row["id"] for _, row in rows}) == len(rows)
    for name, row in rows:
        prefix = f"{name.replace('_', '-')}-{row['category']}-"
        assert re.fullmatch(re.escape(prefix) + r"\d{3}", row["id"]), row["id"]


@pytest.mark.parametrize("name", PROMISED)
def test_texts_are_clean_and_short(name: str) -> None:
    limit = {"redteam": 24, "hijacking": 60}.get(name.removesuffix("_zh"), 40)
    for row in read(name):
        text = row["text"]
        assert text and text == text.strip() and "\n" not in text, row["id"]
        has_chinese = re.search(r"[\u4e00-\u9fff]", text) is not None
        if row["language"] == "zh":
            assert has_chinese and len(text) <= 60, row["id"]
        else:
            # helpful asks about foreign words, but never in Chinese script
            assert not has_chinese and len(text.split()) <= limit, row["id"]


def test_no_text_stands_twice() -> None:
    texts = Counter(
        re.sub(r"\W+", " ", row["text"].lower()).strip()
        for name in PROMPT_SETS
        for row in read(name)
    )
    assert [text for text, n in texts.items() if n > 1] == []


@pytest.mark.parametrize("name", ["safe", "twins", "helpful", "everyday", "safe_zh", "refusals"])
def test_answers_are_where_promised_and_short(name: str) -> None:
    answers = []
    for row in read(name):
        answer = row["answer"]
        if row["split"] != "train" and name != "helpful":
            assert answer is None, row["id"]
            continue
        assert answer and answer == answer.strip(), row["id"]
        if row["language"] == "zh":
            assert len(answer) <= ANSWER_CHARACTERS_ZH, row["id"]
        else:
            assert len(answer.split()) <= ANSWER_WORDS, row["id"]
        answers.append(answer)
    if name != "helpful":  # where "Six." may answer two questions
        assert len(set(answers)) == len(answers)


def test_refusals_answer_exactly_the_training_red_team_prompts() -> None:
    asked = [row for name in ("redteam", "redteam_zh") for row in read(name)]
    asked = [row for row in asked if row["split"] == "train"]
    answered = [{field: row[field] for field in FIELDS} for row in read("refusals")]
    assert answered == asked


def content_words(text: str) -> set[str]:
    words = set(re.findall(r"[a-z]{3,}", text.lower()))
    return words - ENGLISH_STOP_WORDS - REQUEST_WORDS


def test_every_red_team_prompt_has_a_twin_of_the_same_category_and_split() -> None:
    shared = ("category", "language", "split")
    of_pairs = [(row["id"], *(row[field] for field in shared)) for row in read("redteam")]
    assert [(t["twin_of"], *(t[field] for field in shared)) for t in read("twins")] == of_pairs


def test_a_twin_shares_a_content_word_with_its_red_team_prompt() -> None:
    red_team = {row["id"]: row["text"] for row in read("redteam")}
    for twin in read("twins"):
        assert content_words(twin["text"]) & content_words(red_team[twin["twin_of"]]), twin["id"]


@pytest.mark.parametrize(("name", "most"), [("refusals", 2), ("twins", 3)])
def test_answers_are_a_few_sentences(name: str, most: int) -> None:
    for row in read(name):
        if row["answer"] is not None:
            sentences = re.findall(r"[.!?。！？]+\"?(?=\s|$|[\u4e00-\u9fff])", row["answer"])
            assert 1 <= len(sentences) <= most, row["id"]


@pytest.mark.parametrize("name", ["jaccard", "containment", "tfidf"])
def test_no_near_duplicates(name: str) -> None:
    """Neither across the split nor within it; the embedding measure is left to the benchmark."""
    benchmark = load_near_duplicates()
    rows = benchmark.load_rows(DATA)
    pairs = benchmark.compare(rows, getattr(benchmark, name), ["en", "zh"])
    assert any(benchmark.across_split(pair) for pair in pairs)
    assert benchmark.near_duplicates(pairs, benchmark.THRESHOLDS[name]) == []


@pytest.mark.parametrize(
    ("name", "language", "first", "second"),
    [
        (
            "jaccard",
            "en",
            "How can I descale a kettle at home?",
            "How can I descale a kettle here?",
        ),
        ("jaccard", "zh", "怎样识破冒充公检法的诈骗电话？", "怎样识破冒充公检法的骗子电话？"),
        (
            "containment",
            "en",
            "Why does bread dough rise?",
            "Tell my son: why does bread dough rise?",
        ),
        ("containment", "zh", "河豚的毒藏在哪里？", "请问大师傅，河豚的毒藏在哪里？"),
        ("tfidf", "en", "Why does bread dough rise?", "Does dough rise, bread dough? Why?"),
        ("tfidf", "zh", "怎样识破冒充公检法的诈骗电话？", "冒充公检法的诈骗电话怎样识破？"),
    ],
)
def test_the_check_sees_a_copy(name: str, language: str, first: str, second: str) -> None:
    """What each measure is for: a word replaced, a prompt in a longer one, a changed order."""
    benchmark = load_near_duplicates()
    rows = [
        benchmark.Row("safe", "a", first, "c", language, "train"),
        benchmark.Row("safe", "b", second, "c", language, "test"),
    ]
    (pair,) = benchmark.compare(rows, getattr(benchmark, name), [language])
    assert benchmark.across_split(pair)
    assert benchmark.near_duplicates([pair], benchmark.THRESHOLDS[name]) == [pair]


def test_a_twin_is_compared_with_all_prompts_but_its_own() -> None:
    benchmark = load_near_duplicates()
    text = "How do I kill a Python process?"
    own = benchmark.Row("redteam", "a", text, "c", "en", "train")
    other = benchmark.Row("safe", "b", text, "c", "en", "train")
    twin = benchmark.Row("twins", "t", text, "c", "en", "train", twin_of="a")
    pairs = benchmark.compare([own, other, twin], benchmark.tfidf, ["en"])
    assert {(pair.first.id, pair.second.id) for pair in pairs} == {("a", "b"), ("b", "t")}
