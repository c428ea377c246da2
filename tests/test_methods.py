"""Methods: which examples a model is trained on, and how many of each kind."""

import json
from collections import Counter

import pytest

from setbacks.data import Source
from setbacks.errors import InputError
from setbacks.methods import answers, example, mistakes, open_method, share
from setbacks.methods.chain_of_hindsight import ChainOfHindsight
from setbacks.methods.critique_revise import CritiqueRevise
from setbacks.methods.mistake_analysis import MistakeAnalysis, best
from setbacks.methods.mistake_analysis_joined import MistakeAnalysisJoined
from setbacks.methods.posterior_distillation import PosteriorDistillation
from setbacks.methods.preferences import pairs
from setbacks.methods.sft import SFT
from setbacks.pipeline import carry_out, check, open_run
from setbacks.plugins import installed, plugin
from setbacks.recipe import Recipe
from setbacks.records import Analysis, Arm, Choice, Correction, Example, Revision
from setbacks.runs.folder import RunFolder
from setbacks.runs.session import Session
from setbacks.stages.respond import request, split_answer


def analysis(number=0, harmful=True, passed=True, score=1.0, candidate=0):
    return Analysis(
        id=f"{number}-{candidate}",
        response_id=str(number),
        instruction=f"<instruction {number}>",
        response="<a response>",
        harmful=harmful,
        text=f"<analysis {number}-{candidate}>",
        candidate=candidate,
        checks={"agrees": passed, "length": True},
        score=score,
        category=None,
        language="en",
        analyst="m",
    )


@pytest.fixture
def recipe(data):
    """Make a recipe with a method and a mix; six answers of each kind are there."""

    def make(**mix):
        sources = {"safe": [str(data)], "helpful": [str(data)]}
        train = {"method": "mistake_analysis", "mix": mix, **sources}
        return Recipe.model_validate({"train": train})

    return make


def kinds(examples):
    return Counter(made.kind for made in examples)


# Mistake analysis -------------------------------------------------------------------------------


def test_the_best_analysis_that_passed_is_picked():
    found = best(
        [
            analysis(1, score=1.0, candidate=0),
            analysis(1, score=1.5, candidate=1),
            analysis(1, score=2.0, candidate=2, passed=False),
            analysis(2, score=1.0, candidate=1),
            analysis(2, score=1.0, candidate=0),
            analysis(3, passed=False),
        ]
    )
    assert [made.id for made in found] == ["1-1", "2-0"]


def test_an_example_names_what_it_came_from(recipe):
    (made,) = MistakeAnalysis().examples(recipe(helpful=0), [analysis(1)])
    assert (made.kind, made.completion, made.parents) == (
        "analysis",
        "<analysis 1-0>",
        ["1-0", "1"],
    )
    assert [message.role for message in made.prompt] == ["user"]
    assert "<instruction 1>" in made.prompt[0].content
    assert "<a response>" in made.prompt[0].content


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        ({}, {"analysis": 4, "contrast": 4, "helpful": 4}),
        ({"contrast": 0, "helpful": 0}, {"analysis": 4}),
        ({"contrast": 0.5, "helpful": 0.25, "safe": 1.5},)
        + ({"analysis": 4, "contrast": 2, "helpful": 1, "safe": 6},),
        ({"contrast": 9, "helpful": 9, "safe": 9},)
        + ({"analysis": 4, "contrast": 5, "helpful": 6, "safe": 6},),
        ({"contrast": 0, "helpful": 1e9}, {"analysis": 4, "helpful": 6}),
    ],
    ids=str,
)
def test_the_mix_is_for_one_example_of_the_methods_own(recipe, mix, expected):
    analyses = [analysis(n) for n in range(4)] + [analysis(n, False) for n in range(10, 15)]
    assert kinds(MistakeAnalysis().examples(recipe(**mix), analyses)) == expected


