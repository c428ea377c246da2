"""The arms of a run: what is recorded of them, and what an older folder's are taken for."""

import json
from pathlib import Path

import pytest

from setbacks.errors import InputError
from setbacks.methods import Method
from setbacks.methods.sft import SFT as SFTMethod
from setbacks.recipe import Recipe
from setbacks.records import Arm
from setbacks.runs.arms import planned_arms, read_arms, trained_arm, write_arms

OLD = Path(__file__).parent / "data/run-0.1.0"
SFT = Recipe(train={"method": "sft"}, respond={"guidance": True, "posterior": {}})
# Names that look like ours; each is of a model, whatever it is called.
LURES = ["x-guided", "vanilla-2", "y-posterior", "untrained", "vanilla"]


def answered(folder, *names):
    (folder / "responses").mkdir()
    for name in names:
        (folder / "responses" / f"{name}.jsonl").touch()


def evaluation(*names, **respond):
    return Recipe(evaluate=[{"name": name, "model": "embedded"} for name in names], respond=respond)


def test_a_run_has_its_model_before_and_after_in_every_way():
    assert [(arm.name, arm.label, arm.trained) for arm in planned_arms(SFT)] == [
        ("vanilla", "untrained", False),
        ("vanilla-guided", "untrained · guided", False),
        ("vanilla-posterior", "untrained · posterior", False),
        ("sft", "SFT", True),
        ("sft-guided", "SFT · guided", True),
        ("sft-posterior", "SFT · posterior", True),
    ]
    assert [arm.label for arm in planned_arms(Recipe())] == ["untrained", "mistake distillation"]


def test_methods_are_called_what_people_call_them_in_comparisons_too():
    titles = {
        "sft": "SFT",
        "dpo": "DPO",
        "rlhf": "RLHF",
        "mistake_analysis_sft": "mistake analysis + SFT",
        "critique_revise": "critique revise",
        "filtered_8": "filtered 8",  # a variant
    }
    for name, title in titles.items():
        arm = trained_arm(name, "guided")
        assert (arm.name, arm.label) == (f"{name}-guided", f"{title} · guided")


def test_a_method_that_extends_another_does_not_go_by_its_title():
    class Longer(SFTMethod):
        name = "longer_sft"

    class Named(SFTMethod):
        name, title = "named_sft", "SFT, named"

    class Unnamed(SFTMethod):
        pass

    class Base(Method):
        pass

    assert [c.title for c in (Longer, Named, Unnamed)] == ["longer sft", "SFT, named", "SFT"]
    assert not hasattr(Base, "title")


def test_an_evaluation_may_call_an_arm_anything():
    arms = planned_arms(evaluation(*LURES))
    assert [arm.name for arm in arms] == [arm.label for arm in arms] == LURES
    assert {(arm.trained, arm.way) for arm in arms} == {(False, "unguided")}
    assert Arm.untrained() not in arms


def test_two_arms_of_one_name_are_refused():
    with pytest.raises(InputError, match='two arms are called "x-guided"'):
        planned_arms(evaluation("x", "x-guided", guidance=True))
    assert len(planned_arms(evaluation("x", "x-guided"))) == 2


def test_answers_that_are_given_were_given_in_one_way():
    given = {"name": "old", "answers": ["old.jsonl"]}
    recipe = Recipe(
        evaluate=[given, {"name": "new", "model": "embedded"}], respond={"guidance": True}
    )
    assert [arm.name for arm in planned_arms(recipe)] == ["old", "new", "new-guided"]


def test_what_is_written_is_read_in_the_same_order(tmp_path):
    arms = planned_arms(evaluation(*LURES))
    answered(tmp_path, *reversed(LURES))
    write_arms(tmp_path, arms)
    other = evaluation("other")
    assert read_arms(tmp_path, other) == arms, "the record counts, not the recipe"
    assert json.loads((tmp_path / "arms.json").read_text())[0] == {
        "name": "x-guided", "model": "x-guided", "trained": False, "way": "unguided",
    }  # fmt: skip


def test_only_arms_with_answers_are_read(tmp_path):
    assert read_arms(tmp_path, SFT) == []
    write_arms(tmp_path, planned_arms(SFT))
    answered(tmp_path, "sft", "vanilla")
    assert [arm.name for arm in read_arms(tmp_path, SFT)] == ["vanilla", "sft"]


def test_a_file_that_somebody_added_is_an_arm_too(tmp_path):
    write_arms(tmp_path, planned_arms(SFT))
    answered(tmp_path, "theirs-guided", "vanilla")
    assert read_arms(tmp_path, SFT) == [Arm.untrained(), Arm("theirs-guided", "theirs-guided")]


def test_the_same_record_is_not_written_again(tmp_path):
    write_arms(tmp_path, planned_arms(SFT))
    before = (tmp_path / "arms.json").stat().st_ino
    write_arms(tmp_path, planned_arms(SFT))
    assert (tmp_path / "arms.json").stat().st_ino == before
    write_arms(tmp_path, planned_arms(Recipe()))
    answered(tmp_path, "mistake_distillation")
    assert [arm.model for arm in read_arms(tmp_path, SFT)] == ["mistake distillation"]


def test_a_folder_without_the_record_has_the_arms_of_its_recipe():
    assert not (OLD / "arms.json").exists()
    recipe = Recipe.load(OLD / "recipe.yaml")
    assert read_arms(OLD, recipe) == [
        Arm("vanilla", "untrained"),
        Arm("vanilla-guided", "untrained", way="guided"),
        Arm("mistake_analysis", "mistake analysis", trained=True),
        Arm("mistake_analysis-guided", "mistake analysis", trained=True, way="guided"),
    ]


def test_an_old_folder_is_read_without_its_method(tmp_path):
    """The package of the method may no longer be installed."""
    answered(tmp_path, "vanilla", "theirs")
    recipe = Recipe(train={"method": "theirs"})
    assert read_arms(tmp_path, recipe) == [Arm.untrained(), Arm.of_method("theirs")]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "its start"),
        ('[{"name": "a"}]', "0.model"),
        ('[{"name": "a", "model": "a", "way": "upside down"}]', "0.way"),
    ],
)
def test_a_damaged_record_is_told(tmp_path, text, where):
    answered(tmp_path, "a")
    (tmp_path / "arms.json").write_text(text)
    with pytest.raises(InputError, match=f"damaged at {where}; delete it, and `setbacks respond"):
        read_arms(tmp_path, SFT)
