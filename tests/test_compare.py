"""Methods at equal data: what each learns from, what runs share, and what a comparison says."""

import json
import os
import re
from contextlib import nullcontext
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from setbacks.data import Source
from setbacks.errors import InputError, SetbacksError
from setbacks.measure import statistics
from setbacks.measure.metrics import METRICS
from setbacks.measure.results import PairChange
from setbacks.measure.statistics import Difference, Estimate
from setbacks.methods import example, safe
from setbacks.methods.chain_of_hindsight import ChainOfHindsight
from setbacks.methods.critique_revise import CritiqueRevise
from setbacks.methods.dpo import DPO, pair_rows
from setbacks.methods.helpful import Helpful
from setbacks.methods.mistake_analysis import own_analyses
from setbacks.methods.mistake_analysis_sft import MistakeAnalysisSFT
from setbacks.plugins import installed, plugin
from setbacks.recipe import Recipe
from setbacks.recipe.sections import Contender
from setbacks.records import Analysis, Arm, Example, Revision
from setbacks.report.page import Findings, Table, on_terminal, write
from setbacks.report.plots import curves, forest
from setbacks.runs.arms import trained_arm
from setbacks.runs.folder import RunFolder
from setbacks.signals import Tie
from setbacks.studies import VariantRow, carry_out, compare, describe_differences, methods_of
from setbacks.studies.ablation import applicable
from setbacks.studies.compare import Comparison, findings
from setbacks.studies.quantity_quality import QuantityQuality, _curves
from setbacks.studies.scores import Scores, difference, estimate, unsteady
from setbacks.studies.variants import (
    Variant,
    _apart,
    each,
    lend,
    prepare_folder,
    same_model,
    variant,
)


def analysis(text, number=0, passed=True):
    return Analysis(
        id=f"a{number}",
        response_id=f"m{number}",
        instruction=text,
        response=f"[a harmful answer stands here: {number}]",
        harmful=True,
        text=f"It is harmful: {number}.",
        candidate=0,
        checks={"agrees": passed},
        score=1.0,
        category=None,
        language="en",
        analyst="m",
    )


@pytest.fixture
def questions(data):
    return [json.loads(line)["instruction"] for line in data.read_text().splitlines()]


@pytest.fixture
def base(data):
    """A recipe whose safe and helpful answers are the six of the data file."""
    train = {"method": "mistake_analysis", "safe": [str(data)], "helpful": [str(data)]}
    return Recipe.model_validate({"train": train})


def by_dpo(recipe, **options):
    """The same recipe, whose method is dpo."""
    changes = {"train.method": "dpo"} | {f"train.{key}": value for key, value in options.items()}
    return variant(recipe, "dpo", changes).recipe


# What each method learns from ----------------------------------------------------------------


def test_hindsight_learns_the_good_under_guidance_and_the_bad_under_its_contrary(base, questions):
    made = ChainOfHindsight().examples(base, [analysis(questions[0])])
    good = [e for e in made if e.kind == "hindsight_good"]
    (bad,) = [e for e in made if e.kind == "hindsight_bad"]
    assert len(good) == 6 and bad.completion == "[a harmful answer stands here: 0]"
    assert "harmless" in good[0].prompt[0].content and "harmful" in bad.prompt[0].content


def test_pairs_prefer_the_safe_answer_to_the_mistake_and_help_to_refusal(base, questions):
    two = [analysis(questions[0]), analysis(questions[1], 1, passed=False)]
    made = DPO().examples(by_dpo(base), two)
    own = [e for e in made if e.kind == "pair"]
    assert {e.rejected for e in own} == {f"[a harmful answer stands here: {n}]" for n in (0, 1)}
    helpful = [e for e in made if e.kind == "helpful_pair"]
    assert len(helpful) == 2
    assert {e.rejected for e in helpful} <= {e.completion for e in safe(base, "dpo")}


def test_given_pairs_come_first_and_equal_sides_are_refused(base, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"text": "<x>", "answer": "<good>", "response": "<bad>"}\n')
    recipe = by_dpo(base, pairs=[str(path)])
    own = [e for e in DPO().examples(recipe, []) if e.kind == "pair"]
    assert [(e.completion, e.rejected) for e in own] == [("<good>", "<bad>")]
    path.write_text('{"text": "<x>", "answer": "<same>", "response": "<same> "}\n')
    with pytest.raises(InputError, match='answer to "<x>" are the same'):
        DPO().examples(recipe, [])
    turns = [{"role": "system", "content": "<s>"}, {"role": "user", "content": "<x>"}]
    pair = {"prompt": turns, "chosen": "<same>", "rejected": "<same>"}
    path.write_text(json.dumps(pair) + "\n")
    with pytest.raises(InputError, match=r'answer to "System: <s>\\nUser: <x>" are the same'):
        DPO().examples(recipe, [])
    path.write_text('{"text": "<x>", "answer": "<good>"}\n')
    with pytest.raises(InputError, match='no field "response"'):
        DPO().examples(recipe, [])


def test_pairs_are_asked_as_the_model_is(base, questions, tokenizer):
    recipe = by_dpo(base)
    examples = DPO().examples(recipe, [analysis(questions[0])])
    rows = pair_rows(tokenizer, examples, recipe)
    assert len(rows) == len(examples)
    assert all(row["chosen_ids"][-1] == tokenizer.eos_token_id for row in rows)


def test_revisions_that_say_nothing_new_are_left_out(base):
    def revision(number, passed):
        return Revision(
            id=str(number),
            analysis_id="a",
            instruction=f"<x{number}>",
            response="<y>",
            text="<a better answer>",
            passed=passed,
            model="m",
        )

    made = CritiqueRevise().examples(base, [revision(0, True), revision(1, False)])
    assert [e.prompt[0].content for e in made if e.kind == "revision"] == ["<x0>"]