@pytest.mark.parametrize(
    ("mix", "said"),
    [
        ({}, None),
        ({"helpful": 1.5}, None),
        ({"helpful": 2}, "train.mix.helpful asks for 8 examples, and there are 6"),
        ({"contrast": 9}, "train.mix.contrast asks for 36 examples, and there are 5"),
        ({"safe": 2}, "train.mix.safe asks for 8 examples, and there are 6"),
    ],
    ids=str,
)
def test_a_mix_that_the_data_cannot_fill_is_noticed(recipe, mix, said, notices):
    analyses = [analysis(n) for n in range(4)]
    analyses += [analysis(n, harmful=False) for n in range(10, 15)]
    MistakeAnalysis().examples(recipe(**mix), analyses)
    assert notices == ([f"{said}: all are used"] if said else [])


def test_a_mix_that_the_model_writes_itself_is_not_missed_before_the_run(notices):
    check(Recipe())  # of mistake distillation, with the model's own helpful answers
    assert notices == []


def test_analyses_that_failed_teach_nothing(recipe):
    analyses = [analysis(0), analysis(1, passed=False), analysis(2, harmful=False, passed=False)]
    made = MistakeAnalysis().examples(recipe(helpful=0), analyses)
    assert [example.parents[1] for example in made] == ["0"]


@pytest.mark.parametrize("method", [MistakeAnalysis, SFT])
def test_examples_have_ids_of_their_content(method, recipe):
    analyses = [analysis(n) for n in range(4)]
    one = method().examples(recipe(safe=1), analyses)
    other = method().examples(recipe(safe=1), analyses[::-1])
    assert {made.id for made in one} == {made.id for made in other}
    assert len({made.id for made in one}) == len(one)


# Refusals of safe requests ----------------------------------------------------------------------

ANIMALS = ("badger", "otter", "heron", "lizard", "salmon", "beetle")


def refusal(number, **more):
    """The analysis of a refused request of the file of data."""
    return analysis(100 + number, harmful=False, **more).model_copy(
        update={
            "kind": "refusal",
            "instruction": f"<a question on the {ANIMALS[number]}>",
            "response": f"<a refusal {number}>",
        }
    )


@pytest.fixture
def cautious(recipe, data):
    """Make a recipe with safe requests to be refused, and without other data."""

    def make(method="mistake_analysis", safe=(), **mix):
        values = recipe(helpful=0, **mix).model_dump()
        values["induce"]["refusals"] = [str(data)]
        values["train"] |= {"method": method, "safe": list(safe)}
        return Recipe.model_validate(values)

    return make


def test_why_it_was_wrong_to_refuse_is_learned_under_the_neutral_question(cautious):
    made = MistakeAnalysis().examples(cautious(), [analysis(1), refusal(0)])
    assert kinds(made) == {"analysis": 1, "refusal_analysis": 1}
    questions = [e.prompt[0].content.rpartition("\n")[2] for e in made]
    assert questions[0] == questions[1] == "Is the response above harmful or harmless, and why?"
    first = cautious()
    first = first.model_copy(update={"train": first.train.model_copy(update={"verdict": "first"})})
    (own,) = MistakeAnalysis().examples(first, [refusal(0)])
    assert own.completion == "Harmless. <analysis 100-0>", "a refusal harms nobody"


@pytest.mark.parametrize(
    ("harmful", "mix", "expected"),
    [
        (2, {}, {"analysis": 2, "refusal_analysis": 2, "contrast": 2}),
        (2, {"refusal": 2}, {"analysis": 2, "refusal_analysis": 4, "contrast": 2}),
        (2, {"refusal": 0}, {"analysis": 2, "contrast": 2}),
        (0, {}, {"refusal_analysis": 6, "contrast": 5}),
    ],
)
def test_refusals_are_no_more_than_harmful_mistakes(cautious, harmful, mix, expected):
    analyses = [*map(analysis, range(harmful)), *map(refusal, range(6))]
    analyses += [analysis(n, harmful=False) for n in range(10, 15)]
    assert kinds(MistakeAnalysis().examples(cautious(**mix), analyses)) == expected


def test_a_refusal_is_never_an_answer_to_learn(cautious, data):
    """A joined example ends in an answer: that of a refused request would be the refusal."""
    joined = MistakeAnalysisJoined()
    made = joined.examples(cautious(safe=[str(data)]), [analysis(1), refusal(0), refusal(1)])
    assert "refusal_analysis" in kinds(made)
    assert not [e for e in made if "<a refusal" in e.completion]


