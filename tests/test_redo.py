"""Redoing the training keeps what the model before training answered, if that is still the same."""

import json
from pathlib import Path

import pytest

from setbacks.pipeline import open_run
from setbacks.recipe import Recipe
from setbacks.records import Verdict
from setbacks.runs.session import Session
from setbacks.runs.weights import NAME
from setbacks.stages.judge import judge
from setbacks.stages.respond import respond
from setbacks.studies.variants import variant

UNTRAINED = ("vanilla", "vanilla-guided")


@pytest.fixture
def folder(recipe_data, fake_engine, fake_model, tmp_path):
    """A run that has answered and judged, and whose answers of all arms people have labeled."""
    rater = {"judge": "llm", "engine": fake_model("rater")}
    recipe = Recipe.model_validate(recipe_data(judges=["refusal", rater]))
    with open_run(tmp_path / "run", recipe) as opened, Session(opened) as run:
        (opened.path / "adapter").mkdir()  # what is trained is not looked at here
        responses = respond(run, opened.path / "adapter")
        judge(run, responses)
        for arm, rows in responses.items():
            labels = [Verdict(id=r.id, response_id=r.id, judge="human") for r in rows]
            opened.write_text(
                f"verdicts/{arm}.human.jsonl",
                "".join(label.model_dump_json() + "\n" for label in labels),
            )
    return tmp_path / "run"


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for name in ("responses", "verdicts")
        for path in folder.glob(f"{name}/*")
    }


def of_untrained(*names):
    return {
        f"responses/{arm}.jsonl" if name == "answers" else f"verdicts/{arm}.{name}.jsonl"
        for arm in UNTRAINED
        for name in names
    }


ALL = of_untrained("answers", "refusal", "llm", "human")


def redo(folder, stage, changes):
    """Redo a stage; return what stayed, after checking that all else is in `superseded/`."""
    before, recipe = files(folder), Recipe.load(folder / "recipe.yaml", of_run=True)
    changed = variant(recipe, "run", changes).recipe.model_copy(update={"name": recipe.name})
    with open_run(folder, changed, redo=stage):
        stayed, moved = files(folder), files(folder / "superseded" / "001")
    assert stayed | moved == before and not stayed.keys() & moved.keys()
    return stayed.keys()


@pytest.mark.parametrize(
    ("stage", "changes", "stay"),
    [
        ("train", {}, ALL),
        ("introspect", {}, ALL),
        ("train", {"train.epochs": 9}, ALL),
        ("train", {"train.epochs": 9, "judges": ["refusal"]}, of_untrained("answers", "human")),
        ("train", {"train.epochs": 9, "respond.sampling.max_new_tokens": 9}, set()),
        ("train", {"train.epochs": 9, "words": {"en": {"guided": "{instruction} <hint>"}}}, set()),
        ("analyze", {}, set()),
        ("respond", {}, set()),
    ],
)
def test_the_untrained_model_answers_again_only_if_something_has_changed(
    folder, stage, changes, stay
):
    assert redo(folder, stage, changes) == stay


def test_answers_that_stay_are_not_given_again(folder, fake_engine):
    before = files(folder)
    redo(folder, "train", {})
    fake_engine.batches.clear()
    with open_run(folder) as opened, Session(opened) as run:
        (folder / "adapter").mkdir()
        responses = respond(run, folder / "adapter")
        assert {adapter for *_, adapter in fake_engine.batches} == {folder / "adapter"}
        fake_engine.batches.clear()
        judge(run, responses)
    rated = sum(len(requests) for requests, *_ in fake_engine.batches)
    trained = [rows for arm, rows in responses.items() if arm not in UNTRAINED]
    assert rated == sum(map(len, trained)), "the rater is asked about the trained arms alone"
    labels = {name for name in before if name.endswith(".human.jsonl")} - ALL
    assert files(folder) == {name: before[name] for name in before.keys() - labels}


@pytest.mark.parametrize("field", ["instruction", "category", "answer"])
def test_prompts_that_have_changed_are_asked_again(folder, field):
    """A category is in no id, and would differ between the arms."""
    (source,) = Recipe.load(folder / "recipe.yaml", of_run=True).respond.suites[0].sources
    path = Path(source.source)
    lines = path.read_text().splitlines()
    row = json.loads(lines[0]) | {field: f"<another {field}>"}
    path.write_text("\n".join([json.dumps(row), *lines[1:]]) + "\n")
    assert redo(folder, "train", {}) == set()


def test_another_model_answers_again(folder, tmp_path):
    (tmp_path / "models" / "talker" / "config.json").write_text('{"other": 1}')
    assert redo(folder, "train", {}) == set()


def test_verdicts_of_other_weights_are_given_again(folder, tmp_path):
    (tmp_path / "models" / "rater" / "config.json").write_text('{"other": 1}')
    assert redo(folder, "train", {}) == of_untrained("answers", "human")


def test_verdicts_of_another_version_are_given_again(folder):
    path = folder / "verdicts" / "vanilla.refusal.jsonl"
    rows = [json.loads(line) | {"version": 99} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert redo(folder, "train", {}) == of_untrained("answers", "human")


def test_what_is_damaged_moves_aside(folder):
    (folder / "responses" / "vanilla.jsonl").write_text("{\n{}\n")
    stay = {name for name in ALL if name.partition("/")[2].startswith("vanilla-guided")}
    assert redo(folder, "train", {}) == stay


def test_a_note_of_weights_stays_with_the_answers(folder):
    noted = json.loads((folder / NAME).read_text())
    redo(folder, "train", {})
    assert json.loads((folder / NAME).read_text()) == noted
    assert {f"responses/{arm}.jsonl" for arm in UNTRAINED} <= noted.keys()


def test_redoing_what_is_not_there_yet_moves_nothing(folder):
    redo(folder, "train", {})
    with open_run(folder, redo="train"):
        assert not (folder / "superseded" / "002").exists()