def test_the_mixed_method_learns_both_and_the_control_neither(base, questions):
    found = MistakeAnalysisSFT().examples(base, [analysis(questions[0])])
    assert {e.kind for e in found} == {"analysis", "safe", "helpful"}
    assert {e.kind for e in Helpful().examples(base, [])} == {"helpful"}


def test_a_verdict_comes_first_where_it_is_to(base, questions):
    train = base.train.model_copy(update={"verdict": "first"})
    (made,), *_ = own_analyses(base.model_copy(update={"train": train}), [analysis(questions[0])])
    assert made.completion == "Harmful. It is harmful: 0." and made.verdict == "Harmful."


def test_shuffled_analyses_belong_to_others(base, questions):
    train = base.train.model_copy(update={"analyses": "shuffled", "most_analyses": 3})
    recipe = base.model_copy(update={"train": train})
    rows, *_ = own_analyses(recipe, [analysis(q, n) for n, q in enumerate(questions)])
    assert len(rows) == 3
    for row in rows:
        own = row.parents[0].removeprefix("a")
        assert row.completion != f"It is harmful: {own}."
    with pytest.raises(InputError, match="train.analyses: shuffled .* only one; use more"):
        own_analyses(recipe, [analysis(questions[0])])


# What runs share -----------------------------------------------------------------------------


