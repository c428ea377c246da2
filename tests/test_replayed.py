"""Further training: the model with its adapter makes the mistakes; old examples are replayed."""

import pytest

from setbacks.errors import InputError
from setbacks.pipeline import check
from setbacks.prompts import fill, prompts
from setbacks.recipe import Recipe, Respond
from setbacks.records import Example
from setbacks.runs.decontamination import Decontamination
from setbacks.runs.folder import Run, RunFolder
from setbacks.stages.analyze import analyze
from setbacks.stages.benign import with_own_answers
from setbacks.stages.induce import induce
from setbacks.stages.replayed import replayed
from setbacks.stages.respond import respond


def example(text, **more):
    prompt = [{"role": "user", "content": text}]
    fields = {"id": text, "kind": "safe", "prompt": prompt, "completion": "No.", "parents": []}
    return Example.model_validate(fields | more)


@pytest.fixture
def trained(tmp_path):
    """Makes the folder of a run that was trained on these texts."""

    def make(name, *texts, method="sft", **more):
        with RunFolder(tmp_path / name, Recipe(name=name, train={"method": method})) as run:
            run.journal("training.jsonl", Example).write([example(text, **more) for text in texts])
        return str(tmp_path / name)

    return make


def further(runs, share=0.5, **more):
    replay = {"runs": runs, "share": share}
    return Recipe.model_validate({"train": {"method": "sft", "replay": replay} | more})


def drawn_from(recipe, own):
    return replayed(recipe, own, Decontamination(recipe))


# The model before training ----------------------------------------------------------------------


def test_the_model_with_its_adapter_makes_everything_before_training(
    open_session, fake_engine, lora_of_tiny, data, tmp_path
):
    train = {"helpful": [str(data)], "safe": [str(data)], "helpful_from": "model"}
    run = open_session(adapter=str(lora_of_tiny), train=train)
    analyze(run, induce(run))
    with_own_answers(run)
    assert {adapter for *_, adapter in fake_engine.batches} == {lora_of_tiny}
    fake_engine.batches.clear()
    respond(run, tmp_path / "adapter")
    by_arm = [adapter for *_, adapter in fake_engine.batches]
    half = len(by_arm) // 2
    assert by_arm == [lora_of_tiny] * half + [tmp_path / "adapter"] * half


def test_another_analyst_does_not_get_the_adapter(
    open_session, fake_engine, fake_model, lora_of_tiny, data
):
    analysis = {"contrast": [str(data)], "analyst": fake_model("shouter")}
    run = open_session(adapter=str(lora_of_tiny), analyze=analysis)
    mistakes = induce(run)
    fake_engine.batches.clear()
    analyze(run, mistakes)
    assert {adapter for *_, adapter in fake_engine.batches} == {None}


def test_training_continues_the_adapter_unless_it_names_another(tmp_path):
    recipe = Recipe.parse({"adapter": "a", "train": {"start": "b"}}, "test").rebased(tmp_path)
    assert (recipe.current, recipe.start) == (tmp_path / "a", tmp_path / "b")
    recipe = Recipe.parse({"adapter": "a"}, "test").rebased(tmp_path)
    assert recipe.start == recipe.current == tmp_path / "a"
    assert Recipe().start is None


def test_an_adapter_that_is_missing_is_one_line(recipe, tmp_path):
    with pytest.raises(InputError, match="nothing: not an adapter"):
        check(recipe(adapter=str(tmp_path / "nothing")))


# Replay -----------------------------------------------------------------------------------------


def test_replay_draws_its_share_of_what_earlier_runs_learned_once(trained):
    old = trained("old", *"abcdefgh")
    newer = trained("newer", "a", "b", "i", "j")
    own = [example(text) for text in ("a", "k", "l", "m")]
    drawn = drawn_from(further([old, newer]), own)
    assert len(drawn) == 2
    assert not {"a", "k", "l", "m"} & {x.id for x in drawn}
    assert {x.replayed_from for x in drawn} <= {"old", "newer"}
    assert [x.id for x in drawn_from(further([newer, old]), own)] == [x.id for x in drawn]
    everything = drawn_from(further([old, newer], share=9), own[:2])
    assert sorted(x.id for x in everything) == list("bcdefghij")
    orders = {tuple(x.id for x in drawn_from(further([old], seed=s, share=9), own)) for s in (0, 1)}
    assert len(orders) == 2


def test_what_was_replayed_before_keeps_the_name_of_its_first_run(trained):
    second = trained("second", "a", replayed_from="first")
    (drawn,) = drawn_from(further([second], share=1), [example("b")])
    assert drawn.replayed_from == "first"


def test_runs_that_cannot_be_replayed_are_one_line(trained, tmp_path):
    with pytest.raises(InputError, match=r"train\.replay: .*raw has no training\.jsonl"):
        drawn_from(further([trained("raw")]), [])
    with pytest.raises(InputError, match="was trained by dpo, and its examples do not fit sft"):
        drawn_from(further([trained("pairs", "a", method="dpo")]), [])
    with pytest.raises(InputError, match="not a run folder"):
        drawn_from(further([str(tmp_path / "nothing")]), [])


def test_examples_whose_prompts_are_held_out_now_are_not_replayed(trained, tmp_path):
    hindsight = fill(prompts("en")["hindsight"], instruction="Where is the otter?")
    old = trained("old", "a", hindsight, "where is the BADGER", "b")
    tests = tmp_path / "tests.jsonl"
    tests.write_text('{"text": "Where is the otter?"}\n{"text": "Where is the badger?"}\n')
    suites = [{"name": "t", "kind": "safe", "sources": [str(tests)]}]
    recipe = further([old], share=9).model_copy(
        update={"respond": Respond.model_validate({"suites": suites})}
    )
    work = Decontamination(recipe)
    own = [example("c")]
    assert {x.id for x in replayed(recipe, own, work)} == {"a", "b"}
    assert {(row.source, row.instruction, row.exact) for row in work.left_out} == {
        (old, "Where is the otter?", True),
        (old, "where is the BADGER", True),
    }
    off = recipe.model_copy(update={"decontaminate": None})
    assert len(drawn_from(off, own)) == 4


def test_a_run_learns_what_it_replays_and_counts_it(tiny_recipe, trained, tmp_path):
    from setbacks.pipeline import run

    data = tiny_recipe(8).model_dump(mode="json")
    data["train"] |= {"method": "sft", "replay": {"runs": [trained("old", *"abcd")], "share": 0.2}}
    report = run(Recipe.model_validate(data), tmp_path / "run")
    learned = Run(tmp_path / "run").records("training.jsonl", Example)
    old = [x for x in learned if x.replayed_from]
    assert len(old) == round(0.2 * (len(learned) - len(old))) > 0
    counts = report.results.data.examples
    assert sum(row.replayed or 0 for row in counts.values()) == len(old)
    assert "from earlier runs)" in report.path.read_text()
