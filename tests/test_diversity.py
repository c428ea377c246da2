"""The diversity study: guidance of induction, the spread of what it draws, and the whole."""

import json

import numpy as np
import pytest

from setbacks.errors import InputError
from setbacks.prompts import prompts
from setbacks.recipe import Recipe
from setbacks.records import Mistake
from setbacks.stages.induce import induce
from setbacks.studies import carry_out
from setbacks.studies.diversity import Drawn, _widest, dispersion, entropy


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("guidance", ["persona", "category"])
def test_each_guidance_asks_in_its_own_words(open_session, fake_engine, language, guidance):
    run = open_session("talker", language=language, induce={"guidance": guidance})
    mistakes = induce(run)
    words = prompts(language)["induce"]
    assert {m.hint for m in mistakes} <= set(words[guidance]["hints"])
    start = words[guidance]["prompt"].partition("{")[0]
    asked = [request.prompt for batch, _, _ in fake_engine.batches for request in batch]
    assert asked and all(prompt.startswith(start) for prompt in asked)
    assert all(any(hint in prompt for hint in words[guidance]["hints"]) for prompt in asked)


def test_distance_is_0_for_one_direction_1_for_right_angles_and_2_for_opposites():
    assert dispersion(np.tile([1.0, 2.0], (5, 1))).value == pytest.approx(0, abs=1e-12)
    assert dispersion(np.eye(6)).value == pytest.approx(1)
    assert dispersion([[1.0], [-1.0], [1.0], [-1.0]]).value == pytest.approx(4 / 3)


def test_the_interval_of_the_distance_covers_it():
    draw, covered, runs = np.random.default_rng(0), 0, 300
    # Of unit vectors, the mean cosine over pairs of draws is the squared length of their mean.
    angles = draw.normal(0, 0.8, 10**6)
    truth = 1 - np.cos(angles).mean() ** 2 - np.sin(angles).mean() ** 2
    for _ in range(runs):
        found = dispersion([[np.cos(a), np.sin(a)] for a in draw.normal(0, 0.8, 40)])
        covered += found.low <= truth <= found.high
    assert 0.89 < covered / runs < 0.99


def test_entropy_counts_even_categories_and_says_nothing_without_them():
    assert entropy(["a", "b", "c", "d"]) == 2
    assert entropy(["a", "a"]) == 0
    assert entropy(["a", "a", "a", "b"]) == pytest.approx(0.8113, abs=1e-4)
    assert entropy(["a", None]) is None and entropy([]) is None


def test_the_widest_is_named_with_those_that_overlap_it():
    drawn = [Drawn(name, 3, []) for name in ("hints", "persona", "category")]
    spread = [dispersion(np.eye(6)), dispersion(np.ones((6, 2))), dispersion(np.eye(8))]
    said = _widest(drawn, spread)
    assert "mistakes of hints have the largest" in said
    assert said.endswith("its interval overlaps with that of category.")
    assert "overlaps" not in _widest(drawn[:2], spread[:2])
    assert "have a mean distance of" in _widest(drawn[:1], spread[:1])  # largest of one


def test_too_few_mistakes_and_no_induction_are_told(recipe, tmp_path, data):
    with pytest.raises(InputError, match="6 mistakes induced by guidance hints.* at least 10"):
        carry_out("diversity", recipe(induce={"refusals": [str(data)]}), tmp_path / "few")
    taken = recipe(induce={"source": "existing", "existing": [str(data)]})
    with pytest.raises(InputError, match="needs mistakes that are induced"):
        carry_out("diversity", taken, tmp_path / "taken")
    with pytest.raises(InputError, match="^study.guidances.0"):
        carry_out("diversity", recipe(study={"guidances": ["hint"]}), tmp_path / "wrong")


@pytest.mark.slow
def test_guidances_are_measured_on_the_embedded_model_and_nothing_is_done_twice(tmp_path):
    source = {"source": "builtin:redteam", "shuffle": 0}
    recipe = Recipe.model_validate(
        {
            "instructions": [source | {"split": "train", "limit": 14}],
            "induce": {"sampling": {"max_new_tokens": 12, "temperature": 1.0}},
            "analyze": {
                "contrast": [],
                "candidates": 1,
                "min_words": 1,
                "min_overlap": 0,
                "min_distinct": 0,
                "sampling": {"max_new_tokens": 12, "temperature": 1.0},
            },
            "train": {
                "steps": 1,
                "batch_size": 1,
                "max_length": 64,
                "analyses": "unfiltered",
                "helpful": [{"source": "builtin:helpful", "split": "train", "limit": 8}],
            },
            "respond": {
                "guidance": False,
                "sampling": {"max_new_tokens": 4},
                "suites": [
                    {"name": "h", "kind": "harmful", "sources": [source | {"limit": 4}]},
                    {
                        "name": "s",
                        "kind": "safe",
                        "sources": [{"source": "builtin:safe", "limit": 4}],
                    },
                ],
            },
            "study": {"guidances": ["hints", "persona"]},
        }
    )
    page = carry_out("diversity", recipe, tmp_path / "d")
    found = json.loads((page.parent / "findings.json").read_text())
    assert [row["guidance"] for row in found["data"]["drawn"]] == ["hints", "persona"]
    assert all(0 < row["distance"]["value"] < 2 for row in found["data"]["drawn"])
    persona = (tmp_path / "d/arms/persona.0/mistakes.jsonl").read_text().splitlines()
    hints = {Mistake.model_validate_json(line).hint for line in persona if '"hint"' in line}
    assert hints <= set(prompts("en")["induce"]["persona"]["hints"])
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "d").rglob("*.jsonl")}
    carry_out("diversity", recipe, tmp_path / "d")
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "d").rglob("*.jsonl")}