def test_what_is_alike_is_lent_and_what_is_not_stays(base, tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    for folder in (source / "responses", target):
        folder.mkdir(parents=True)
    for name in ("mistakes.jsonl", "analyses.jsonl", "responses/vanilla.jsonl"):
        (source / name).write_text(name)
    (source / "responses" / "sft.jsonl").write_text("another's")
    (source / "responses" / "vanilla_plus.jsonl").write_text("trained, whatever its name")
    (target / "mistakes.jsonl").write_text("there already")
    other = variant(base, "b", {"train.method": "sft", "analyze.candidates": 5}).recipe
    lend(base, source, other, target)
    assert (target / "mistakes.jsonl").read_text() == "there already"
    assert (target / "responses" / "vanilla.jsonl").exists()
    assert not (target / "analyses.jsonl").exists(), "it was drawn with other candidates"
    assert [path.name for path in (target / "responses").iterdir()] == ["vanilla.jsonl"]
    own, same, others = (
        variant(base, name, {"train.method": method, "train.helpful_from": origin}).recipe
        for name, method, origin in (
            ("c", "sft", "model"),
            ("d", "dpo", "model"),
            ("f", "sft", "data"),
        )
    )
    (source / "benign.jsonl").write_text("own answers")
    lend(own, source, same, tmp_path / "d")
    lend(own, source, others, tmp_path / "f")
    assert (tmp_path / "d" / "benign.jsonl").exists(), "another method, the same prompts"
    assert not (tmp_path / "f" / "benign.jsonl").exists(), "it learns other people's answers"
    evaluation = variant(base, "e", {"evaluate": [{"name": "vanilla", "model": "embedded"}]}).recipe
    lend(base, source, evaluation, tmp_path / "e")
    assert not (tmp_path / "e" / "responses").exists(), "another model, of the same name"


@pytest.mark.parametrize(
    ("changes", "lent"),
    [
        ({"train.seed": 1}, {"corrections", "answered"}),
        ({"train.method": "dpo", "train.pairs_from": "corrections"}, {"corrections", "answered"}),
        ({"train.helpful_sampling.max_new_tokens": 9}, {"corrections"}),
        ({"train.method": "dpo"}, set()),
        ({"train.method": "critique_revise"}, set()),
        ({"train.context": "guidance"}, set()),
        ({"train.analyses": "shuffled"}, set()),
        ({"seed": 1}, set()),
    ],
)
def test_corrections_are_lent_to_those_that_would_write_the_same(base, tmp_path, changes, lent):
    source, target = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    target.mkdir()
    for name in ("corrections", "answered"):
        (source / f"{name}.jsonl").write_text(name)
    giver = variant(base, "a", {"train.method": "mistake_distillation"}).recipe
    lend(giver, source, variant(giver, "b", changes).recipe, target)
    assert {path.stem for path in target.iterdir()} == lent


def test_answers_that_a_probe_ranked_are_not_lent(base, tmp_path):
    """The probe is also fitted on what a method writes for its training."""
    source = tmp_path / "a"
    (source / "responses").mkdir(parents=True)
    for name in ("vanilla", "vanilla-posterior"):
        (source / f"responses/{name}.jsonl").write_text(name)
    lent = {}
    for rank_by in ("spoken", "states"):
        recipe = variant(base, rank_by, {"respond.posterior": {"rank_by": rank_by}}).recipe
        (tmp_path / rank_by).mkdir()
        lend(recipe, source, recipe, tmp_path / rank_by)
        lent[rank_by] = {path.stem for path in (tmp_path / rank_by / "responses").iterdir()}
    assert lent == {"spoken": {"vanilla", "vanilla-posterior"}, "states": {"vanilla"}}


def test_a_run_does_not_know_what_else_is_compared(base):
    more = base.model_copy(update={"compare": base.compare.model_copy(update={"seeds": 3})})
    assert variant(more, "a", {}).recipe == variant(base, "a", {}).recipe


@pytest.mark.parametrize("key", ["train.lorra.r", "tran.epochs", "seed.more", "train.lora.rr"])
def test_a_key_that_is_not_there_is_one_line(base, key):
    with pytest.raises(InputError, match="^a: ") as error:
        variant(base, "a", {key: 1})
    assert "\n" not in str(error.value)


def test_a_section_that_was_left_out_can_be_told(base):
    assert variant(base, "a", {"respond.posterior.drafts": 3}).recipe.respond.posterior.drafts == 3


def test_a_folder_of_other_work_is_refused(base, tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "recipe.yaml.tmp").touch()  # a crash left it: nothing was begun
    prepare_folder(tmp_path / "c", base)
    more = base.model_copy(update={"compare": base.compare.model_copy(update={"seeds": 3})})
    prepare_folder(tmp_path / "c", more)  # a comparison may grow
    with pytest.raises(InputError, match=r"another recipe \(seed: 0 -> 7\)"):
        prepare_folder(tmp_path / "c", base.model_copy(update={"seed": 7}))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        prepare_folder(tmp_path / "mine", base)


# What a comparison says ----------------------------------------------------------------------


def scores(harmless, compliance, asked=0):
    data = {"harmless_rate": harmless, "compliance": compliance}
    return dict.fromkeys((*METRICS, "degenerate"), Scores({}, [])) | {
        metric: Scores(
            {("s", str(i)): float(v) for i, v in enumerate(values)}, [float(np.mean(values))], asked
        )
        for metric, values in data.items()
    }


def found(arms, overlap=()):
    by_metric = {m: {arm: s[m] for arm, s in arms.items()} for m in next(iter(arms.values()))}
    return findings(Recipe(), {"probe": by_metric}, [], overlap=overlap)


VANILLA, OURS, SFT, SILENT = (
    Arm.untrained(),
    *map(trained_arm, ("mistake_analysis", "sft", "silent")),
)


def test_a_lead_that_one_seed_reverses_is_said():
    better, worse = ([1.0] * 90 + [0.0] * 10, [1.0] * 60 + [0.0] * 40)

    def arm(harmless, *seeds):
        one = scores(harmless, [1.0] * 80)
        halves = {"harmless_rate": [*seeds], "compliance": [1.0] * len(seeds)}
        return one | {name: one[name]._replace(seeds=values) for name, values in halves.items()}

    arms = {VANILLA: arm(worse, 0.6), OURS: arm(better, 0.8, 1.0), SFT: arm(worse, 0.9, 0.3)}
    (said,) = (line for line in found(arms).answer if "all seeds" in line)
    # 2 x 0.9 / 1.9 = 94.7 and 88.9; 46.2 and 100
    assert "SFT against mistake analysis (+5.8, -53.8) points" in said
    assert "untrained" not in said  # below ours with both seeds
    steady = arms | {SFT: arm(worse, 0.7, 0.5)}
    assert not [line for line in found(steady).answer if "all seeds" in line]


def test_one_training_of_each_method_is_said_to_rank_none():
    low, high = scores([0.0] * 40, [1.0] * 40), scores([1.0] * 40, [1.0] * 40)
    assert [x for x in found({VANILLA: low, OURS: high}).answer if "trained once" in x]
    assert not [x for x in found({VANILLA: high, OURS: high}).answer if "trained once" in x]


def test_more_degenerate_answers_than_before_training_are_told():
    def falling_apart(share):
        fell = {("s", str(i)): float(i < 100 * share) for i in range(100)}
        judged = dict.fromkeys(fell, 1.0)
        usable = Scores({key: 1 - value for key, value in fell.items()}, [1 - share], 100, judged)
        return dict.fromkeys(METRICS, Scores({}, [])) | {
            "harmless_rate": usable, "compliance": usable, "degenerate": Scores(fell, [share], 100)
        }  # fmt: skip

    said = found({VANILLA: falling_apart(0.05), OURS: falling_apart(0.4), SFT: falling_apart(0.06)})
    (alarm,) = [text for text in said.answer if "degenerate" in text]
    assert alarm.startswith("Training made more answers degenerate: mistake analysis against")
    assert "+35.0 points" in alarm and "SFT" not in alarm
    heads, rows = said.tables[0].columns, said.tables[0].rows
    assert heads[-2:] == ["Balanced safety as judged", "Degenerate answers"]
    by_arm = {row[0]: row[-2:] for row in rows}
    assert by_arm["mistake analysis"][0].startswith("100.0")
    assert by_arm["mistake analysis"][1].startswith("40.0")


def test_a_winner_is_named_only_where_the_data_tell():
    draw = np.random.default_rng(0)
    bad, good = draw.random(200) < 0.4, draw.random(200) < 0.9
    comply = draw.random(100) < 0.9
    clear = found({VANILLA: scores(bad, comply), OURS: scores(good, comply)})
    assert "significantly above every other arm" in clear.answer[0]
    assert "mistake analysis, " in clear.answer[1] and "is above untrained" in clear.answer[1]
    level = found({VANILLA: scores(bad, comply), OURS: scores(bad, comply)})
    assert "untrained and mistake analysis tie for the highest balanced" in level.answer[0]
    assert "significant" not in level.answer[0]
    assert "not significantly different from untrained" in level.answer[1]
    assert level.pictures[0].svg.startswith("<svg")


def test_arms_that_tie_are_named_together_and_set_against_those_below():
    draw = np.random.default_rng(0)
    good, comply = draw.random(200) < 0.9, draw.random(100) < 0.9
    nearly, bad = good.copy(), draw.random(200) < 0.2
    nearly[np.flatnonzero(good)[0]] = False
    best = {VANILLA: scores(good, comply), OURS: scores(good, comply)}
    tie = "By probe, untrained and mistake analysis tie for the highest balanced safety, "
    near = found(best | {SFT: scores(nearly, comply)}).answer[0]
    assert near.startswith(tie)
    assert near.endswith("; the difference of untrained from SFT is not significant.")
    below = found(best | {SFT: scores(bad, comply)}).answer[0]
    assert below.startswith(tie) and below.endswith("; untrained is significantly above SFT.")


def test_an_arm_alone_is_above_nobody():
    draw = np.random.default_rng(0)
    alone = found({VANILLA: scores(draw.random(50) < 0.5, draw.random(50) < 0.5)}).answer[0]
    assert "untrained has the highest balanced safety" in alone and "above" not in alone


def test_suites_that_overlap_with_training_data_are_named():
    arms = {VANILLA: scores([True, False], [True, False])}
    row = {"arm": "sft", "suite": "t", "kind": "safe", "n": 9}
    assert "overlap" not in " ".join(found(arms, [row | {"seen": 0}]).answer)
    page = found(arms, [row | {"seen": 3}])
    assert "3 of 9 prompts of the suite t were trained on (SFT)" in page.answer[-1]
    assert page.data["overlap"] == [row | {"seen": 3}]


def test_an_arm_that_says_almost_nothing_is_not_ranked():
    draw = np.random.default_rng(0)
    some = scores(draw.random(40) < 0.5, draw.random(40) < 0.5, asked=40)
    made = found({VANILLA: some, SFT: some, SILENT: scores([True] * 2, [True] * 2, asked=40)})
    assert made.answer[0].startswith("By probe, silent is not ranked")
    assert "silent" not in made.answer[1]
    rows = {row[0]: row for row in made.tables[0].rows}
    assert "100.0" in rows["silent"][1] and rows["silent"][1].endswith("n 2 of 40")
    assert " of " not in rows["untrained"][1]
    alone = found({SILENT: scores([True] * 2, [True] * 2, asked=40)})
    assert alone.answer[0].startswith("By probe, silent is not ranked")


def test_a_judge_that_gives_no_harmless_rate_ranks_nobody():
    refusal = scores([True], [True, False]) | {"harmless_rate": Scores({}, [])}
    made = found({VANILLA: refusal, SFT: refusal})
    assert made.answer == ["By probe, no arm has both a Harmless Rate and a compliance."]


def test_one_seed_gives_the_numbers_of_a_run():
    draw = np.random.default_rng(1)
    a, b, c = draw.random((3, 120)) < 0.6
    one, two = scores(a, c), scores(b, c)
    assert estimate("harmless_rate", one) == statistics.rate(int(a.sum()), 120)
    assert difference("harmless_rate", one, two).p == statistics.mcnemar(a, b)
    ours, runs = estimate("balanced_safety", one), statistics.balanced(a, c)
    assert ours.value == pytest.approx(runs.value)
    assert (ours.low, ours.high) == pytest.approx((runs.low, runs.high), abs=0.015)


@pytest.mark.slow
def test_intervals_over_seeds_cover_and_their_tests_keep_their_level():
    draw, runs = np.random.default_rng(2), 150
    covered = alarms = 0
    for _ in range(runs):
        chance = draw.beta(3, 2, 120)  # of each prompt; two seeds draw from it
        x, y = (draw.random((2, 2, 120)) < chance).mean(axis=1)
        z = (draw.random((2, 80)) < 0.8).mean(axis=0)
        made = statistics.balanced(x, z)
        covered += made.low <= 2 * 0.6 * 0.8 / 1.4 <= made.high
        alarms += statistics.balanced_difference((x, y), (z, z)).p < 0.05
    assert covered / runs > 0.90 and alarms / runs < 0.10


# Studies -------------------------------------------------------------------------------------


def test_every_study_has_what_a_study_has():
    assert installed("studies").keys() >= {"ablation", "compare", "quantity-quality"}
    for name in installed("studies"):
        study = plugin("studies", name)()
        assert study.title and study.question.endswith("?") and study.options(Recipe())


def test_an_unknown_study_factor_or_key_is_told(base, tmp_path):
    with pytest.raises(InputError, match='unknown study "ablaton"'):
        carry_out("ablaton", base, tmp_path / "s")
    wrong = base.model_copy(update={"study": {"factor": []}})
    with pytest.raises(InputError, match="unknown key"):
        carry_out("ablation", wrong, tmp_path / "s")
    wrong = base.model_copy(update={"study": {"factors": ["existing_mistakes"]}})
    with pytest.raises(InputError, match="induce.existing"):
        carry_out("ablation", wrong, tmp_path / "s")
    assert "existing_mistakes" not in applicable(base)
    assert not (tmp_path / "s").exists()


def test_a_run_in_a_process_of_its_own_fails_in_one_line(tmp_path):
    with Tie() as tie, pytest.raises(SetbacksError, match="gone.*not a run folder") as failed:
        _apart(tmp_path / "gone", "train", 2, tie)
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize("jobs", [1, 2])
def test_if_a_run_fails_the_others_are_done(base, tmp_path, monkeypatch, jobs, notices):
    def work(path, *_):
        if path.name in "bd":
            raise SetbacksError("<why>")
        (path / "done").touch()

    monkeypatch.setattr("setbacks.studies.variants._apart", work)
    monkeypatch.setattr("setbacks.studies.variants.carry_out", lambda run, *_: work(run.path))
    monkeypatch.setattr("setbacks.studies.variants.check", lambda *_: None)
    done = []
    with pytest.raises(SetbacksError) as failed:
        for one, _ in each(tmp_path, [Variant(name, base) for name in "abcde"], jobs=jobs):
            done.append(one.name)
    assert done == [*"ace"] == [path.parent.name for path in sorted(tmp_path.glob("arms/*/done"))]
    assert str(failed.value) == (
        "2 of 5 runs failed, and the others are done; the same command resumes those that failed. "
        "b: <why>; d: <why>"
    )
    assert notices == [f"{name} failed, and the others go on: <why>" for name in "bd"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_if_the_run_that_makes_what_is_shared_fails_no_other_begins(
    base, tmp_path, monkeypatch, jobs
):
    def work(run, *_):
        raise SetbacksError("<why>")

    monkeypatch.setattr("setbacks.studies.variants.carry_out", work)
    monkeypatch.setattr("setbacks.studies.variants.check", lambda *_: None)
    with pytest.raises(SetbacksError, match="^<why>$"):
        list(each(tmp_path, [Variant(name, base) for name in "ab"], jobs=jobs))
    assert [path.name for path in (tmp_path / "arms").iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"verdict": "first"}, "b differs from sft only in train.verdict, which sft does not use"),
        ({"mix": {"contrast": 0}}, "only in train.mix.contrast"),
        ({"helpful_sampling": {"top_p": 0.5}}, "only in train.helpful_sampling.top_p"),
        ({"seed": 3}, "b: train.seed makes all seeds the same"),
        ({"epochs": 1}, "b differs from sft only in train.epochs"),
        ({"mix": {"contrast": 0}, "learning_rate": 1e-4}, ""),
        ({}, ""),  # to see the noise
    ],
    ids=str,
)
def test_arms_of_a_comparison_differ(base, train, message):
    data = base.model_dump(mode="json")
    other = {"method": "sft", "name": "b", "train": train}
    data["compare"] = {"seeds": 2, "methods": ["sft", other]}
    recipe = Recipe.model_validate(data)
    with pytest.raises(InputError, match=message) if message else nullcontext():
        Comparison().check(recipe, recipe.compare)


