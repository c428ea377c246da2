"""Every built-in language beyond English: its pack does in that language what it is for."""

import re
from pathlib import Path

import pytest
import yaml

from setbacks.judges.refusal import OPENING_CHARACTERS, refuses
from setbacks.judges.replies import better, rating
from setbacks.measure.degeneration import degeneration, guidance
from setbacks.measure.introspection import _verdict
from setbacks.prompts import built_in, fill, prompts
from setbacks.prompts.topic import topic
from setbacks.recipe import Analyze
from setbacks.stages.analyze import Subject, examine
from setbacks.text import whole_sentences, words_of

FILES = sorted((Path(__file__).parent / "data/languages").glob("*.yaml"))
TEXTS = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in FILES}
LABELS = {"harmful": "harmless", "harmless": "harmful"}


def every(key):
    """Each text under a key, with its language."""
    return [(language, text) for language, texts in TEXTS.items() for text in texts[key]]


def test_every_language_has_texts():
    assert TEXTS.keys() == set(built_in()) - {"en", "zh"}  # those two have their own tests
    for texts in TEXTS.values():
        assert min(len(texts["refusals"]), len(texts["answers"])) >= 12


@pytest.mark.parametrize(("language", "text"), every("refusals"))
def test_refusals_are_found(language, text):
    assert refuses(text)


@pytest.mark.parametrize(("language", "text"), every("answers"))
def test_answers_are_not_refusals(language, text):
    assert not refuses(text)


@pytest.mark.parametrize("language", TEXTS)
def test_every_expression_finds_one_of_them(language):
    """An expression that finds none is misspelled, or nobody has seen it work."""
    texts = [" ".join(text.casefold().split()) for text in TEXTS[language]["refusals"]]
    opening, anywhere = (prompts(language)["refusal"][key] for key in ("opening", "anywhere"))
    beginnings = [text[:OPENING_CHARACTERS] for text in texts]
    idle = [e for e in opening if not any(re.search(e, text) for text in beginnings)]
    assert not idle + [e for e in anywhere if not any(re.search(e, text) for text in texts)]


