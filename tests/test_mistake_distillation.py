"""Mistake distillation: what the teacher is told, what is learned of it, and resuming."""

import json
from collections import Counter

import pytest
from conftest import analysis_of

from setbacks.data import Source, load
from setbacks.errors import InputError
from setbacks.judges.checks import Checker
from setbacks.judges.refusal import refuses
from setbacks.methods import open_method, own_answers
from setbacks.methods.corrections import Draft, Teacher, _beginning
from setbacks.methods.mistake_distillation import MistakeDistillation
from setbacks.pipeline import carry_out
from setbacks.prompts import prompts
from setbacks.recipe import Recipe
from setbacks.records import (
    Completion,
    Correction,
    Example,
    Message,
    Mistake,
    OwnAnswer,
    Teaching,
)
from setbacks.runs.folder import RunFolder

JOURNAL, ANSWERED = "corrections.jsonl", "answered.jsonl"
OPENINGS = prompts("en")["correct"]["openings"]


def analysis(number, text="It could burn somebody.", **more):
    return analysis_of(number, f"{text} {number}", **more)


ANALYSES = [analysis(number) for number in range(4)]


@pytest.fixture
def corrected(open_session, data, fake_model):
    """Have a model that follows a rule correct its mistakes; return the corrections and the run."""

    def make(model="refuser", judge="praiser", folder="run", given=ANALYSES, **train):
        named = {"judge": "llm", "engine": fake_model(judge)}
        common = {"helpful": [str(data)], "safe": [str(data)], "judge": named, "openings": False}
        common |= {"attempts": 1, "min_overlap": 0}
        run = open_session(
            model, folder=folder, train={"method": "mistake_distillation"} | common | train
        )
        return open_method(run.recipe).prepare(run, given), run

    return make


def asked(fake_engine):
    """What the teacher was asked, and not its judge."""
    every = [request for batch, *_ in fake_engine.batches for request in batch]
    return [request for request in every if "Rating" not in request.prompt]


def test_the_teacher_sees_guidance_and_analysis_and_the_student_neither(corrected, fake_engine):
    corrections, run = corrected()
    data = [r.prompt for r in asked(fake_engine) if "<instruction 2>" in r.prompt]
    assert "harmless, ethical and helpful" in data[0] and "It could burn somebody. 2" in data[0]
    learned = MistakeDistillation().examples(run.recipe, corrections)
    (made,) = [e for e in learned if "<instruction 2>" in e.prompt[0].content]
    assert (made.kind, made.prompt[0].content) == ("correction", "<instruction 2>")
    assert made.completion == "I cannot help with that request."
    assert made.parents == [c.id for c in corrections if c.instruction == "<instruction 2>"]


def test_without_the_analysis_guidance_alone_is_the_context(corrected, fake_engine):
    corrected(context="guidance")
    teacher = [request.prompt for request in asked(fake_engine)]
    assert len(teacher) == 4
    assert all("burn" not in p and "harmless, ethical and helpful" in p for p in teacher)


def test_shuffled_analyses_are_those_of_other_mistakes(corrected, fake_engine):
    corrected(analyses="shuffled")
    for request in asked(fake_engine):
        if "burn" in request.prompt:
            number = request.prompt.partition("<instruction ")[2][0]
            assert f"burn somebody. {number}" not in request.prompt


def test_a_single_mistake_has_no_analysis_of_another_one(corrected):
    with pytest.raises(InputError, match="train.analyses: shuffled .* only one; use more"):
        corrected(analyses="shuffled", given=ANALYSES[:1])


def test_each_attempt_at_a_mistake_has_another_opening(corrected):
    corrections, _ = corrected("refuser", "scolder", attempts=3, openings=True)
    begun = {(c.instruction, c.opening) for c in corrections}
    assert len(begun) == 12 and {opening for _, opening in begun} <= {*OPENINGS}


def test_the_best_analysis_is_the_context_and_one_that_failed_is_better_than_none(corrected):
    analyses = [
        analysis(1, passed=False),
        analysis(1, candidate=1),
        analysis(2, passed=False),
        analysis(3, harmful=False),
    ]
    corrections, _ = corrected(given=analyses)
    assert {c.analysis_id for c in corrections} == {analyses[1].id, analyses[2].id}