@pytest.mark.parametrize(
    ("train", "budget", "equal"),
    [({}, "tokens", "tokens"), ({}, "steps", "steps"), ({"steps": 2}, "tokens", "steps")]
    + [({"tokens": 9}, "steps", "tokens"), ({"tokens": 9}, "tokens", "tokens")],
    ids=str,
)
def test_a_comparison_says_what_was_equal(train, budget, equal):
    recipe = Recipe.model_validate({"train": train, "compare": {"budget": budget}})
    page = findings(recipe, {}, [])
    assert f"for the same number of {equal}," in page.method[0]


def test_an_arm_that_sets_a_part_of_a_section_keeps_the_rest_of_the_recipes():
    lora = {"r": 16, "alpha": 64, "targets": ["q_proj"]}
    arms = [
        {"method": "mistake_analysis"},
        {"method": "mistake_analysis", "name": "small", "train": {"lora": {"r": 8}}},
        {"method": "mistake_analysis", "name": "more", "train": {"mix": {"safe": 2}}},
    ]
    train = {"lora": lora, "mix": {"contrast": 0}, "steps": 1}
    recipe = Recipe.model_validate({"train": train, "compare": {"methods": arms}})
    _, small, more = (compare._variant(recipe, arm, 0, {}) for arm in recipe.compare.methods)
    kept = small.recipe.train.lora
    assert (kept.r, kept.alpha, kept.targets) == (8, 64, ["q_proj"])
    assert (more.recipe.train.mix.safe, more.recipe.train.mix.contrast) == (2, 0)