def test_mistakes_of_a_kind_are_told_apart():
    analyses = [analysis(1), refusal(0), analysis(2, harmful=False)]
    assert {*mistakes(analyses)} == {"<instruction 1>"}
    assert {*mistakes(analyses, "refusal")} == {"<a question on the badger>"}


def test_a_refusal_is_rejected_for_the_answer_in_its_data(cautious, data):
    analyses = [analysis(0), *map(refusal, range(3))]
    made = pairs(cautious("dpo", safe=[str(data)]), analyses, "dpo")
    assert kinds(made) == {"refusal_pair": 3}
    for pair in made:
        animal = pair.prompt[0].content.removeprefix("<a question on the ").rstrip(">")
        assert pair.completion == f"<a good answer on the {animal}>"
        assert pair.rejected == f"<a refusal {ANIMALS.index(animal)}>"


def test_hindsight_names_the_refusal_by_other_words_than_harm(cautious, data):
    made = ChainOfHindsight().examples(cautious(safe=[str(data)]), [refusal(2)])
    (bad,) = [e for e in made if e.kind == "hindsight_bad"]
    assert bad.completion == "<a refusal 2>" and "although the request is safe" in bad.instruction
    good = [e for e in made if "heron" in e.instruction and e.kind == "hindsight_good"]
    assert {e.completion for e in good} == {"<a good answer on the heron>"}


@pytest.mark.parametrize(("model", "passed"), [("talker", True), ("refuser", False)])
def test_a_revised_refusal_must_not_refuse(
    cautious, fake_model, fake_engine, tmp_path, model, passed
):
    values = cautious("critique_revise").model_dump() | {"model": fake_model(model)}
    with (
        RunFolder(tmp_path / "run", Recipe.model_validate(values)) as folder,
        Session(folder) as run,
    ):
        revisions = CritiqueRevise().prepare(run, [analysis(1), refusal(0)])
        made = CritiqueRevise().examples(run.recipe, revisions)
    assert {r.kind: r.passed for r in revisions} == {"harmful": True, "refusal": passed}
    assert kinds(made)["refusal_revision"] == passed
    revised = next(r for r in revisions if r.kind == "refusal")
    assert not passed or "do not refuse" in revised.text, "the engine repeats its prompt"


# SFT --------------------------------------------------------------------------------------------


def test_sft_learns_safe_answers_and_helpful_ones(recipe):
    made = SFT().examples(recipe(helpful=0.5), [])
    assert kinds(made) == {"safe": 6, "helpful": 3}
    own = next(example for example in made if example.kind == "safe")
    assert own.prompt[0].content == "<a question on the badger>"
    assert own.completion == "<a good answer on the badger>"


def test_sft_without_safe_answers_is_told(recipe):
    bare = recipe()
    bare = bare.model_copy(update={"train": bare.train.model_copy(update={"safe": []})})
    with pytest.raises(InputError, match=r"train\.safe"):
        SFT().examples(bare, [])


# Analyses joined to answers --------------------------------------------------------------------


def joinable(recipe):
    """Analyses of mistakes on the badger and the otter, of a safe answer, and of a benign one."""
    asked = [f"<a question on the {animal}>" for animal in ("badger", "otter", "heron")]
    return [
        analysis(0).model_copy(update={"instruction": asked[0]}),
        analysis(1).model_copy(update={"instruction": asked[1]}),
        analysis(2, harmful=False).model_copy(update={"instruction": asked[2]}),
        analysis(3, harmful=False),
    ]


def test_a_joined_sample_is_an_analysis_and_then_the_safe_answer(recipe):
    made = MistakeAnalysisJoined().examples(recipe(helpful=0, contrast=1), joinable(recipe))
    assert kinds(made) == {"analysis": 2, "contrast": 2, "joined": 2, "joined_contrast": 1}
    own = next(x for x in made if x.kind == "joined" and "badger" in x.completion)
    assert own.completion == ("Harmful. <analysis 0-0>\n\nAnswer: <a good answer on the badger>")
    assert own.verdict == "Harmful." and "<a response>" not in own.prompt[0].content
    # The heron's answer is harmless, but what was asked is a red-team instruction: no benign one.
    (benign,) = [x for x in made if x.kind == "joined_contrast"]
    assert benign.completion == "Harmless. <analysis 3-0>\n\nAnswer: <a response>"
    assert "<instruction 3>" in benign.prompt[0].content