def test_fewer_analyses_are_fewer_corrections(corrected):
    every, _ = corrected()
    some, _ = corrected(folder="other", most_analyses=2)
    assert len(some) == 2 and {c.id for c in some} < {c.id for c in every}


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("I cannot help with that. It could burn whoever sleeps in the house next door.", "kept"),
        (
            "I cannot help with that. If the request could hurt somebody, do not comply: say why, "
            "and offer a safe alternative.",
            "degenerate",
        ),
    ],
)
def test_an_answer_may_take_up_the_analysis_but_not_the_guidance(corrected, text, outcome):
    given = analysis(1, "The house: it could burn whoever sleeps in the house next door.")
    corrections, run = corrected(sentences=None, given=[given])
    teacher, checker = Teacher(run.recipe), Checker(run.recipe.train.judge, run)
    draft = teacher.draft(corrections[0].id, given, "analysis")
    (check,) = teacher.check(checker, [draft], [Completion(text, "stop", 1, 1)])
    assert check == (text, outcome)


@pytest.mark.parametrize(
    ("model", "judge", "outcome"),
    [
        ("refuser", "praiser", "kept"),
        ("refuser", "scolder", "harmful"),
        ("parrot", "praiser", "compliance"),
    ],
)
def test_only_harmless_refusals_are_learned(corrected, model, judge, outcome):
    corrections, run = corrected(model, judge)
    assert {c.outcome for c in corrections} == {outcome}
    kinds = Counter(e.kind for e in MistakeDistillation().examples(run.recipe, corrections))
    assert kinds["correction"] == (4 if outcome == "kept" else 0)
    assert kinds["safe"] == 6, "safe answers are learned all the same"


def test_an_answer_about_its_prompt_is_not_learned(corrected):
    """The rule writes its prompt after the opening, and so says "a careless answer"."""
    corrections, _ = corrected("talker", openings=True, sentences=None)
    assert {c.outcome for c in corrections} == {"degenerate"}
    assert all("careless" in c.answer for c in corrections)


@pytest.mark.parametrize(
    ("sentences", "kept"),
    [
        (1, "I won't do this. It could hurt people."),
        (2, "I won't do this. It could hurt people. Ask them!"),
        (None, "I won't do this. It could hurt people. Ask them! And"),
    ],
)
def test_an_answer_is_learned_up_to_a_sentence_after_its_opening(sentences, kept):
    opening = "I won't do this. It could"
    assert _beginning(f"{opening} hurt people. Ask them! And", opening, sentences) == kept
    assert _beginning(f"{opening} hurt", opening, 1).endswith("hurt")


def test_equal_answers_are_learned_once(corrected):
    another = analysis(1).model_copy(update={"id": "another", "response_id": "b" * 16})
    corrections, run = corrected(given=[analysis(1), another])
    assert [c.instruction for c in corrections] == ["<instruction 1>"] * 2
    learned = MistakeDistillation().examples(run.recipe, corrections)
    assert Counter(e.kind for e in learned)["correction"] == 1


@pytest.fixture
def namer(fake_engine, monkeypatch):
    """A model that says what it refuses if the instruction has an even number."""

    def rule(self, request, sampling):
        number = int(request.prompt.partition("<instruction ")[2][0])
        return f"I cannot help with {number if number % 2 == 0 else 'that'}."

    monkeypatch.setattr(fake_engine.Rules, "namer", rule, raising=False)
    return "namer"


def test_an_answer_that_does_not_say_what_it_refuses_is_written_again(corrected, namer):
    corrections, run = corrected(namer, attempts=3, min_overlap=1)
    outcomes = Counter((c.instruction, c.outcome) for c in corrections)
    assert outcomes == {
        ("<instruction 0>", "kept"): 1,
        ("<instruction 1>", "off_topic"): 3,
        ("<instruction 2>", "kept"): 1,
        ("<instruction 3>", "off_topic"): 3,
    }
    learned = MistakeDistillation().examples(run.recipe, corrections)
    assert Counter(e.kind for e in learned)["correction"] == 2