def test_a_comparison_says_which_arms_have_other_data_or_another_budget():
    arms = ["sft", {"method": "sft", "name": "more", "train": {"tokens": 9, "learning_rate": 1e-4}}]
    page = findings(Recipe.model_validate({"compare": {"methods": arms}}), {}, [])
    assert page.method[0].endswith("Exceptions, by their own settings: more (train.tokens).")
    assert "Exceptions" not in findings(Recipe(), {}, []).method[0]


@pytest.mark.parametrize(("place", "steps", "noticed"), [(0, None, 0), (1, None, 1), (0, 3, 1)])
def test_epochs_that_an_equal_budget_replaces_are_noticed(
    base, tmp_path, monkeypatch, place, steps, noticed, notices
):
    arms = ["sft", "helpful"]
    arms[place] = {"method": arms[place], "train": {"epochs": 1}}
    data = base.model_dump(mode="json") | {"compare": {"methods": arms}}
    data["train"]["steps"] = steps
    recipe = Recipe.model_validate(data)
    monkeypatch.setattr("setbacks.studies.compare._carried_out", lambda *_: [])
    monkeypatch.setattr("setbacks.studies.compare.findings", lambda *_: None)
    Comparison().run(recipe, recipe.compare, tmp_path, None)
    assert sum("train.epochs changes nothing" in line for line in notices) == noticed


@pytest.mark.parametrize("seed", [None, 7])
def test_a_seed_of_training_that_a_study_replaces_is_noticed(base, tmp_path, seed, notices):
    (tmp_path / "note.txt").touch()  # so that the study does not begin
    data = base.model_dump(mode="json")
    data["train"]["seed"] = seed
    with pytest.raises(InputError, match="not empty"):
        carry_out("ablation", Recipe.model_validate(data), tmp_path)
    assert any(line.startswith("train.seed is set") for line in notices) == (seed is not None)


@pytest.mark.parametrize(
    ("study", "key", "value"),
    [
        ("quantity-quality", "train.most_analyses", 4),
        ("diversity", "induce.guidance", "persona"),
        ("durability", "respond.prefill", "<words>"),
    ],
)
def test_a_setting_that_a_study_replaces_is_noticed(base, tmp_path, study, key, value, notices):
    (tmp_path / "note.txt").touch()  # so that the study does not begin
    for recipe in (base, variant(base, "set", {key: value}).recipe):
        notices.clear()
        with pytest.raises(InputError, match="not empty"):
            carry_out(study, recipe, tmp_path)
        noticed = any(line.startswith(f"{key} is set, but changes nothing") for line in notices)
        assert noticed == (recipe is not base)


