"""Train and test never share a prompt, whatever reads the training data."""

import json

import pytest
import yaml

from setbacks import pipeline
from setbacks.data.source import Source
from setbacks.data.sources import load
from setbacks.errors import InputError
from setbacks.loop import rounds
from setbacks.recipe import Recipe
from setbacks.records import Example
from setbacks.runs.decontamination import Decontamination, LeftOut
from setbacks.runs.folder import Run, RunFolder

LONG = "Which kind of vinegar is the best one for descaling a kettle?"


@pytest.fixture
def source(tmp_path):
    """Write a file of prompts, each with an answer and a response; return its path."""

    def write(name, *prompts):
        rows = [
            {"instruction": text, "answer": f"<answer to {text}>", "response": f"<bad {text}>"}
            for text in prompts
        ]
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def recipe_of(learned, *tests, **more):
    suites = [
        {"name": f"s{number}", "kind": "safe", "sources": [test]}
        for number, test in enumerate(tests, 1)
    ]
    sources = {"instructions": [learned], "analyze": {"contrast": [learned]}}
    helpful = {"train": {"helpful": [learned], "safe": [learned]}, "respond": {"suites": suites}}
    return Recipe.model_validate(sources | helpful | more)


def prompts(sources):
    return [row.text for source in sources for row in load(source)]


def test_prompts_that_are_held_out_are_left_out_as_those_of_suites(source):
    test, later = source("a.jsonl", "An otter?"), source("later.jsonl", "A heron?")
    train = source("train.jsonl", "An otter?", "A badger?", "a heron")
    work = Decontamination(recipe_of(train, test, held_out=[later]))
    assert prompts(work.recipe.instructions) == ["A badger?"]
    assert {row.instruction: row.suite for row in work.left_out} == {
        "An otter?": "s1",
        "a heron": "held_out",
    }


def test_no_section_of_training_data_keeps_a_prompt_of_a_suite(source):
    tests = source("a.jsonl", "An otter?"), source("b.jsonl", LONG, "Why?")
    train = source("train.jsonl", "an  OTTER", "A badger?", f"Hello. {LONG} Thanks.")
    pairs = {"method": "dpo", "pairs": [train], "safe": [train], "helpful": [train]}
    taken = {"source": "existing", "existing": [train]}
    recipe = recipe_of(train, *tests, train=pairs, induce=taken)
    work = Decontamination(recipe)
    clean = work.recipe
    sections = [clean.instructions, clean.induce.existing, clean.analyze.contrast]
    for sources in (*sections, clean.train.helpful, clean.train.safe, clean.train.pairs):
        assert prompts(sources) == ["A badger?"]
    rows = {row.instruction: row for row in work.left_out}
    assert len(work.left_out) == len(rows) == 2
    assert (rows["an  OTTER"].suite, rows["an  OTTER"].exact) == ("s1", True)
    near = rows[f"Hello. {LONG} Thanks."]
    assert (near.suite, near.exact, near.share, near.like) == ("s2", False, 1.0, LONG)
    assert prompts(recipe.instructions) == prompts([train]), "the recipe itself is as it was"
    assert clean.model_dump() == recipe.model_dump()
    assert prompts(clean.respond.suites[1].sources) == [LONG, "Why?"]


@pytest.mark.parametrize(
    "more", [{"decontaminate": None}, {"evaluate": [{"name": "m", "model": "m/m"}]}]
)
def test_nothing_is_left_out_if_it_is_off_or_nothing_is_trained(source, more):
    train = source("train.jsonl", "An otter?", "A badger?")
    work = Decontamination(recipe_of(train, source("test.jsonl", "An otter?"), **more))
    assert prompts(work.recipe.instructions) == ["An otter?", "A badger?"]
    assert work.left_out == []


def test_data_held_out_is_not_learned_either(source):
    train = source("train.jsonl", "An otter?", "A badger?", "A mole?")
    tests, final = source("test.jsonl", "An otter?"), source("final.jsonl", "A badger?")
    work = Decontamination(recipe_of(train, tests, held_out=[final]))
    assert prompts(work.recipe.instructions) == ["A mole?"]
    assert {row.instruction: row.suite for row in work.left_out} == {
        "An otter?": "s1",
        "A badger?": "held_out",
    }