@pytest.mark.parametrize(
    ("instruction", "text", "opening", "outcome"),
    [
        ("Tell me how to sell alarm clocks.", "to steal.", "I won't help you", "off_topic"),
        ("How do I sell alarm clocks?", "to sell alarm clocks.", "I won't help you", "kept"),
        ("Help me sell my vote.", "you to walk.", "I won't help", "off_topic"),
        ("How do I sell clocks?", "somebody could be hurt.", "I won't do this. It means", "kept"),
        (
            (
                Message(role="system", content="You sell clocks."),
                Message(role="user", content="How do I rob a shop?"),
            ),
            "to sell clocks.",
            "I won't help you",
            "off_topic",
        ),
    ],
)
def test_what_counts_as_being_about_the_instruction(corrected, instruction, text, opening, outcome):
    """Words of the opening, of the system prompt and of no content do not count."""
    one = analysis(1).model_copy(update={"instruction": instruction})
    _, run = corrected(min_overlap=1)
    checker = Checker(run.recipe.train.judge, run)
    draft = Draft("id", one, "", opening)
    completion = Completion(f"{opening} {text}", "stop", 1, 1)
    (check,) = Teacher(run.recipe).check(checker, [draft], [completion])
    assert check.outcome == outcome


def test_few_corrections_are_told(corrected, namer):
    _, run = corrected(namer, min_overlap=1)
    assert not run.folder.notices(), "half of them are enough"
    few = [analysis(number) for number in (0, 1, 3, 5)]
    _, run = corrected(namer, min_overlap=1, folder="few", given=few)
    (line,) = run.folder.notices()
    assert line.startswith("only 1 of 4 mistakes have a correction that passed its checks")


def test_no_answer_must_take_up_more_than_the_instruction_has(corrected, namer):
    """An instruction of nothing but stop words has no content word."""
    few = analysis(2).model_copy(update={"instruction": "<instruction 2> Do it."})
    corrections, _ = corrected(namer, min_overlap=5, given=[few])
    assert [c.outcome for c in corrections] == ["kept"]


@pytest.mark.parametrize("kept", range(7))
def test_going_on_asks_only_for_what_is_missing(corrected, namer, fake_engine, kept):
    options = {"attempts": 2, "min_overlap": 1}
    made, run = corrected(namer, folder="whole", **options)
    whole = (run.path / JOURNAL).read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 6
    calls = len(fake_engine.batches)
    fake_engine.batches.clear()
    other = run.path.parent / "cut"
    other.mkdir()
    (other / "recipe.yaml").write_bytes((run.path / "recipe.yaml").read_bytes())
    (other / JOURNAL).write_bytes(b"".join(lines[:kept]) + b"".join(lines[kept : kept + 1])[:9])
    again, cut = corrected(namer, folder="cut", **options)
    assert again == made and (cut.path / JOURNAL).read_bytes() == whole
    assert (len(fake_engine.batches) < calls) == (kept >= 4)


def refusal(number):
    return analysis(number, harmful=False).model_copy(update={"kind": "refusal"})


PLAIN = "Mix flour and water, then wait until the dough is soft and warm."


@pytest.fixture
def answerer(fake_engine, monkeypatch):
    """A model that answers a bare request of an even number, and any whose refusal it reads."""

    def rule(self, request, sampling):
        number = int(request.prompt.partition("<instruction ")[2][0])
        told = "The response refuses a safe request" in request.prompt
        return PLAIN if told or number % 2 == 0 else "I cannot help with that request."

    monkeypatch.setattr(fake_engine.Rules, "answerer", rule, raising=False)


def test_a_refused_request_is_answered_plainly_or_else_with_its_analysis(corrected, answerer):
    given = [refusal(number) for number in range(4)]
    corrections, run = corrected("answerer", given=given)
    assert {c.kind for c in corrections} == {"refusal"}
    outcomes = [(c.instruction[-2], c.sample, c.outcome) for c in corrections]
    assert sorted(outcomes) == [
        ("0", 0, "kept"),
        ("1", 0, "refusal"),
        ("1", 1, "kept"),
        ("2", 0, "kept"),
        ("3", 0, "refusal"),
        ("3", 1, "kept"),
    ]
    made = MistakeDistillation().examples(run.recipe, corrections)
    own = {e.instruction: e.completion for e in made if e.kind == "refusal_correction"}
    assert own == {f"<instruction {number}>": PLAIN for number in range(4)}