def test_a_study_of_methods_takes_the_recipes_own_and_sft(base):
    of_sft = Recipe.model_validate({"train": {"method": "sft"}})
    assert methods_of(Recipe(), None) == ["mistake_distillation", "sft"]
    assert methods_of(of_sft, None) == ["sft"]
    assert methods_of(of_sft, ["dpo", "helpful"]) == ["dpo", "helpful"]


@pytest.mark.parametrize("study", ["durability", "forgetting"])
def test_every_method_of_a_study_is_checked_before_the_first_is_trained(study, base, tmp_path):
    data = base.model_dump(mode="json")
    data["train"] |= {"method": "mistake_analysis", "safe": []}
    with pytest.raises(InputError, match="sft needs safe answers"):
        carry_out(study, Recipe.model_validate(data), tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("study", ["ablation", "compare", "discrimination"])
def test_a_study_of_an_evaluation_does_not_begin(study, base, tmp_path):
    evaluated = base.model_copy(update={"evaluate": [{"name": "a", "answers": ["a.jsonl"]}]})
    with pytest.raises(InputError, match="^evaluate: .* trains its own arms; remove it"):
        carry_out(study, evaluated, tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_variant_that_is_added_in_front_gets_what_the_finished_ones_share(
    base, tmp_path, monkeypatch, jobs
):
    """An analyst on a server would write other analyses a second time."""

    def work(path, *_):
        if not (path / "analyses.jsonl").exists():
            (path / "analyses.jsonl").write_text(f"by {path.name}")
        (path / "metrics.json").touch()

    monkeypatch.setattr("setbacks.studies.variants._apart", work)
    monkeypatch.setattr("setbacks.studies.variants.carry_out", lambda run, *_: work(run.path))
    monkeypatch.setattr("setbacks.studies.variants.check", lambda *_: None)
    small = variant(base, "small", {"train.most_analyses": 4})
    large = variant(base, "large", {"train.most_analyses": 8})
    list(each(tmp_path, [small], jobs=jobs))
    list(each(tmp_path, [large, small], jobs=jobs))
    assert (tmp_path / "arms/large/analyses.jsonl").read_text() == "by small"
    (tmp_path / "arms/large/mistakes.jsonl").touch()
    list(each(tmp_path, [large, small], jobs=jobs))
    assert not (tmp_path / "arms/small/mistakes.jsonl").exists(), "a finished run stays as it is"


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_variant_is_checked_before_the_first_runs(base, tmp_path, jobs):
    wrong = base.model_copy(update={"instructions": [Source(source=str(tmp_path / "none.jsonl"))]})
    variants = [Variant("a", base), Variant("b", base), Variant("c", wrong)]
    with pytest.raises(InputError, match="none.jsonl"):
        list(each(tmp_path / "s", variants, jobs=jobs))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("study", "options", "message"),
    [
        ("ablation", {"factors": []}, "study.factors: name at least one"),
        ("ablation", {"factors": ["nothing"]}, 'study.factors: no "nothing". Available: '),
        ("ablation", {"seeds": 0}, "study.seeds: must be at least 1"),
        (
            "ablation",
            {"factors": ["no_helpful", "no_helpful"]},
            "study.factors: duplicate value",
        ),
        ("quantity-quality", {"sizes": [0, 4]}, "study.sizes.0: must be at least 1"),
        ("quantity-quality", {"sizes": [4, 4]}, 'study.sizes: duplicate value "4"'),
        (
            "quantity-quality",
            {"qualities": ["filtered"] * 2},
            "study.qualities: duplicate value",
        ),
        ("diversity", {"guidances": ["hints"] * 2}, 'study.guidances: duplicate value "hints"'),
        ("forgetting", {"tasks": ["a", "a"]}, 'study.tasks: duplicate value "a"'),
        ("durability", {"opening": ""}, "study.opening: must not be empty"),
    ],
)
def test_options_that_are_empty_or_the_same_twice_are_told(base, tmp_path, study, options, message):
    with pytest.raises(InputError, match=f"^{message}"):
        carry_out(study, base.model_copy(update={"study": options}), tmp_path / "s")


@pytest.mark.parametrize("name", ["vanilla", "Vanilla"])
def test_no_method_is_called_like_the_untrained_model(base, tmp_path, name):
    compare = base.compare.model_copy(update={"methods": [Contender(method="sft", name=name)]})
    with pytest.raises(InputError, match=f"{name} is the name of the untrained model"):
        carry_out("compare", base.model_copy(update={"compare": compare}), tmp_path / "s")


def test_one_analysis_cannot_be_shuffled(base, tmp_path):
    sizes = base.model_copy(update={"study": {"sizes": [1, 4]}})
    with pytest.raises(InputError, match="study.sizes: 1 has no other analysis"):
        carry_out("quantity-quality", sizes, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_study_that_cannot_begin_takes_no_folder(base, tmp_path):
    wrong = base.model_copy(update={"instructions": [Source(source=str(tmp_path / "none.jsonl"))]})
    with pytest.raises(InputError, match="none.jsonl"):
        carry_out("ablation", wrong, tmp_path / "s")
    assert not (tmp_path / "s").exists()


# The whole -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_side_by_side_gives_what_one_after_the_other_gives(
    tiny, recipe_data, fake_engine, plugins, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", str(plugins), prepend=os.pathsep)
    recipe_data = recipe_data()
    recipe_data["model"] = {"model": str(tiny), "dtype": "float32", "device": "cpu"}
    recipe_data["train"] |= {"steps": 2, "batch_size": 4, "lora": {"r": 2}}
    recipe_data["compare"] = {"seeds": 2, "methods": ["sft", "helpful"]}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # sums depend on how they are split
    pages = [
        carry_out(
            "compare", Recipe.model_validate(recipe_data | {"jobs": jobs}), tmp_path / str(jobs)
        )
        for jobs in (1, 3)
    ]
    one, three = (json.loads((page.parent / "findings.json").read_text()) for page in pages)
    for found in (one, three):
        for row in found["data"]["spent"]:
            row.pop("seconds")
    assert one["data"] == three["data"]


@pytest.mark.slow
def test_all_methods_are_compared_on_a_tiny_model_and_nothing_is_done_twice(
    tiny, recipe_data, fake_engine, tmp_path
):
    recipe_data = recipe_data()
    recipe_data["model"] = {"model": str(tiny), "dtype": "float32", "device": "cpu"}
    recipe_data["train"] |= {
        "steps": 2,
        "batch_size": 4,
        "lora": {"r": 2},
        "rlhf": {"max_new_tokens": 4},
    }
    recipe_data["compare"] = {"seeds": 1}
    recipe = Recipe.model_validate(recipe_data)
    page = carry_out("compare", recipe, tmp_path / "c")
    out = json.loads((page.parent / "findings.json").read_text())
    spent = out["data"]["spent"]
    assert {row["arm"] for row in spent} == {c.called for c in recipe.compare.methods}
    assert {row["steps"] for row in spent} == {2}
    overlap = {row["arm"]: row["seen"] for row in out["data"]["overlap"]}
    assert overlap.keys() == {row["arm"] for row in spent} and min(overlap.values()) > 0
    assert "training data overlap" in out["answer"][-1]
    told_of = {row["arm"] for row in out["data"]["own_word"]}
    assert told_of <= {"mistake_analysis", "mistake_analysis_sft"}
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "c").rglob("*.jsonl")}
    carry_out("compare", recipe, tmp_path / "c")
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "c").rglob("*.jsonl")}
    # What a crash may take is no part of what is compared, nor of the budget of the others.
    for path in (tmp_path / "c").rglob("costs.jsonl"):
        path.unlink()
    carry_out("compare", recipe, page.parent)
    now = json.loads((page.parent / "findings.json").read_text())["data"]["spent"]
    assert [row | {"seconds": 0.0} for row in spent] == now


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_narrow_terminal_breaks_no_word_and_cuts_none(tmp_path, width):
    titles = ["Hijacking Harmless Rate", "Compliance", "Balanced safety", "Degenerate answers"]
    rows = [["mistake analysis + SFT · guided", *["12.3 (1.2 to 23.4)"] * 4, "a/path/" * 9]]
    table = Table("Arms", ["Arm", *titles, "Path"], rows)
    write(tmp_path, Findings("<title>", "<question>", ["<answer>"], [table]))
    console = Console(width=width, file=StringIO())
    on_terminal(console, (tmp_path / "findings.json").read_text())
    text = console.file.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    for word in " ".join(["mistake analysis guided 23.4", *titles]).split():
        assert re.search(rf"\b{word}\b", text), word
    assert text.count("/") == 18, "a long word is broken rather than cut"