def test_joined_samples_follow_what_the_recipe_selects(data):
    def joined(**train):
        given = {"safe": [str(data)], "helpful": [], "mix": {"helpful": 0}}
        recipe = Recipe.model_validate({"train": given | train})
        made = MistakeAnalysisJoined().examples(recipe, joinable(recipe))
        return sorted(x.completion for x in made if x.kind == "joined")

    badger, otter = (f"Answer: <a good answer on the {a}>" for a in ("badger", "otter"))
    right = [f"Harmful. <analysis 0-0>\n\n{badger}", f"Harmful. <analysis 1-0>\n\n{otter}"]
    assert joined() == right
    assert joined(analyses="shuffled") == [
        f"Harmful. <analysis 0-0>\n\n{otter}",
        f"Harmful. <analysis 1-0>\n\n{badger}",
    ]
    (one,) = joined(most_analyses=1)
    assert one in right


def test_a_joined_sample_finds_its_safe_answer_in_a_file_with_other_line_ends(tmp_path):
    path = tmp_path / "safe.jsonl"
    path.write_text(json.dumps({"text": "<a line>\r\n<another>", "answer": "<no>"}) + "\n")
    mistake = analysis(0).model_copy(update={"instruction": "<a line>\n<another>"})
    recipe = Recipe.model_validate({"train": {"safe": [str(path)], "mix": {"helpful": 0}}})
    made = MistakeAnalysisJoined().examples(recipe, [mistake])
    assert kinds(made) == {"analysis": 1, "joined": 1}


def test_what_is_thought_first_is_kept_apart_from_the_answer():
    data = Recipe.model_validate({"train": {"method": "mistake_analysis_joined"}})
    arm = Arm.of_method("mistake_analysis_joined", "guided")
    assert "First say whether" in request(data, arm, "<x>").prompt
    assert split_answer(data, arm, "Harmful. <t>\n\nAnswer: <a>") == {
        "text": "<a>",
        "analysis": "Harmful. <t>",
    }
    assert split_answer(data, arm, "Harmful. <cut off") == {
        "text": "Harmful. <cut off",
        "analysis": None,
    }
    plain = Arm.of_method("mistake_analysis_joined")
    assert request(data, plain, "<x>").prompt == "<x>"
    assert split_answer(data, plain, "Answer: <a>")["text"] == "Answer: <a>"


def test_a_reasoning_model_learns_the_analysis_as_its_thought(recipe):
    made = MistakeAnalysisJoined(thoughts=True).examples(
        recipe(helpful=0, contrast=1), joinable(recipe)
    )
    assert kinds(made) == {"analysis": 2, "contrast": 2, "joined": 2, "joined_contrast": 1}
    own = next(x for x in made if x.kind == "joined" and "badger" in x.completion)
    assert own.instruction == "<a question on the badger>"
    assert own.thought == "Harmful. <analysis 0-0>"
    assert own.completion == "<a good answer on the badger>"
    (benign,) = [x for x in made if x.kind == "joined_contrast"]
    assert (benign.thought, benign.completion) == ("Harmless. <analysis 3-0>", "<a response>")
    assert [x.thought for x in made if x.kind in ("analysis", "contrast")] == [None] * 4


def test_a_model_that_thinks_by_itself_is_not_asked_to():
    train = {"method": "mistake_analysis_joined", "thoughts": True}
    data = Recipe.model_validate({"train": train})
    arm = Arm.of_method("mistake_analysis_joined", "guided")
    assert "First say whether" not in request(data, arm, "<x>").prompt
    assert split_answer(data, arm, "Answer: <a>") == {"text": "Answer: <a>", "analysis": None}


def test_a_model_without_thoughts_cannot_learn_them(tiny):
    model = {"model": str(tiny), "device": "cpu"}
    train = {"method": "mistake_analysis_joined", "thoughts": True}
    data = Recipe.model_validate({"model": model, "train": train})
    with pytest.raises(InputError, match="does not think before it answers"):
        open_method(data).check(data)
    model["thinking"] = ["<why>", "</why>"]
    data = Recipe.model_validate({"model": model, "train": train})
    open_method(data).check(data)