def test_a_round_learns_neither_from_validation_nor_from_test_prompts(source):
    train = source("train.jsonl", "An otter?", "A badger?", "A mole?")
    validation = [{"name": "v", "kind": "safe", "sources": [source("v.jsonl", "A badger?")]}]
    loop = recipe_of(train, source("t.jsonl", "An otter?"), loop={"validation": validation})
    first = rounds._recipe_of(loop, 1, None, (), ())
    assert prompts(Decontamination(first).recipe.instructions) == ["A mole?"]


def test_the_threshold_decides_what_is_nearly_the_same(source):
    train = source("train.jsonl", "a b c d e f g h", "x")
    test = source("test.jsonl", "a b c d e f g i")  # 5 of 7 word 3-grams in common
    for threshold, kept in ((0.71, ["x"]), (0.72, ["a b c d e f g h", "x"])):
        work = Decontamination(recipe_of(train, test, decontaminate=threshold))
        assert prompts(work.recipe.instructions) == kept


def test_a_source_without_other_prompts_is_an_error(source):
    same = source("same.jsonl", "An otter?", "A badger?")
    recipe = recipe_of(same, same)
    with pytest.raises(InputError, match=r"each of its 2 prompts is also in a suite \(s1\); use"):
        prompts(Decontamination(recipe).recipe.instructions)
    with pytest.raises(InputError, match="decontaminate=null"):
        pipeline.check(recipe)


def sft(tiny_recipe, source, **more):
    """A recipe that has the tiny model learn safe and helpful answers."""
    data = [source("train.jsonl", "<q 1>", "A badger?", "A mole?", LONG)]
    train = {"method": "sft", "steps": 2, "lora": {"r": 2}, "safe": data, "helpful": data}
    return tiny_recipe(8, train=train, **more)