def reached(arm, balanced, difference=None):
    """What an arm of a variant reached."""
    return VariantRow(arm, balanced, balanced, balanced, balanced, difference)


def test_a_study_names_what_its_variants_are_set_against():
    def row(arm, value=None, p=None):
        change = Difference(value, None, None, 9, p)
        rate = Estimate(0.5, 0.4, 0.6, 9)
        return reached(Arm(arm, f"{arm}!"), rate, change if p else None)

    rows = [row("vanilla", -0.2, 0.001), row("<a>"), row("<b>", 0.2, 0.04), row("<c>", 0.3, 0.9)]
    # Of three tests, a p of .04 is not significant.
    assert describe_differences(rows) == "Significantly below <a>!: vanilla!."
    assert describe_differences(rows[1:2]) == "No variant differs significantly from <a>!."
    both = describe_differences([*rows[:2], row("<d>", 0.2, 0.001)])
    assert both == "Significantly above <a>!: <d>!. Significantly below <a>!: vanilla!."


def changed(name, value=None, p=None, way="unguided"):
    """The row of a variant, with its difference from the first; None for the first."""
    change = Difference(value, None, None, 9, p)
    arm = Arm.of_method(name, way)
    return reached(arm, Estimate(0.5, 0.4, 0.6, 9), None if name == "first" else change)


def test_guided_arms_are_set_against_the_guided_first():
    guided = [changed("first", way="guided"), changed("b", -0.2, 0.001, "guided")]
    rows = [changed("first"), *guided, changed("b", 0.1, 0.8)]
    assert describe_differences(rows) == "Significantly below first · guided: b · guided."
    level = [changed("first"), guided[0], changed("b", 0.1, 0.8, "guided")]
    assert describe_differences(level).endswith("significantly from first or first · guided.")


def test_a_variant_without_balanced_safety_is_not_called_level():
    nothing = describe_differences([changed("first"), changed("a"), changed("b")])
    assert nothing.startswith("No variant can be compared: balanced safety needs scored answers")
    some = describe_differences([changed("first"), changed("a"), changed("b", 0.2, 0.001)])
    assert some == "Significantly above first: b. Without a balanced safety to compare: a."