def test_shuffled_analyses_of_refusals_are_those_of_others_and_no_more_than_wanted(
    corrected, answerer, fake_engine
):
    given = [refusal(number) for number in (1, 3, 5, 7)]
    corrections, _ = corrected("answerer", given=given, analyses="shuffled", most_analyses=3)
    assert [c.sample for c in corrections] == [0, 0, 0, 1, 1, 1]
    prompts = [r.prompt for r in asked(fake_engine) if "burn" in r.prompt]
    assert len(prompts) == 3
    for prompt in prompts:
        number = prompt.partition("<instruction ")[2][0]
        assert f"burn somebody. {number}" not in prompt
    with pytest.raises(InputError, match="train.analyses: shuffled"):
        corrected("answerer", folder="one", given=given[:1], analyses="shuffled")


def test_without_analyses_only_the_plain_answer_is_tried(corrected, answerer):
    given = [refusal(number) for number in range(4)]
    corrections, _ = corrected("answerer", given=given, context="guidance")
    assert [c.sample for c in corrections] == [0] * 4


def test_a_harmful_answer_puts_no_refusal_right(corrected, answerer):
    corrections, run = corrected("answerer", "scolder", given=[refusal(0)])
    assert {c.outcome for c in corrections} == {"harmful"}
    made = MistakeDistillation().examples(run.recipe, corrections)
    assert "refusal_correction" not in {e.kind for e in made}


def test_no_more_refusals_than_harmful_mistakes_are_put_right(corrected, answerer, data):
    harmful, _ = corrected("refuser", given=[analysis(7)])
    refusals, run = corrected("answerer", folder="other", given=[*map(refusal, range(4))])
    made = MistakeDistillation().examples(run.recipe, [*harmful, *refusals])
    kinds = Counter(e.kind for e in made)
    assert (kinds["correction"], kinds["refusal_correction"]) == (1, 1)


@pytest.mark.parametrize("kept", range(6))
def test_answers_to_refused_requests_are_resumed(corrected, answerer, kept):
    given = [refusal(number) for number in range(4)]
    made, run = corrected("answerer", folder="whole", given=given)
    whole = (run.path / ANSWERED).read_bytes()
    lines = whole.splitlines(keepends=True)
    other = run.path.parent / "cut"
    other.mkdir()
    (other / "recipe.yaml").write_bytes((run.path / "recipe.yaml").read_bytes())
    (other / ANSWERED).write_bytes(b"".join(lines[:kept]) + b"".join(lines[kept : kept + 1])[:9])
    again, cut = corrected("answerer", folder="cut", given=given)
    assert again == made and (cut.path / ANSWERED).read_bytes() == whole


def test_its_own_options_differ_from_those_of_all_methods():
    train = Recipe.model_validate({"train": {"method": "mistake_distillation"}}).train
    assert train.helpful_from == "model"
    sources = [source.source for source in train.helpful]
    assert sources == ["builtin:helpful", "builtin:safe", "builtin:twins"]
    assert train.mix.helpful == 1.3
    assert Recipe.model_validate({"train": {"method": "sft"}}).train.helpful_from == "data"


# The teacher's distributions --------------------------------------------------------------------


@pytest.mark.parametrize("distill", ["forward_kl", "jsd"])
def test_each_text_of_the_model_has_the_prompt_that_it_was_written_from(
    corrected, answerer, fake_engine, distill
):
    harmful, _ = corrected("refuser", distill=distill)
    refusals, run = corrected(
        "answerer", folder="other", given=[*map(refusal, range(2))], distill=distill
    )
    prompts = {r.prompt for r in asked(fake_engine)}
    every = MistakeDistillation().examples(run.recipe, [*harmful, *refusals])
    assert not any(e.teacher for e in every if e.kind == "safe")
    taught = [e for e in every if e.teacher]
    assert Counter(e.kind for e in taught) == {"correction": 4, "refusal_correction": 2}
    assert all(e.teacher.prompt[0].content in prompts for e in taught)
    for e in taught:
        (prompt,) = e.teacher.prompt
        if e.kind == "correction":
            assert "It could burn somebody." in prompt.content and e.instruction in prompt.content
    plain = [e for e in taught if e.teacher.prompt == e.prompt]
    assert [e.instruction for e in plain] == ["<instruction 0>"]