# What posterior decoding chooses ----------------------------------------------------------------


def test_a_choice_is_drawn_from_the_model_that_is_trained_on_it(tiny, lora_of_tiny, data, tmp_path):
    recipe = Recipe.model_validate(
        {
            "model": str(tiny),
            "instructions": [str(data)],
            "train": {
                "method": "posterior_distillation",
                "start": str(lora_of_tiny),
                "helpful": [str(data)],
                "steps": 1,
            },
            "respond": {"posterior": {"drafts": 2}, "sampling": {"max_new_tokens": 6}},
        }
    )
    with RunFolder(tmp_path / "run", recipe) as run:
        assert (carry_out(run, "train") / "adapter_model.safetensors").exists()
        choices = run.records("choices.jsonl", Choice)
        learned = run.records("training.jsonl", Example)
    assert len(choices) == 6 and all(len(c.drafts) == 2 for c in choices)
    assert all(c.p_harmful == sorted(c.p_harmful) for c in choices)
    longer = recipe.model_dump(mode="json")
    longer["respond"]["sampling"]["max_new_tokens"] = 7
    longer = Recipe.model_validate(longer)
    with (  # drafts are drawn as answers are
        pytest.raises(InputError, match="with --from train"),
        open_run(tmp_path / "run", longer, redo="respond"),
    ):
        pass
    with open_run(tmp_path / "run", longer, redo="train") as run:
        assert run.records("choices.jsonl", Choice) == []
    kept = {c.drafts[0] for c in choices if c.drafts[0].strip()}
    assert {x.completion for x in learned if x.kind == "choice"} == kept


@pytest.mark.parametrize("silent", ["", "\u200b", "<think>Well,"])
def test_nothing_is_learnt_from_drafts_that_all_say_nothing(recipe, silent):
    data = recipe(helpful=0)
    data = data.model_copy(update={"train": data.train.model_copy(update={"start": "adapter"})})
    choices = [
        Choice(id=text, instruction="<x>", drafts=[text, silent], p_harmful=[0.1, 0.2], model="m")
        for text in (silent, "Mix them.")
    ]
    made = PosteriorDistillation().examples(data, choices)
    assert [x.completion for x in made] == ["Mix them."]


def test_distillation_without_an_adapter_is_told(recipe):
    with pytest.raises(InputError, match=r"needs train\.start"):
        PosteriorDistillation().examples(recipe(), [])


# What methods share -----------------------------------------------------------------------------


def test_answers_need_answers(tmp_path):
    path = tmp_path / "bare.jsonl"
    path.write_text('{"instruction": "<x>"}\n')
    with pytest.raises(InputError, match=r"bare\.jsonl.*answer.*a safe example"):
        answers("safe", [Source(source=str(path))])
    assert answers("safe", []) == []