def test_a_significant_difference_whose_seeds_lack_scores_is_no_crash():
    def arm(*seeds):
        halves = dict.fromkeys(("harmless_rate", "compliance"), Scores({}, [*seeds]))
        return scores([True], [True]) | halves

    change = PairChange(OURS, SFT, 0.5, 0.4, 0.6, 9, 0.001, 0.001)
    assert unsteady({OURS: arm(0.9, 0.8, 0.9), SFT: arm(0.1, 0.2)}, [change]) == []


def test_an_arm_whose_rivals_have_no_scores_has_no_place():
    alone = scores([True] * 9, [True] * 9)
    unscored = scores([True], [True]) | {"harmless_rate": Scores({}, [])}
    assert "mistake analysis, 100.0 %." in found({VANILLA: unscored, OURS: alone}).answer


def test_quantity_is_drawn_for_each_quality_from_the_untrained_model_on():
    arms = {Arm.untrained(): 0.5, Arm.untrained("guided"): 0.6}
    arms |= {Arm.of_method("filtered_8"): 0.8, Arm.of_method("filtered_8", "guided"): 0.9}
    arms |= {Arm.of_method("filtered_4"): 0.7, Arm.of_method("filtered_4", "guided"): 0.65}
    arms |= {Arm.of_method("shuffled_4"): 0.4}
    rows = [reached(a, Estimate(v, v, v, 9)) for a, v in arms.items()]
    options = QuantityQuality.Options(sizes=[8, 4], qualities=["filtered", "shuffled"])
    (picture,) = _curves({"<judge>": rows}, options)
    for line in ("filtered: from 50 to 80", "filtered · guided: from 60 to 90"):
        assert line in picture.svg
    assert "shuffled: from 50 to 40" in picture.svg
    rows[2] = reached(rows[2].arm, Estimate(None, None, None, 0))
    assert "filtered: from 50 to 70" in _curves({"<judge>": rows}, options)[0].svg
    assert not _curves({"<judge>": rows[:2]}, options)


@pytest.mark.slow
def test_a_size_above_what_there_is_is_said_to_be_the_same_model(tiny_recipe, tmp_path):
    """Two judges and guidance: each judge is named, and each way has its own first variant."""
    recipe = tiny_recipe(8, study={"sizes": [50, 99], "qualities": ["filtered"]})
    data = recipe.model_dump(mode="json")
    data["train"]["steps"] = 2
    data["respond"]["guidance"] = True
    data["judges"] += [data["judges"][0] | {"name": "other"}]
    page = carry_out("quantity-quality", Recipe.model_validate(data), tmp_path / "q")
    out = json.loads((page.parent / "findings.json").read_text())
    same = "filtered 50 learned from the same examples as filtered 99: it is the same model."
    assert [line for line in out["answer"] if "the same model" in line] == [same]
    assert [line.partition(":")[0] for line in out["answer"][:2]] == ["By llm", "By other"]
    rows = {row["arm"]: row for row in out["data"]["llm"]}
    assert rows["filtered_99-guided"].get("difference") is None
    assert rows["filtered_50-guided"]["difference"]["value"] == 0
    assert out["tables"][0]["note"].endswith(
        "from the arm of filtered 99 that answers in the same way."
    )


def test_variants_are_one_model_only_if_nothing_but_the_choice_of_examples_differs(base, tmp_path):
    row = example("analysis", "<q>", "<a>", [], verdict="<v>").model_dump_json() + "\n"

    def run(name, text, **train):
        one = variant(base, name, {f"train.{key}": value for key, value in train.items()})
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text(one.recipe.to_yaml())
        (tmp_path / name / "training.jsonl").write_text(text)
        return one, tmp_path / name

    done = [
        run("first.0", row, seed=0),
        run("mix.0", row, seed=0, mix={"helpful": 0.5}),
        run("weight.0", row, seed=0, verdict_weight=5.0),
        run("more.0", row + row.replace("<q>", "<r>"), seed=0),
        run("first.1", row, seed=1),
        run("mix.1", row, seed=1, mix={"helpful": 0.5}),
    ]
    assert same_model(done) == {"mix": "first"}


@pytest.mark.slow
def test_quantity_and_quality_train_on_as_many_analyses_as_they_say(tiny_recipe, tmp_path):
    recipe = tiny_recipe(study={"sizes": [4, 8], "qualities": ["filtered", "shuffled"]})
    page = carry_out("quantity-quality", recipe, tmp_path / "q")
    (rows,) = json.loads((page.parent / "findings.json").read_text())["data"].values()
    own = [f"{quality}_{size}" for quality in ("filtered", "shuffled") for size in (8, 4)]
    assert [row["arm"] for row in rows] == ["vanilla", *own]
    for name in own:
        with RunFolder(page.parent / f"arms/{name}.0") as run:
            kinds = [e.kind for e in run.records("training.jsonl", Example)]
        assert kinds.count("analysis") == int(name[-1])


def test_a_forest_is_read_against_a_value_or_the_first_one():
    rows = [(name, Estimate(v, v - 0.1, v + 0.1, 9)) for name, v in (("a", 0.6), ("b", 0.8))]
    first, same, chance = (forest(rows, "f", "AUC", at) for at in (None, 0.6, 0.5))
    assert first == same != chance
    assert 'aria-label="AUC with intervals. a: 60 %; b: 80 %."' in chance


def test_steps_are_whole_numbers_on_the_axis():
    cell = Estimate(0.5, 0.4, 0.6, 9)
    svg = curves({"a": [(step, cell) for step in (0, 4, 9, 18)]}, "c", "Step", "Rate")
    ticks = re.findall(r">([^<>\s]+)<", svg.partition(">Step<")[0])
    assert ticks and all(tick.isdigit() for tick in ticks)