def test_a_correction_tells_its_opening_and_whether_it_was_cut(corrected):
    corrections, run = corrected("talker", openings=True, distill="forward_kl")
    one = corrections[0]
    assert one.text.startswith(one.opening) and one.opening in OPENINGS
    kept = one.model_copy(update={"outcome": "kept", "text": f"{one.opening} hurt. And so on."})

    def taught(answer):
        correction = kept.model_copy(update={"answer": answer})
        examples = MistakeDistillation().examples(run.recipe, [correction])
        (made,) = [e for e in examples if e.kind == "correction"]
        return made.teacher

    cut = taught(f"{one.opening} hurt.")
    assert (cut.opening, cut.cut) == (one.opening, True)
    assert not taught(kept.text).cut


def test_texts_have_no_teacher_and_the_same_examples(corrected):
    """Both forms learn the same texts in the same order, so that they can be compared."""
    corrections, run = corrected()
    texts = MistakeDistillation().examples(run.recipe, corrections)
    corrections, run = corrected(folder="other", distill="forward_kl")
    taught = MistakeDistillation().examples(run.recipe, corrections)
    assert [e.id for e in texts] == [e.id for e in taught]
    assert not any(e.teacher for e in texts) and any(e.teacher for e in taught)
    assert "teacher" not in texts[0].model_dump_json()


def test_corrections_of_earlier_versions_are_learned_as_text(corrected):
    corrections, run = corrected(distill="forward_kl")
    old = [
        Correction.model_validate(one.model_dump(exclude={"prompt", "opening"}))
        for one in corrections
    ]
    made = MistakeDistillation().examples(run.recipe, old)
    assert Counter(e.kind for e in made)["correction"] == 4
    assert not any(e.teacher for e in made)


@pytest.mark.parametrize("helpful_from", ["model", "data"])
def test_the_model_teaches_itself_its_own_benign_answers_only(tmp_path, data, helpful_from):
    """The train stage names them in the recipe, once they are checked."""
    row = {"instruction": "<a request>", "answer": "<an answer>", "outcome": "kept"}
    (tmp_path / "benign.jsonl").write_text(json.dumps(row) + "\n")
    helpful = [own_answers(tmp_path) if helpful_from == "model" else str(data)]
    train = {"safe": [str(data)], "helpful": helpful, "distill": "jsd", "helpful_from": "data"}
    recipe = Recipe.model_validate({"train": train})
    made = MistakeDistillation().examples(recipe, [])
    helpful = [e for e in made if e.kind == "helpful"]
    assert helpful and not any(e.teacher for e in made if e.kind == "safe")
    for e in helpful:
        own = helpful_from == "model"
        assert e.teacher == (Teaching(prompt=e.prompt) if own else None)


@pytest.mark.slow
def test_the_default_recipe_trains_the_embedded_model_on_its_own_checked_texts(tmp_path):
    limited = {"limit": 8, "split": "train"}
    recipe = Recipe.model_validate(
        {
            "instructions": [{"source": "builtin:redteam", **limited}],
            "analyze": {"contrast": [], "candidates": 1},
            "train": {
                "helpful": [{"source": "builtin:helpful", **limited}],
                "safe": [{"source": "builtin:refusals", **limited}],
                "steps": 1,
            },
        }
    )
    assert recipe.train.method == "mistake_distillation"

    def trained():
        with RunFolder(tmp_path / "run", recipe) as run:
            adapter = carry_out(run, "train")
            return (
                (adapter / "adapter_model.safetensors").read_bytes(),
                run.records("corrections.jsonl", Correction),
                run.records("benign.jsonl", OwnAnswer),
                run.records("training.jsonl", Example),
            )

    weights, corrections, benign, learned = trained()
    kept = {one.answer for one in corrections if one.outcome == "kept"}
    own = {one.answer for one in benign if one.outcome == "kept"}
    assert len(kept) >= 2 and all(text.startswith(tuple(OPENINGS)) for text in kept)
    assert len(benign) == 8 and len(own) >= 4
    by_kind: dict[str, set[str]] = {}
    for made in learned:
        by_kind.setdefault(made.kind, set()).add(made.completion)
    given = {row.answer for row in load(Source(source="builtin:refusals", **limited))}
    assert by_kind == {"correction": kept, "helpful": own, "safe": given}
    assert not any("harmless" in e.prompt[0].content for e in learned), "no guidance is learned"
    journal = tmp_path / "run" / "benign.jsonl"
    journal.write_bytes(journal.read_bytes()[:-40])
    assert trained() == (weights, corrections, benign, learned), "a cut journal is completed"


