"""The transfer study: training on categories of harm, and what it says of the others."""

import json

import numpy as np
import pytest
from conftest import analysis_of

from setbacks.errors import InputError
from setbacks.measure.statistics import Difference
from setbacks.recipe import Recipe
from setbacks.records import Analysis, Arm, Example
from setbacks.report.plots import heatmap
from setbacks.runs.folder import Run
from setbacks.stages.train import of_categories, train
from setbacks.studies import carry_out
from setbacks.studies.scores import Scores
from setbacks.studies.transfer import (
    Column,
    Transfer,
    _arm,
    _describe_gap,
    _equal_number,
    _groups,
    _overrides,
    own_and_others,
)
from setbacks.studies.variants import variant


@pytest.fixture
def sorted_data(tmp_path):
    """A file of `each` instructions of every category named."""

    def make(each, *names):
        path = tmp_path / f"{each}-{len(names)}.jsonl"
        rows = [
            {"text": f"<question {n} on {name}>", "category": name}
            for name in names
            for n in range(each)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return make


def asking(recipe, instructions, prompts, **more):
    suites = [{"name": "h", "kind": "harmful", "sources": [prompts]}]
    return recipe(instructions=[instructions], respond={"suites": suites}, **more)


def groups(**named):
    return {"study": {"groups": named}}


def test_what_is_too_little_is_told_in_one_line(recipe, sorted_data, tmp_path, data):
    many, few = sorted_data(9, "theft", "fraud"), sorted_data(3, "theft", "fraud")
    cases = [
        (str(data), many, {}, "0 categories, and this study needs at least 2"),
        (many, few, {}, "3 harmful prompts of fraud .* at least 8"),
        (many, many, {"study": {"groups": {"a": ["thft"]}}}, 'Did you mean "theft"'),
        (many, many, {"study": {"groups": {"a": ["theft"]}}}, "1 groups of categories"),
        (many, many, groups(a=["theft"], b=["fraud", "theft"]), '"theft" is there twice'),
        (many, many, groups(**{"a b": ["theft"], "a-b": ["fraud"]}), '"a b" and "a-b" would'),
        (many, many, groups(a=["theft"], all_of_them=["fraud"]), '"all_of_them" and "all of'),
        (many, many, {"study": {"to_language": "en"}}, "is the recipe's own"),
        (many, many, {"train": {"method": "sft"}}, "sft does not choose mistakes by their cat"),
        (many, many, {"train": {"method": "mistake_analysis_sft"}}, "_sft needs safe answers"),
    ]
    for number, (instructions, prompts, more, message) in enumerate(cases):
        with pytest.raises(InputError, match=message) as error:
            folder = tmp_path / f"t{number}"
            carry_out("transfer", asking(recipe, instructions, prompts, **more), folder)
        assert "\n" not in str(error.value) and not folder.exists()


def test_too_few_analyses_of_a_group_are_told(recipe, sorted_data, tmp_path):
    few, many = sorted_data(3, "theft", "fraud"), sorted_data(9, "theft", "fraud")
    with pytest.raises(InputError, match="analyzed mistakes of fraud .*needs at least 8"):
        carry_out("transfer", asking(recipe, few, many), tmp_path / "t")


def test_categories_are_those_of_the_mistakes_in_any_script(recipe, sorted_data):
    """The instructions are not asked where all mistakes are of the data."""
    named = sorted_data(9, "theft", "盗窃", "欺诈")
    existing = {"source": "existing", "existing": [named]}
    taken = asking(recipe, sorted_data(1, "other"), named, induce=existing)
    assert list(_groups(taken, Transfer.Options())) == ["theft", "欺诈", "盗窃"]
    assert len({_arm(name).name for name in _groups(taken, Transfer.Options())}) == 3


@pytest.mark.parametrize(("most", "number"), [(None, 8), (5, 5), (100, 8)])
@pytest.mark.parametrize("method", ["mistake_distillation", "mistake_analysis"])
def test_each_group_gives_as_many_mistakes_as_the_smallest_and_the_recipe_allow(
    recipe, open_session, most, number, method
):
    run = open_session()
    rows = [
        analysis_of(100 * place + i, "<t>").model_copy(update={"category": name})
        for place, (name, count) in enumerate((("theft", 8), ("fraud", 12)))
        for i in range(count)
    ]
    run.journal("analyses.jsonl", Analysis).write(rows)
    made = recipe(train={"method": method, "most_analyses": most})
    two = {name: [name] for name in ("theft", "fraud")}
    assert _equal_number(made, run.path, two) == number


def test_no_model_learns_examples_of_earlier_runs_or_answers_by_drafts(recipe):
    made = recipe(
        train={"replay": {"runs": ["earlier"]}, "safe": ["s.jsonl"]},
        respond={"posterior": {"rank_by": "states"}},
    )
    changed = variant(made, "a", _overrides(made, Transfer.Options())).recipe
    assert changed.train.safe == changed.train.replay.runs == []
    assert changed.respond.posterior is None


def of_category(category, harmful=True):
    """The analysis of a response to an instruction of a category."""
    return Analysis(
        id=category, response_id=category, instruction="<x>",
        response=f"<a response on {category}>", harmful=harmful, text=f"<{category}>",
        candidate=0, checks={}, score=1.0, category=category, language="en", analyst="m",
    )  # fmt: skip


def test_a_category_that_no_mistake_is_of_is_noticed(open_session):
    run = open_session()

    def chosen(*only):
        analyses = [of_category("theft"), of_category("fraud"), of_category("games", False)]
        return [one.category for one in of_categories(analyses, only)]

    assert chosen("theft") == ["theft", "games"]
    assert Run(run.path).notices() == []
    assert chosen("theft", "frauds") == ["theft", "games"]
    (line,) = Run(run.path).notices()
    assert "no mistake is of frauds" in line and 'Did you mean "fraud"' in line
    assert line.endswith("There are: fraud, theft")


def test_training_is_on_the_categories_named_and_on_all_benign_responses(open_session, monkeypatch):
    from setbacks.training import supervised

    run = open_session(train={"categories": ["theft"], "mix": {"helpful": 0}})
    monkeypatch.setattr(supervised, "fit", lambda run, examples, adapter: 0)
    rows = [of_category("theft"), of_category("fraud"), of_category("games", harmful=False)]
    train(run, rows)
    learned = {e.completion for e in run.records("training.jsonl", Example)}
    assert learned == {"<theft>", "<games>"}


A, B = Arm.of_method("on_a"), Arm.of_method("on_b")


def outcomes(*values):
    """What the untrained model, and those trained on a and on b, reached on each prompt."""
    return {
        arm: Scores(
            {("h", str(i)): float(v) for i, v in enumerate(values)}, [float(np.mean(values))]
        )
        for arm, values in zip((Arm.untrained(), A, B), values, strict=True)
    }


def test_own_and_others_are_told_apart_prompt_by_prompt():
    # The first 20 prompts are of a, the others of b; each model is right on its own alone.
    first = np.arange(40) < 20
    scores = outcomes(first & False, first, ~first)
    columns = {
        name: Column("harmless_rate", frozenset(("h", str(i)) for i in range(*ends)))
        for name, ends in (("a", (0, 20)), ("b", (20, 40)))
    }
    arms = {"a": A, "b": B}
    found = own_and_others(scores, arms, columns)
    assert found["own"].value == 1 and found["others"].value == 0 and found["gap"].n == 40
    assert "holds more for the categories" in _describe_gap(found, "")
    draw = np.random.default_rng(0).random((2, 40)) < 0.5
    level = own_and_others(outcomes(first, *draw), arms, columns)
    assert "not significant" in _describe_gap(level, "")


@pytest.mark.parametrize(
    ("own", "others", "gap", "p", "verdict"),
    [
        (0.3, 0.1, 0.2, 0.001, "holds more for the categories that it was learned from"),
        (-0.1, -0.3, 0.2, 0.001, "cost the others more than the categories that it was on"),
        (0.1, 0.3, -0.2, 0.001, "it helps others more than its own"),
        (-0.3, -0.1, -0.2, 0.001, "cost the categories that it was on more than the others"),
        (0.3, 0.1, 0.2, 0.5, "the difference is not significant"),
        (None, None, None, None, "No harmful prompt has a score from every model, by j,"),
    ],
)
def test_a_gap_of_losses_is_not_called_a_gain(own, others, gap, p, verdict):
    rows = {
        name: Difference(value, None, None, 9, p)
        for name, value in {"own": own, "others": others, "gap": gap}.items()
    }
    assert verdict in _describe_gap(rows, ", by j")


def test_the_heat_map_shows_every_cell_and_says_which_are_beyond_chance():
    clear, dim = Difference(0.25, 0.1, 0.4, 20, 0.01), Difference(-0.05, -0.2, 0.1, 20, 0.6)
    nothing, slight = Difference(None, None, None, 0, None), Difference(-0.001, -0.1, 0.1, 20, 0.9)
    cells = [[clear, dim], [nothing, clear]]
    svg = heatmap(["<a>", "b"], ["a", "b"], cells, "t0", "Change in %")
    assert "Change in %. &lt;a&gt;" in svg
    assert svg.count("+25<") == 2 and svg.count("−5<") == 1
    assert "&lt;a&gt;: a +25, b −5" in svg and "#0000" not in svg
    svg = heatmap(["r"], ["c"], [[slight]], "t1", "Change")
    assert 'aria-label="Change. r: c 0."' in svg and ">0<" in svg


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mistake_analysis", "mistake_distillation"])
def test_groups_are_trained_and_tested_on_the_embedded_model_in_two_languages(tmp_path, method):
    groups = {
        "crime": ["theft", "fraud", "drugs", "weapons", "cybercrime", "privacy", "violence"],
        "people": ["hate", "harassment", "self-harm", "misinformation", "child-safety"],
    }
    recipe = Recipe.model_validate(
        {
            "instructions": [{"source": "builtin:redteam", "split": "train", "unique": True}],
            "induce": {
                "attempts": 1,
                "near_duplicate": 1,
                "sampling": {"max_new_tokens": 12, "temperature": 1.0},
            },
            "analyze": {
                "contrast": [],
                "candidates": 1,
                "min_words": 1,
                "min_overlap": 0,
                "min_distinct": 0,
                "sampling": {"max_new_tokens": 12, "temperature": 1.0},
            },
            "train": {
                "method": method,
                "helpful": [{"source": "builtin:helpful", "split": "train", "limit": 8}],
                "steps": 1,
                "batch_size": 1,
                "max_length": 64,
                "analyses": "unfiltered",
            },
            "respond": {
                "sampling": {"max_new_tokens": 2},
                "suites": [
                    {
                        "name": "h",
                        "kind": "harmful",
                        "sources": [
                            {
                                "source": "builtin:redteam",
                                "split": "test",
                                "shuffle": 0,
                                "limit": 56,
                            }
                        ],
                    },
                    {
                        "name": "s",
                        "kind": "safe",
                        "sources": [{"source": "builtin:safe", "limit": 4}],
                    },
                ],
            },
            "study": {"groups": groups, "to_language": "zh"},
        }
    )
    page = carry_out("transfer", recipe, tmp_path / "t")
    found = json.loads((page.parent / "findings.json").read_text())["data"]
    matrix = found["judges"]["probe"]["matrix"]
    assert list(matrix) == ["crime", "people", "all of them"]
    columns = ["crime", "people", "harmful, zh", "compliance", "compliance, zh"]
    assert all(list(row) == columns for row in matrix.values())
    rows = (tmp_path / "t/arms/on_crime.0/training.jsonl").read_text().splitlines()
    kinds = [json.loads(row).get("kind") for row in rows]
    assert found["mistakes_each"] >= 8 and "safe" not in kinds
    if method == "mistake_analysis":
        assert kinds.count("analysis") == found["mistakes_each"]
    else:  # a mistake may take several attempts; those that pass their checks are learned
        made = (tmp_path / "t/arms/on_crime.0/corrections.jsonl").read_text().splitlines()
        assert len({json.loads(row)["analysis_id"] for row in made}) == found["mistakes_each"]
    assert "<svg" in page.read_text()