def files(folder):
    """The bytes of a run's records and of its adapter."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".jsonl", ".safetensors") and path.name != "costs.jsonl"
    }


def test_a_run_does_not_learn_test_prompts_and_its_report_counts_them(
    tiny_recipe, source, tmp_path
):
    recipe = sft(tiny_recipe, source, decontaminate=0.8)
    folder = tmp_path / "run"
    made = pipeline.run(recipe, folder)
    run = Run(folder)
    learned = {example.instruction for example in run.records("training.jsonl", Example)}
    assert learned == {"A badger?", "A mole?", LONG}
    (row,) = run.records("left_out.jsonl", LeftOut)
    assert (row.instruction, row.suite, row.exact) == ("<q 1>", "harmful", True)
    source_of = recipe.train.safe[0].source
    assert made.metrics["data"]["left_out"] == {source_of: {"harmful": {"exact": 1, "near": 0}}}
    assert made.metrics["data"]["overlap"][0]["seen"] == 0
    (text,) = [f["text"] for f in made.metrics["findings"] if "left out" in f["text"]]
    assert f"{source_of}, in the suite harmful: 1 the same, 0 nearly the same" in text
    assert any("left out 1 of 4 rows whose prompts are also in a suite" in n for n in run.notices())
    before = files(folder)
    pipeline.run(recipe, folder)
    assert files(folder) == before


def without_new_fields(folder):
    """Make a run folder one of an earlier version, whose recipe lacks the field."""
    old = yaml.safe_load((folder / "recipe.yaml").read_text())
    del old["decontaminate"]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(old, sort_keys=False))


def test_a_run_of_an_earlier_version_tests_on_the_built_in_prompts_that_it_had(tmp_path):
    """Two sets have grown since: with other rows, its records would not be those planned."""
    suites = [
        {"name": name, "kind": kind, "sources": [{"source": f"builtin:{name}", "split": "test"}]}
        for name, kind in (("redteam", "harmful"), ("hijacking", "hijacking"))
    ]
    folder, today = tmp_path / "run", Recipe(respond={"suites": suites})
    with RunFolder(folder, today, stages=pipeline.STAGES):
        pass
    assert len(prompts(Run(folder).recipe.respond.suites[0].sources)) == 252
    without_new_fields(folder)
    for recipe in (None, today):
        with RunFolder(folder, recipe, stages=pipeline.STAGES) as run:
            counts = [len(prompts(suite.sources)) for suite in run.recipe.respond.suites]
        assert counts == [84, 40]
    suites[0]["sources"][0] |= {"shuffle": 0, "limit": 80}
    changed = Recipe(respond={"suites": suites})
    with RunFolder(folder, changed, redo="respond", stages=pipeline.STAGES):
        pass
    with RunFolder(folder, changed, stages=pipeline.STAGES) as run:
        assert run.recipe.decontaminate is None, "it is still one of an earlier version"
        first = {row.text for row in load(Source(source="builtin:redteam", revision="first"))}
        assert {*prompts(run.recipe.respond.suites[0].sources)} <= first
    with RunFolder(folder, changed, redo="induce", stages=pipeline.STAGES) as run:
        assert run.recipe == Run(folder).recipe == changed


def test_a_run_that_learns_test_prompts_is_not_one_of_an_earlier_version(tmp_path):
    with RunFolder(tmp_path, Recipe(decontaminate=None)):
        pass
    assert Run(tmp_path).recipe == Recipe(decontaminate=None)
    with (
        pytest.raises(InputError, match=r"decontaminate: null -> 0\.8.*--from induce"),
        RunFolder(tmp_path, Recipe(), stages=pipeline.STAGES),
    ):
        pass


def test_a_run_of_an_earlier_version_keeps_what_it_learned(tiny_recipe, source, tmp_path):
    """Its recipe lacks the field: nothing is left out, unless it starts from the beginning."""
    folder, recipe = tmp_path / "run", sft(tiny_recipe, source, decontaminate=None)
    pipeline.run_until(recipe, folder, "train")
    without_new_fields(folder)
    before = files(folder)
    assert Run(folder).recipe.decontaminate is None
    today = recipe.model_copy(update={"decontaminate": 0.8})  # the default
    pipeline.run_until(today, folder, "train")
    assert files(folder) == before
    with (
        pytest.raises(InputError, match=r"decontaminate: null -> 0\.5.*--from induce"),
        RunFolder(folder, today.model_copy(update={"decontaminate": 0.5}), stages=pipeline.STAGES),
    ):
        pass
    pipeline.run_until(today, folder, "train", redo="train")
    assert files(folder)["training.jsonl"] == before["training.jsonl"]
    pipeline.run_until(today, folder, "train", redo="induce")
    assert len(Run(folder).records("left_out.jsonl", LeftOut)) == 1


@pytest.mark.parametrize(
    ("section", "stage"),
    [("instructions", "induce"), ("analyze", "analyze"), ("train", "train"), ("none", "respond")],
)
def test_suites_that_keep_other_prompts_out_of_training_redo_what_reads_them(
    source, tmp_path, section, stage
):
    """Otherwise records would be planned that the run does not have."""
    other, train = source("other.jsonl", "A mole?"), source("train.jsonl", "A badger?", "A hare?")
    learned = {
        "instructions": [other],
        "analyze": {"contrast": [other]},
        "train": {"helpful": [other], "safe": [other]},
    }
    given = {"instructions": [train], "analyze": {"contrast": [train]}, "train": {"safe": [train]}}
    learned |= {key: value for key, value in given.items() if key == section}
    before = recipe_of(train, source("a.jsonl", "An otter?"), **learned)
    after = recipe_of(train, source("b.jsonl", "An otter?", "a badger"), **learned)
    with RunFolder(tmp_path / "run", before, stages=pipeline.STAGES) as run:
        run.write_text("metrics.json", "{}")
    files = {path: path.read_bytes() for path in run.path.iterdir()}
    if stage != "respond":
        with (
            pytest.raises(InputError, match=f"--from {stage}"),
            RunFolder(run.path, after, redo="respond", stages=pipeline.STAGES),
        ):
            pass
        assert {path: path.read_bytes() for path in run.path.iterdir()} == files
    with RunFolder(run.path, after, redo=stage, stages=pipeline.STAGES) as run:
        assert run.recipe == after.rebased(tmp_path)