@pytest.mark.slow
def test_the_embedded_model_learns_its_own_distributions(tmp_path):
    limited = {"limit": 6, "split": "train"}
    recipe = Recipe.model_validate(
        {
            "instructions": [{"source": "builtin:redteam", **limited}],
            "analyze": {"contrast": [], "candidates": 1},
            "train": {
                "helpful": [{"source": "builtin:helpful", **limited}],
                "safe": [],
                "steps": 3,
                "batch_size": 4,
                "distill": "forward_kl",
            },
        }
    )
    with RunFolder(tmp_path / "run", recipe) as run:
        carry_out(run, "train")
        learned = run.records("training.jsonl", Example)
    teachers = {e.kind: e.teacher for e in learned}
    assert teachers.keys() == {"correction", "helpful"} and all(e.teacher for e in learned)
    assert all(e.teacher.prompt == e.prompt for e in learned if e.kind == "helpful")
    for e in learned:
        if e.kind == "correction":
            assert e.completion.startswith(e.teacher.opening) and e.teacher.opening in OPENINGS
            assert "harmless" in e.teacher.prompt[0].content
            assert "harmless" not in e.prompt[0].content
    lines = (tmp_path / "run/loss.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    first = next(row for row in rows if "divergence_helpful" in row)
    assert first["divergence_helpful"] < 0.02, "not zero, in bfloat16"
    assert max(row.get("divergence_correction", 0) for row in rows) > 0.05


@pytest.mark.slow
def test_the_embedded_model_learns_to_answer_what_it_had_refused(tmp_path):
    limited = {"limit": 4, "split": "train"}
    prompts_of = {name: [{"source": f"builtin:{name}", **limited}] for name in ("safe", "helpful")}
    recipe = Recipe.model_validate(
        {
            "instructions": [{"source": "builtin:redteam", **limited}],
            "induce": {"refusals": prompts_of["safe"]},
            "analyze": {"contrast": [], "candidates": 1},
            "train": {"helpful": [], "safe": [], "steps": 1, "mix": {"refusal": 4}},
            "respond": {
                "suites": [
                    {"name": kind, "kind": kind, "sources": prompts_of[kind]} for kind in prompts_of
                ],
                "guidance": False,
                "sampling": {"max_new_tokens": 16},
            },
            "decontaminate": None,  # the suites are what it learned from
        }
    )
    with RunFolder(tmp_path / "run", recipe) as run:
        made = carry_out(run, "report")
        attempts = [m for m in run.records("mistakes.jsonl", Mistake) if m.kind == "refusal"]
        answers = run.records("answered.jsonl", Correction)
        learned = run.records("training.jsonl", Example)
    begun = prompts("en")["induce"]["overcautious"]["prefill"]
    refused = {m.instruction: m.response for m in attempts if m.outcome == "mistake"}
    assert len(refused) == 4 and all(text.startswith(begun) for text in refused.values())
    kept = {(c.instruction, c.answer) for c in answers if c.outcome == "kept"}
    own = {(e.instruction, e.completion) for e in learned if e.kind == "refusal_correction"}
    assert own == kept and len(own) >= 2
    assert not any(refuses(answer) for _, answer in own)
    page = made.path.read_text(encoding="utf-8")
    assert "Safe prompts that gave a refusal" in page and "Answers to refused requests" in page
    assert made.metrics["data"]["refusals"]["instructions_with_mistake"]["value"] == 1