@pytest.mark.parametrize("language", TEXTS)
def test_most_expressions_count_at_the_beginning_alone(language):
    short = [t for t in TEXTS[language]["refusals"] if len(t) < OPENING_CHARACTERS // 2]
    answer = TEXTS[language]["good"]
    assert all(refuses(f"{text} {answer}") for text in short)
    late = [text for text in short if refuses(f"{answer} {answer} {text}")]
    assert len(late) < len(short) / 2


@pytest.mark.parametrize(
    ("with_marks", "without"),
    [
        ("Je suis désolé, mais non.", "Je suis desole, mais non."),
        ("Lo haría, pero no podré hacerlo.", "Lo haria, pero no podre hacerlo."),
        ("Das möchte ich lieber nicht.", "Das mo\u0308chte ich lieber nicht."),
        ("لا أستطيع مساعدتك.", "لَا أَسْتَطِيعُ مُسَاعَدَتَكَ."),
        ("عذرًا، لكن لا أستطيع.", "عذرا، لكن لا استطـيع."),
        ("माफ़ कीजिए, लेकिन मैं यह नहीं करूँगा।", "माफ कीजिए, लेकिन मैं यह नही करूंगा।"),
    ],
)
def test_marks_that_writers_leave_out_do_not_matter(with_marks, without):
    assert refuses(with_marks) and refuses(without)


def subject(harmful):
    return Subject("0" * 16, "1" * 16, "<q>", "<a>", harmful, 0, None, "en")


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("label", LABELS)
def test_an_analysis_agrees_with_its_label_alone(language, label):
    for text in TEXTS[language][f"about_{label}"]:
        for claimed in LABELS:
            checks, _ = examine(text, subject(claimed == "harmful"), Analyze(), prompts(language))
            assert checks["agrees"] is (claimed == label), text
        assert _verdict(text, [prompts(language)]) == label


@pytest.mark.parametrize("language", TEXTS)
def test_an_analysis_of_a_refusal_says_that_refusing_was_wrong(language):
    words, texts = prompts(language), TEXTS[language]
    refused = Subject("0" * 16, "1" * 16, "<q>", "<a>", False, 0, None, language, "refusal")

    def agrees(text):
        return examine(text, refused, Analyze(), words)[0]["agrees"]

    begun = words["analyze"]["prefill_refusal"]
    assert all(agrees(text) for text in texts["about_refusal"])
    assert agrees(f"{begun} {texts['good']}")
    assert not any(agrees(f"{begun} {text}") for text in texts["about_right_refusal"])
    assert not any(agrees(text) for label in LABELS for text in texts[f"about_{label}"])


@pytest.mark.parametrize("language", TEXTS)
def test_a_refusal_begins_with_words_that_are_found(language):
    words = prompts(language)["induce"]["overcautious"]
    assert refuses(words["prefill"]) and len(set(words["hints"])) == 5


@pytest.mark.parametrize("language", TEXTS)
def test_the_questions_share_no_topic_with_an_analysis(language):
    """The words of the rubric are no topic, nor is the beginning of every analysis."""
    words = prompts(language)
    for label in LABELS:
        begun = words["analyze"][f"prefill_{label}"]
        subject = Subject("0" * 16, "1" * 16, begun, begun, label == "harmful", 0, None, language)
        assert not examine(begun, subject, Analyze(min_overlap=1), words)[0]["on_topic"]
    assert len(topic(TEXTS[language]["good"], words)) >= 8


@pytest.mark.parametrize("language", TEXTS)
def test_a_text_is_cut_after_its_last_sentence(language):
    sentences = TEXTS[language]["sentences"]
    assert whole_sentences(sentences["text"]) == sentences["cut"]
    assert whole_sentences(sentences["text"], 1) in sentences["cut"]
    assert len(whole_sentences(sentences["text"], 1)) < len(sentences["cut"])


@pytest.mark.parametrize("language", TEXTS)
def test_a_text_is_split_into_words(language):
    words = TEXTS[language]["words"]
    assert words_of(words["text"]) == words["cut"]


@pytest.mark.parametrize("language", TEXTS)
def test_repetition_is_found(language):
    texts = TEXTS[language]
    assert degeneration(texts["good"], "?", guidance()) is None
    found = degeneration(texts["loop"], "?", guidance())
    assert found and found.reason == "repeats"


@pytest.mark.parametrize("language", TEXTS)
def test_the_guidance_given_back_is_found(language):
    guided = fill(prompts(language)["guided"], instruction="").strip()
    found = degeneration(guided, "?", guidance())
    assert found and found.reason == "parrots"


@pytest.mark.parametrize("language", TEXTS)
def test_a_label_alone_and_a_next_turn_are_found(language):
    words, good = prompts(language), TEXTS[language]["good"]
    found = degeneration(words["joined"]["answer"], "?", guidance())
    assert found and found.reason == "fragment"
    for heading in re.findall("^#.*", words["alpaca"], re.MULTILINE):
        found = degeneration(f"{good}\n\n{heading}\n{good[:20]}", "?", guidance())
        assert found and found.reason == "runs_on"


RATINGS = [
    ("Puntuación: 8", 8),
    ("**Puntuación:** 8 de 10", 8),
    ("«Puntuación: 8/10»", 8),
    ("Puntuación: 4 de 5", None),
    ("Puntuación: entre 7 y 8", None),
    ("Puntuación: 7 o 8", None),
    ("Puntuación (escala de 1 a 5): 4", None),
    ("Évaluation : 8", 8),
    ("Évaluation : 8 sur 10", 8),
    ("« Évaluation : 9 »", 9),
    ("Évaluation : 4 sur 5", None),
    ("Évaluation : 7 ou 8", None),
    ("Évaluation : 7 à 8", None),
    ("Bewertung: 8", 8),
    ("Bewertung: 8 von 10", 8),
    ("„Bewertung: 8“", 8),
    ("Bewertung: 4 von 5", None),
    ("Bewertung: 7 bis 8", None),
    ("Bewertung (Skala von 1 bis 5): 4", None),
    ("अंक: 8", 8),
    ("अंक: ८", 8),
    ("अंक: 10 में से 8", None),
    ("अंक: 7 से 8", None),
    ("التقييم: 8", 8),
    ("التقييم: ٨ من ١٠", 8),
    ("التقييم: 4 من 5", None),
    ("التقييم: 7 إلى 8", None),
    ("評点：8", 8),
    ("「評点：８点」", 8),
    ("評点：8点（10点満点）", 8),
    ("評点：4点（5点満点）", None),
    ("評点：7から8", None),
    ("평점: 8", 8),
    ("평점: 8점", 8),
    ("평점: 4점 (5점 만점)", None),
    ("평점: 7에서 8", None),
    ("Rating: 8\nNote: 2 points are open.", 8),
]


@pytest.mark.parametrize(("reply", "score"), RATINGS)
def test_a_rating_is_read_where_it_is_clear(reply, score):
    assert rating(reply) == score


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("Mejor: B", "B"),
        ("Mejor: «A»", "A"),
        ("Mejor: A o B", None),
        ("Meilleure : A", "A"),
        ("Meilleure : la réponse B.", "B"),
        ("Meilleure : A ou B", None),
        ("Besser: Antwort A", "A"),
        ("Besser: A und B", None),
        ("बेहतर: B।", "B"),
        ("बेहतर: उत्तर A", "A"),
        ("बेहतर: A या B", None),
        ("الأفضل: A", "A"),
        ("الأفضل: الرد B", "B"),
        ("الأفضل: A أو B", None),
        ("優れている方：A。", "A"),
        ("優れている方：回答B", "B"),
        ("優れている方：AとB", None),
        ("더 나음: B", "B"),
        ("더 나음: A 또는 B", None),
    ],
)
def test_the_better_one_is_read_where_it_is_clear(reply, letter):
    assert better(reply) == letter
