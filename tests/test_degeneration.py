"""Which answers fall apart, and which only look like it."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from setbacks.measure.degeneration import REASONS, degeneration, guidance
from setbacks.messages import Message
from setbacks.prompts import built_in, prompts

LABELS = Path(__file__).resolve().parents[1] / "research/degeneration"
GUIDANCE = prompts("en")["guided"].replace("{instruction}", "")

LIST = """Here are some fruits:

1. Apples
2. Bananas
3. Cherries
4. Dates
5. Figs"""
CODE = """```python
class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        if not self.items:
            raise IndexError("pop from an empty stack")
        return self.items.pop()

    def __len__(self):
        return len(self.items)
```"""
TABLE = """| Day | Morning | Evening |
| --- | --- | --- |
| Monday | open | closed |
| Tuesday | open | open |
| Wednesday | closed | open |
| Thursday | open | closed |
| Friday | open | open |"""
POEM = """The fog comes in on little feet,
and softly fills the quiet street.
The lamps are low, the doors are shut,
the baker sweeps his wooden hut.
The fog goes out on little feet,
and leaves the sun to warm the street."""
CHINESE = """天空看起来是蓝色的，因为空气分子会散射阳光，而且蓝光的波长较短，比红光散射得更多。
所以从天空各个方向进入我们眼睛的大多是蓝光。到了傍晚，阳光穿过的空气更厚，蓝光在路上已经散去，
剩下的红光和橙光就把天边染成了红色。"""
THAI = "ท้องฟ้าเป็นสีฟ้าเพราะโมเลกุลของอากาศกระเจิงแสงอาทิตย์ และแสงสีน้ำเงินกระเจิงได้มากกว่าแสงสีแดง"

GOOD = [
    ("Yes.", "Is ice cold?"),
    ("Paris.", "What is the capital of France?"),
    ("The capital of France is Paris.", "What is the capital of France?"),
    ("42", "What is 6 times 7?"),
    ("A", "Which is first in the alphabet, A or B?"),
    ("\U0001f600", "Give me a happy emoji."),
    ("=", "Which sign means equality?"),
    ("12:30", "When is lunch?"),
    ("No, no, no!", "May I?"),
    ("I'm sorry, but I can't help with that.", "PLACEHOLDER"),
    ("I can't do that, but I can offer a safe alternative: call a locksmith.", "PLACEHOLDER"),
    (
        "You asked how to boil an egg so that the yolk stays soft: six minutes are enough.",
        "How do I boil an egg so that the yolk stays soft?",
    ),
    (
        "The result of 4 raised to the power of 3 is 64.",
        "Find the result of 4 raised to the power of 3.",
    ),
    (LIST, "Name five fruits."),
    (CODE, "Write a stack in Python."),
    (TABLE, "When is the shop open?"),
    (POEM, "Write a poem about fog."),
    (CHINESE, "天空为什么是蓝色的？"),
    (THAI, ""),
    ("User: Hello\nBot: Hi!\nUser: Bye", "Write a chat between a user and a bot."),
    ("Use `<|im_start|>user` before what the user says.", "How does ChatML work?"),
    ("### Response:\nWater boils at 100 degrees.", "When does water boil?"),
    ("Instructions:\n1. Boil water.\n2. Add tea.", "How do I make tea?"),
    ("https://example.org/a/long/address/without/any/blank?query=words&page=12", "The link?"),
]
REPEATS = [
    "The answer is not a lie. " * 5,
    "In the morning, a haiku is born.\nIn the morning, a haiku is born.",
    "We, we, we, we, we, we, we, we, we, we.",
    "\n".join(f"{n}. The skin" for n in range(1, 12)),
    "a" * 200,
    "\U0001f600" * 200,
    "haha" * 50,
    "The sky is blue because it is blue. " + "It is a natural phenomenon. " * 6,
    "这是一个好问题。" * 8,
    "天空是蓝色的，" + "因为天空是蓝色的，" * 6,
    "ท้องฟ้าเป็นสีฟ้า" * 6,
]


@pytest.mark.parametrize(("text", "prompt"), GOOD)
def test_an_answer_that_answers_is_not_degenerate(text: str, prompt: str) -> None:
    assert degeneration(text, prompt, GUIDANCE) is None


@pytest.mark.parametrize("text", REPEATS)
def test_an_answer_that_repeats_itself(text: str) -> None:
    found = degeneration(text)
    assert found is not None
    assert found.reason == "repeats"


def test_a_long_answer_that_ends_in_a_loop_repeats_itself() -> None:
    good = " ".join(f"word{n}" for n in range(900))
    assert degeneration(good) is None
    assert degeneration(good + " and so on" * 60).reason == "repeats"  # type: ignore[union-attr]


def test_length_alone_is_no_repetition() -> None:
    """A long text has many of its phrases twice, but not within a hundred words."""
    pages = " ".join(
        f"{verb} the {noun}{n % 50}"
        for n in range(60)
        for verb in ("see", "take")
        for noun in ("cat", "hat", "bat")
    )
    assert degeneration(pages) is None


@pytest.mark.parametrize(
    "text", ["A: A: A:", "Answer:", "回答：", "...", "。。。", "-" * 300, '"', "#"]
)
def test_a_fragment_says_nothing(text: str) -> None:
    found = degeneration(text)
    assert found is not None
    assert found.reason == "fragment"


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        (
            "My cactus needs a bigger pot. How do I move it?",
            "My cactus needs a bigger pot. How do I move it?",
        ),
        (
            "When should I water the tulips in my garden",
            "When should I water the tulips in my garden?",
        ),
        ("Harmless, ethical and helpful.", "Why do stars die?"),
        (
            "Why do stars die? Give an answer that is harmless, ethical and helpful.",
            "Why do stars die?",
        ),
        ("地震为什么会引发海啸，造成那么多伤亡？", "地震为什么会引发海啸，造成那么多伤亡？"),
    ],
)
def test_an_answer_that_parrots(text: str, prompt: str) -> None:
    found = degeneration(text, prompt, GUIDANCE)
    assert found is not None
    assert found.reason == "parrots"


def test_a_part_of_a_long_prompt_can_be_the_answer() -> None:
    prompt = "Who wrote it? The novel was written by Mary Shelley in 1818, when she was twenty."
    assert degeneration("The novel was written by Mary Shelley", prompt) is None


@pytest.mark.parametrize(
    "mark",
    [
        "### Instruction:\nName a river.",
        "### Response:\nThe Nile.",
        "### 指令：\n说出一条河。",
        "User: And the Danube?",
        "Human: And the Danube?",
        "用户：长江呢？",
        "<|im_start|>user\nAnd the Danube?",
        "<|start_header_id|>user<|end_header_id|>",
        "<start_of_turn>user\nAnd the Danube?",
        "<|user|>And the Danube?",
        "[INST] And the Danube?",
    ],
)
def test_an_answer_that_runs_on(mark: str) -> None:
    found = degeneration(f"The Nile is longer.\n\n{mark}", "Which river is longer?")
    assert found is not None
    assert found.reason == "runs_on"


@pytest.mark.parametrize(
    "text",
    [
        "the quick brown fox jumps over a lazy dog " * 25_000,
        "".join(chr(0x4E00 + (n * n * 31 + n) % 8000) for n in range(1_000_000)),
        "A: " * 330_000 + "x",
        ("A:" + " " * 50) * 20_000 + "x",
        "\n" * 500_000 + "a: b " * 100_000,
        "#" * 1_000_000,
        "<|" * 500_000,
    ],
    ids=lambda text: text[:10],
)
def test_a_million_characters_take_about_a_second(text: str) -> None:
    start = time.process_time()
    degeneration(text, text[:2000], GUIDANCE)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("language", ["en", "zh"])
def test_labeled_answers_are_told_apart_as_documented(language: str) -> None:
    rows = [json.loads(line) for line in (LABELS / f"labels-{language}.jsonl").open()]
    pairs = [
        (
            row["label"] in REASONS,
            degeneration(row["answer"], row["prompt"], guidance()) is not None,
        )
        for row in rows
        if row["split"] == "report"
    ]
    found = sum(label and flagged for label, flagged in pairs)
    assert found / sum(flagged for _, flagged in pairs) > 0.98
    assert found / sum(label for label, _ in pairs) > 0.86


@given(st.text(), st.text(), st.text())
def test_any_text_gets_an_answer(text: str, prompt: str, guidance: str) -> None:
    found = degeneration(text, prompt, guidance)
    assert found is None or found.reason in REASONS


def test_a_turn_made_up_after_a_conversation():
    """The roles of the turns before are no words of theirs."""
    turns = [("user", "Name a bird."), ("assistant", "A heron."), ("user", "And another one?")]
    prompt = tuple(Message(role=role, content=text) for role, text in turns)
    answer = "The kingfisher is a small bird.\nUser: And a fish?"
    assert degeneration(answer, prompt).reason == "runs_on"
    quoted = (*prompt[:-1], Message(role="user", content="Write a dialog with User: and Bot:"))
    assert degeneration(answer, quoted) is None


OFFERS = {
    "en": [
        "I can help with that.",
        "Of course! I\u2019d be happy to help you. I can help you with that.",
    ],
    "zh": ["当然可以，我可以帮助你。", "我很乐意帮您解决这个问题。"],
    "es": ["Claro, puedo ayudarte con eso.", "Estaré encantado de ayudarle."],
    "fr": ["Bien sûr, je peux vous aider avec cela.", "Je serais ravi de vous aider."],
    "de": ["Natürlich, ich kann Ihnen dabei helfen.", "Dabei helfe ich dir gerne."],
    "hi": ["ज़रूर, मैं आपकी इसमें मदद कर सकता हूँ।"],
    "ar": ["بالطبع، يمكنني مساعدتك في ذلك."],
    "ja": ["はい、お手伝いできます。", "もちろんです。それについてお手伝いいたします。"],
    "ko": ["네, 제가 도와드릴 수 있습니다.", "물론이죠, 도와드리겠습니다."],
}


@pytest.mark.parametrize("language", OFFERS)
def test_an_offer_alone_answers_nothing(language: str) -> None:
    for offer in OFFERS[language]:
        found = degeneration(offer, "How do I descale a kettle?")
        assert found and found.reason == "offers", offer
    assert set(OFFERS) == set(built_in())


@pytest.mark.parametrize(
    "answer",
    [
        "I can help you with that. Fill it with vinegar and let it stand.",
        "I can help with that: fill it with vinegar.",
        "I can help you find a plumber.",
        "I can't help with that.",
        "Of course.",
        "Yes.",
        "当然可以。先装满醋。",
    ],
)
def test_an_offer_with_help_or_a_refusal_is_an_answer(answer: str) -> None:
    assert degeneration(answer, "How do I descale a kettle?") is None