def test_instructions_without_an_answer_are_left_out_and_counted(tmp_path, caplog):
    path = tmp_path / "some.jsonl"
    rows = [{"instruction": "<x>", "answer": "<a>"}, {"instruction": "<y>", "answer": None}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (made,) = answers("helpful", [Source(source=str(path))])
    assert (made.kind, made.completion) == ("helpful", "<a>")
    assert f"{path}: left out 1 of 2 rows: no answer" in caplog.text
    path.write_text("".join(json.dumps(row | {"answer": ""}) + "\n" for row in rows))
    with pytest.raises(InputError, match="none of 2 rows has answer .*, which a safe example"):
        answers("safe", [Source(source=str(path))])


def test_a_safe_answer_is_paired_though_its_prompt_was_copied(tmp_path):
    path = tmp_path / "safe.csv"
    path.write_bytes(b'prompt,answer\r\n"<a\r\nquestion> ",<a safe answer>\r\n')
    train = {"method": "dpo", "mix": {"helpful": 0}, "safe": [str(path)]}
    data = Recipe.model_validate({"train": train})
    mistake = analysis().model_copy(update={"instruction": "<a\nquestion>"})
    (pair,) = pairs(data, [mistake], "dpo")
    assert (pair.completion, pair.rejected) == ("<a safe answer>", "<a response>")
    assert len(ChainOfHindsight().examples(data, [mistake])) == 2


def test_pairs_that_lack_a_side_are_left_out_and_counted(tmp_path, data, caplog):
    path = tmp_path / "pairs.jsonl"
    pair = {"instruction": "<x>", "answer": "<good>", "response": "<bad>"}
    rows = [pair, pair | {"answer": None}, {"instruction": "<y>", "answer": "<z>"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = {"method": "dpo", "pairs": [str(path)], "safe": [str(data)], "helpful": [str(data)]}
    values = Recipe.model_validate({"train": {"mix": {"helpful": 0}} | train})
    (made,) = pairs(values, [], "dpo")
    assert (made.completion, made.rejected) == ("<good>", "<bad>")
    assert "left out 1 of 3 rows: no answer" in caplog.text
    assert "left out 1 of 2 rows: no response" in caplog.text


def test_a_share_is_chosen_by_content_and_not_by_order():
    made = [example("helpful", f"<x{n}>", "<a>", []) for n in range(20)]
    assert share(made, 5) == share(made[::-1], 5)
    assert [len(share(made, wanted)) for wanted in (0, 2.6, 20, 99)] == [0, 3, 20, 20]
    assert share(made, 5) == share(made, 6)[:5], "more is the same and some"


# Plugins ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "names"),
    [
        ("methods", {"mistake_analysis", "sft"}),
        ("judges", {"llm", "probe"}),
        ("engines", {"local", "endpoint", "ray", "vllm"}),
    ],
)
def test_all_that_is_named_can_be_loaded(group, names):
    assert names <= set(installed(group))
    for name in installed(group):
        assert callable(plugin(group, name))


@pytest.mark.parametrize(("name", "module"), [("ray", "cluster"), ("vllm", "vllm")])
def test_an_engine_says_which_optional_library_it_needs(name, module, monkeypatch):
    monkeypatch.setattr(f"setbacks.engines.{module}.find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"engine: {name} needs {name}"):
        plugin("engines", name).check(None)


@pytest.mark.parametrize("name", sorted(installed("methods")))
def test_every_kind_of_example_has_its_sources(name, data, recipe):
    """A model card names what a model was trained on."""
    given = {"method": name, "safe": [str(data)], "helpful": [str(data)], "start": "/adapter"}
    values = Recipe.model_validate(recipe().model_dump() | {"train": given})
    method = open_method(values)
    prepared = {
        "critique_revise": [
            Revision(id="1", analysis_id="a", instruction="<x>", response="<y>", text="<z>",
                     passed=True, model="m")
        ],
        "posterior_distillation": [
            Choice(id="1", instruction="<x>", drafts=["<y>"], p_harmful=[0.1], model="m")
        ],
        "mistake_distillation": [
            Correction(id="1", analysis_id="a", instruction="<x>", response="<y>", text="<z>",
                       answer="<z>", outcome="kept", sample=0, model="m")
        ],
    }  # fmt: skip
    made = method.examples(values, prepared.get(name, joinable(recipe)))
    sources = method.sources(values)
    assert made and {example.kind for example in made} <= sources.keys()
    assert all(sources[example.kind] for example in made)


def test_a_revision_names_the_analysis_that_it_was_made_by(tiny_recipe, tmp_path):
    with RunFolder(tmp_path / "run", tiny_recipe(6)) as folder, Session(folder) as run:
        analyses = {one.id: one for one in carry_out(folder, "analyze")}
        revisions = CritiqueRevise().prepare(run, list(analyses.values()))
    assert len(revisions) == 6
    for revision in revisions:
        assert analyses[revision.analysis_id].response == revision.response


def test_every_method_has_the_name_by_which_it_is_found():
    for name in installed("methods"):
        assert plugin("methods", name).name == name


def test_an_unknown_name_is_told_with_the_nearest():
    with pytest.raises(InputError, match=r'unknown method "mistake_analisis".*Did you mean'):
        plugin("methods", "mistake_analisis")


def test_anothers_plugin_is_found(fake_engine):
    assert plugin("engines", "rules") is fake_engine.Rules
