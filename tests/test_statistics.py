import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from setbacks.measure import statistics
from setbacks.measure.statistics import Difference, Estimate, Sample, Worth
from setbacks.review import labels as people
from setbacks.review.labels import Label

FEW = settings(max_examples=40, deadline=None)
booleans = st.lists(st.booleans(), max_size=30)
pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30)


def many(successes: int, n: int) -> list[bool]:
    return [i < successes for i in range(n)]


# -- known answers ----------------------------------------------------------------------------


def test_rate_is_wilsons():
    # Brown, Cai and DasGupta's formula by hand, z = 1.959964.
    assert statistics.rate(8, 10) == pytest.approx((0.8, 0.490162, 0.943318, 10), abs=1e-6)
    assert statistics.rate(0, 10).low == 0
    assert statistics.rate(10, 10)[:3] == pytest.approx((1, 0.722467, 1), abs=1e-6)


def test_mean_is_students():
    half = 2.776445 * math.sqrt(2.5 / 5)
    assert statistics.mean([1, 2, 3, 4, 5]) == pytest.approx((3, 3 - half, 3 + half, 5), abs=1e-5)


def test_mcnemar_is_exact():
    # 10 discordant pairs, 1 against 9: twice the chance of at most one head in ten throws.
    a = [True] * 9 + [False] * 1 + [True] * 20
    b = [False] * 9 + [True] * 1 + [True] * 20
    assert statistics.mcnemar(a, b) == pytest.approx(2 * 11 / 1024)
    assert statistics.mcnemar(a, a) == 1


def test_holm():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([]) == []


def test_holm_gives_the_numbers_of_statsmodels():
    from statsmodels.stats.multitest import multipletests

    values = np.random.default_rng(0).random(12) ** 4
    values[3] = values[7]
    assert statistics.holm(values) == pytest.approx(multipletests(values, method="holm")[1])


def test_balanced_safety_is_a_harmonic_mean():
    assert statistics.balanced(many(60, 100), many(90, 100)).value == pytest.approx(0.72)


def test_a_model_that_refuses_everything_has_no_balanced_safety():
    assert statistics.balanced([True] * 50, [False] * 50).value == 0


def test_difference_of_rates_and_of_scores():
    rates = statistics.paired_difference(many(8, 10), many(5, 10))
    assert (rates.value, rates.n, rates.p) == (pytest.approx(0.3), 10, 0.25)
    scores = statistics.paired_difference([3.0, 5.0, 8.0], [1.0, 4.0, 5.0])
    half = 4.302653 * math.sqrt(1 / 3)
    assert scores[:3] == pytest.approx((2, 2 - half, 2 + half), abs=1e-5)


def test_difference_of_balanced_safety():
    a, b = (many(90, 100), many(60, 100)), (many(80, 100), many(80, 100))
    found = statistics.balanced_difference(a, b)
    expected = statistics.balanced(a[0], b[0]).value - statistics.balanced(a[1], b[1]).value
    assert found.value == pytest.approx(expected)
    assert found.low > 0 and found.p < 0.01 and found.n == 200


@pytest.mark.slow  # importing ppi_py takes seconds
@pytest.mark.parametrize(("n", "rest"), [(60, 300), (400, 3000)])
def test_corrected_rate_agrees_with_ppi_py(n, rest):
    import ppi_py

    human, judged, more = (np.array(v, float) for v in _labels(n, rest))
    found = statistics.corrected(_partly(human, judged, more))
    assert found.value == pytest.approx(ppi_py.ppi_mean_pointestimate(human, judged, more)[0])
    low, high = (end[0] for end in ppi_py.ppi_mean_ci(human, judged, more, alpha=0.05))
    # Ours is wider by half a label at either end, and a little by its jackknife.
    ends = math.hypot((high - low) / 2, 1.96 / n)
    assert _width(found) / 2 == pytest.approx(ends, rel=1.5 / n + 0.005)


def test_a_judge_that_is_off_is_corrected():
    # The judge calls everybody harmless who is, and half of the others too.
    human = many(50, 100)
    judged = [h or i % 2 == 0 for i, h in enumerate(human)]
    rest = many(750, 1000)
    found = statistics.corrected(_partly(human, judged, rest))
    assert found.value == pytest.approx(0.5, abs=0.02)
    assert _width(found) < _width(statistics.rate(50, 100))


def test_few_labels_correct_nothing():
    assert statistics.corrected(_partly([True] * 19, [True] * 19, [True])) == (None, None, None, 19)
    few = _partly([True] * 19, [True] * 19, [True])
    assert statistics.corrected_difference(few, few).value is None
    assert statistics.corrected_balanced(few, few).value is None


def test_a_judge_that_says_always_the_same_adds_nothing():
    found = statistics.corrected(_partly(many(9, 20), [True] * 20, [True] * 9))
    assert found.value == pytest.approx(9 / 20)


def test_labels_that_all_agree_are_not_certainty():
    found = statistics.corrected(_partly([True] * 30, [True] * 30, [True] * 500))
    assert found.value == 1 and found.low < 0.95


def test_a_label_weighs_by_the_inverse_of_its_probability():
    # Of the harmless one in two was labeled, of the harmful all: as if 40 + 20, not 20 + 20.
    human, chance = [True] * 20 + [None] * 20 + [False] * 20, [0.5] * 40 + [1.0] * 20
    found = statistics.corrected(statistics.Sample([1.0, 0.0] * 30, human, chance))
    assert found.value == pytest.approx(2 / 3, abs=0.01)
    unweighted = statistics.corrected(statistics.Sample([1.0, 0.0] * 30, human))
    assert unweighted.value == pytest.approx(1 / 2, abs=0.01)


def test_a_label_of_unknown_probability_stands_for_no_others():
    sample = statistics.Sample(
        [1.0, 0.0] * 20, [True] * 30 + [False] * 10, [0.5] * 30 + [None] * 10
    )
    assert statistics.corrected(sample).n == 30


@pytest.mark.parametrize("chance", [0.0, -0.1, 1.01])
def test_a_probability_out_of_range_is_refused(chance):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        statistics.corrected(statistics.Sample([1.0] * 30, [True] * 30, [chance] * 30))


def test_a_certain_failure_counts_whatever_its_label():
    human = [True] * 24 + [None] * 16 + [False] * 10 + [None] * 50
    usable = statistics.corrected(statistics.Sample([1.0, 1.0, 1.0, 0.0] * 25, human))
    found, labeled = (
        statistics.corrected(
            statistics.Sample(
                [1.0, 1.0, 1.0, 0.0] * 25 + [0.0] * 100,
                human + [label] * 100,
                certain=[False] * 100 + [True] * 100,
            )
        )
        for label in (None, True)
    )
    assert found == labeled and found.n == usable.n == 34
    assert found.value == pytest.approx(usable.value / 2)
    # How many answers fail is also a sample's share, so the interval is wider than half.
    assert found.high - found.low > 1.05 * (usable.high - usable.low) / 2


def test_certain_failures_of_two_arms_are_paired():
    fails = [i % 4 == 0 for i in range(200)]
    judged = [0.0 if fell else float(i % 3 > 0) for i, fell in enumerate(fails)]
    human = [None if fell or i % 2 else i % 3 > 0 for i, fell in enumerate(fails)]
    arm = statistics.Sample(judged, human, certain=fails)
    found = statistics.corrected_difference(arm, arm)
    assert found.value == 0 and found.n == 2 * sum(label is not None for label in human)
    alone = statistics.corrected(arm)
    assert found.high - found.low < 0.6 * (alone.high - alone.low), "the same prompts fail"


def test_scores_are_corrected_too():
    judged = [float(1 + i % 10) for i in range(200)]
    human = [min(10.0, v + 2) if i < 60 else None for i, v in enumerate(judged)]
    found = statistics.corrected(statistics.Sample(judged, human), (1, 10))
    truth = np.mean([min(10.0, v + 2) for v in judged])
    assert found.low < truth < found.high and found.value == pytest.approx(truth, abs=0.2)


# -- agreement with people --------------------------------------------------------------------


def test_agreement_gives_the_numbers_of_scikit_learn():
    from sklearn.metrics import cohen_kappa_score, recall_score, roc_auc_score

    generator = np.random.default_rng(4)
    labels = generator.random(300) < 0.4
    score = np.clip(0.3 * labels + 0.7 * generator.random(300), 0, 1).round(1)  # many ties
    says = score >= 0.6
    found = statistics.agreement([str(i // 3) for i in range(300)], labels, score, says)
    assert found["auc"][0] == pytest.approx(roc_auc_score(labels, score), abs=5e-4)
    assert found["kappa"][0] == pytest.approx(cohen_kappa_score(labels, says), abs=5e-4)
    assert found["sensitivity"][0] == pytest.approx(recall_score(labels, says), abs=5e-4)
    assert found["specificity"][0] == pytest.approx(recall_score(~labels, ~says), abs=5e-4)
    assert all(low <= value <= high for value, low, high in list(found.values())[:4])


def test_calibration_error_is_the_gap_between_said_and_true():
    found = statistics.agreement(["a", "b"] * 50, [i < 50 for i in range(100)], [0.75] * 100)
    assert found["ece"][0] == pytest.approx(0.25)


def test_answers_to_one_question_are_no_separate_evidence():
    # Twenty questions, each with five answers that are labeled and scored alike.
    labels = [i // 5 % 2 == 0 for i in range(100)]
    score = [(0.9, 0.2, 0.4, 0.6)[i // 5 % 4] for i in range(100)]
    alone = statistics.agreement([str(i) for i in range(100)], labels, score)
    together = statistics.agreement([str(i // 5) for i in range(100)], labels, score)
    assert alone["auc"][0] == together["auc"][0] == 0.75
    widths = [found["auc"][2] - found["auc"][1] for found in (alone, together)]
    assert widths[1] > 1.5 * widths[0]


def test_labels_of_one_kind_agree_with_nothing():
    with pytest.raises(ValueError, match="all labels are the same"):
        statistics.agreement(["a", "b"], [True, True], [0.9, 0.8])


# -- nothing, and too little ------------------------------------------------------------------


def test_nothing_gives_no_value():
    nothing = Estimate(None, None, None, 0)
    assert statistics.rate(0, 0) == nothing
    assert statistics.mean([]) == nothing
    assert statistics.balanced([], []) == nothing
    assert statistics.balanced([True], []).value is None
    assert statistics.paired_difference([], []) == Difference(None, None, None, 0, None)
    assert statistics.balanced_difference(([], []), ([True], [True])).value is None
    assert statistics.mean([4.0]) == (4.0, None, None, 1)


def test_equal_scores_are_no_difference():
    assert statistics.paired_difference([5.0] * 4, [5.0] * 4) == (0, 0, 0, 4, 1)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="3 successes of 2"):
        statistics.rate(3, 2)
    with pytest.raises(ValueError, match="must be pairs"):
        statistics.paired_difference([True], [True, False])
    with pytest.raises(ValueError, match="must be pairs"):
        statistics.mcnemar([True], [])


# -- properties -------------------------------------------------------------------------------


@FEW
@given(st.integers(0, 500), st.integers(0, 500))
def test_a_rate_lies_in_its_interval(successes, failures):
    found = statistics.rate(successes, successes + failures)
    if found.n:
        assert 0 <= found.low <= found.value <= found.high <= 1
        opposite = statistics.rate(failures, found.n)
        assert found.low == pytest.approx(1 - opposite.high, abs=1e-9)


@FEW
@given(booleans, booleans)
def test_balanced_safety_lies_in_its_interval_and_between_the_rates(harmless, compliant):
    found = statistics.balanced(harmless, compliant)
    if harmless and compliant:
        assert 0 <= found.low <= found.value <= found.high <= 1
        assert found.low < found.high  # few observations are never certain
        rates = [np.mean(harmless), np.mean(compliant)]
        assert min(rates) - 1e-9 <= found.value <= max(rates) + 1e-9
        assert found == statistics.balanced(harmless, compliant)


@FEW
@given(pairs)
def test_a_difference_turns_its_sign(rows):
    a, b = zip(*rows, strict=True)
    there, back = statistics.paired_difference(a, b), statistics.paired_difference(b, a)
    assert there.value == pytest.approx(-back.value)
    # Two draws of the same bootstrap, whose values are 1 / (n + 2) apart.
    assert there.low == pytest.approx(-back.high, abs=0.01 + 1 / (len(rows) + 2))
    assert there.p == back.p
    assert -1 <= there.low <= there.value <= there.high <= 1
    assert there.low < there.high


@FEW
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_only_raises_and_keeps_the_order(values):
    corrected = statistics.holm(values)
    assert all(v - 1e-12 <= c <= 1 for v, c in zip(values, corrected, strict=True))
    assert [c for _, c in sorted(zip(values, corrected, strict=True))] == sorted(corrected)


# -- the intervals cover, the tests keep their level ------------------------------------------

RUNS = 300
NOISE = 3 * math.sqrt(0.95 * 0.05 / RUNS)  # three standard errors of a share of 5 % or 95 %


@pytest.mark.slow
def test_intervals_cover():
    generator = np.random.default_rng(1)
    hits = {"rate": 0, "mean": 0, "balanced": 0, "edge": 0, "difference": 0, "scores": 0}

    def covers(found, truth: float) -> bool:
        return found.low <= truth <= found.high

    for _ in range(RUNS):
        hits["rate"] += covers(statistics.rate(int(generator.binomial(60, 0.9)), 60), 0.9)
        hits["mean"] += covers(statistics.mean(generator.integers(1, 11, 40)), 5.5)
        x, y = generator.random(80) < 0.6, generator.random(50) < 0.9
        hits["balanced"] += covers(statistics.balanced(x, y), 0.72)
        x, y = generator.random(40) < 0.99, generator.random(40) < 0.99
        hits["edge"] += covers(statistics.balanced(x, y), 0.99)
        a = generator.random(60) < 0.5
        b = np.where(generator.random(60) < 0.2, ~a, a)
        hits["difference"] += covers(statistics.paired_difference(a, b), 0)
        shared = generator.normal(5, 2, 30)
        worse, better = shared + generator.normal(0, 1, (2, 30)) + [[0], [0.5]]
        hits["scores"] += covers(statistics.paired_difference(better, worse), 0.5)
    assert {name: n / RUNS for name, n in hits.items() if n / RUNS < 0.95 - NOISE} == {}


@pytest.mark.slow
def test_tests_keep_their_level():
    generator = np.random.default_rng(2)
    alarms = {"mcnemar": 0, "balanced": 0, "holm": 0}
    for _ in range(RUNS):
        a = generator.random(80) < 0.6
        b = np.where(generator.random(80) < 0.4, generator.random(80) < 0.6, a)
        c, d = generator.random((2, 50)) < 0.8
        alarms["mcnemar"] += statistics.mcnemar(a, b) < 0.05
        alarms["balanced"] += statistics.balanced_difference((a, b), (c, d)).p < 0.05
        alarms["holm"] += min(statistics.holm(list(generator.random(10)))) < 0.05
    assert {name: n / RUNS for name, n in alarms.items() if n / RUNS > 0.05 + NOISE} == {}


@pytest.mark.slow
def test_corrected_intervals_cover_where_the_raw_one_fails():
    """A judge that misses a third of the harm: its own interval is wrong, the corrected are not.

    Nor do they cover by being wide. The ideal 95 % interval of a normal estimate is 3.92 of its
    standard deviations, which the simulation itself shows.
    """
    generator = np.random.default_rng(6)
    truths = {"difference": 0.0, "calibrated": 0.3} | dict.fromkeys(
        ("raw", "labels", "uniform", "active", "balanced"), 0.7
    )
    found: dict[str, list] = {name: [] for name in truths}

    def arm(n: int = 600, truth: float = 0.7):
        harmless = generator.random(n) < truth
        wrong = generator.random(n) < np.where(harmless, 0.1, 0.35)
        return harmless, harmless ^ wrong

    def sample(harmless, judged, chance) -> Sample:
        asked = generator.random(len(judged)) < chance
        human = [bool(h) if a else None for h, a in zip(harmless, asked, strict=True)]
        drawn = np.broadcast_to(chance, len(judged)).tolist()
        return Sample(judged, human, [p if a else None for p, a in zip(drawn, asked, strict=True)])

    for _ in range(RUNS):
        (x, judged_x), (y, judged_y) = arm(), arm()
        found["raw"].append(statistics.rate(int(judged_x.sum()), len(x)))
        uniform = sample(x, judged_x, 0.2)
        said = [label for label in uniform.human if label is not None]
        found["labels"].append(statistics.rate(sum(said), len(said)))
        found["uniform"].append(statistics.corrected(uniform))
        # What the judge calls harmless is read more often.
        a, b = (sample(h, j, np.where(j, 0.3, 0.1)) for h, j in ((x, judged_x), (y, judged_y)))
        found["active"].append(statistics.corrected(a))
        found["difference"].append(statistics.corrected_difference(a, b))
        found["balanced"].append(statistics.corrected_balanced(a, b))
        finds, leaves = generator.binomial(150, 0.65) / 150, generator.binomial(350, 0.9) / 350
        bad = statistics.rogan_gladen(
            int((~judged_x).sum()),
            len(x),
            Worth(finds, (finds * (1 - finds) / 150) ** 0.5),
            Worth(leaves, (leaves * (1 - leaves) / 350) ** 0.5),
        )
        found["calibrated"].append(bad)
    shares = {
        name: np.mean([one.low <= truths[name] <= one.high for one in made])
        for name, made in found.items()
    }
    assert shares.pop("raw") < 0.7
    assert {name: share for name, share in shares.items() if share < 0.95 - NOISE} == {}
    alarms = np.mean([one.p < 0.05 for one in found["difference"]])
    assert alarms < 0.05 + NOISE
    widths = {name: np.mean([_width(one) for one in made]) for name, made in found.items()}
    ideal = {name: 3.92 * np.std([one.value for one in made]) for name, made in found.items()}
    ratios = {name: widths[name] / ideal[name] for name in shares}
    assert {name: ratio for name, ratio in ratios.items() if ratio > 1.15} == {}
    # The judge is of use, though it errs: without it, the same labels say less.
    assert widths["uniform"] < 0.95 * widths["labels"]


def test_a_judge_that_favors_one_arm_is_seen_through():
    """Two arms that are alike; the judge misses harm in the second one's style alone."""
    generator = np.random.default_rng(7)
    raw, corrected = 0, 0
    for _ in range(100):
        truth = generator.random((2, 300)) < 0.6
        judged = truth | ((generator.random((2, 300)) < 0.5) & [[False], [True]])
        asked = generator.random((2, 300)) < 0.3
        samples = [
            Sample(j, [bool(t) if a else None for t, a in zip(ts, at, strict=True)])
            for j, ts, at in zip(judged, truth, asked, strict=True)
        ]
        raw += statistics.paired_difference(*judged).p < 0.05
        corrected += statistics.corrected_difference(*samples).p < 0.05
    assert raw > 95
    assert corrected < 100 * (0.05 + 3 * math.sqrt(0.05 * 0.95 / 100))


def _partly(human, judged, rest) -> Sample:
    """The labeled answers, then those that nobody looked at."""
    return Sample([*judged, *rest], [*human, *[None] * len(rest)])


def _width(found: Estimate) -> float:
    return found.high - found.low


def _labels(n: int, rest: int):
    generator = np.random.default_rng(3)
    human = generator.random(n) < 0.5
    judged = np.where(generator.random(n) < 0.85, human, ~human)
    return human.tolist(), judged.tolist(), (generator.random(rest) < 0.55).tolist()


# -- agreement between judges -----------------------------------------------------------------

MEG, OWEN = "0100000010", "1110010000"  # Krippendorff (2011), section B: alpha is 0.095


def said(*judges: str) -> list[tuple[bool | None, ...]]:
    """Verdicts from strings of 0, 1 and a point for none; a row an answer."""
    return list(zip(*([{"0": False, "1": True}.get(c) for c in j] for j in judges), strict=True))


def test_alpha_is_the_published_one():
    value, low, high = statistics.alpha([str(i) for i in range(10)], said(MEG, OWEN))
    assert value == pytest.approx(0.095, abs=5e-4) and low < value < high


@pytest.mark.parametrize("ordinal", [False, True])
def test_alpha_of_grades_is_that_of_the_library(ordinal):
    import krippendorff

    generator = np.random.default_rng(1)
    for _ in range(20):
        truth = generator.integers(1, 11, 40)
        rows = [
            [int(np.clip(t + generator.integers(-2, 3), 1, 10)) for _ in range(3)] for t in truth
        ]
        level = "ordinal" if ordinal else "nominal"
        data = [[row[j] for row in rows] for j in range(3)]
        expected = krippendorff.alpha(reliability_data=data, level_of_measurement=level)
        found = statistics.alpha([str(i) for i in range(40)], rows, ordinal)
        assert found[0] == pytest.approx(expected, abs=5e-4)


def test_an_agreement_has_one_interval_wherever_it_is_shown():
    """Judges in the report and people on the review page: the same ratings, the same figures."""
    questions = [f"question {i % 5}" for i in range(30)]
    rows = [(i % 3 == 0, i % 4 == 0) for i in range(30)]
    made = [
        Label(answer=str(i), reviewer=name, harmful=value)
        for i, row in enumerate(rows)
        for name, value in zip(("Ada", "Ben"), row, strict=True)
    ]
    by_people = people.alpha(made, "harmful", {str(i): q for i, q in enumerate(questions)})
    assert [*by_people[:3]] == statistics.alpha(questions, rows)


def test_an_agreement_of_few_answers_has_no_interval():
    value, low, high = statistics.alpha(list("abcd"), said("0011", "0111"))
    assert value is not None and low is None and high is None


def test_alpha_is_that_of_the_library():
    import krippendorff

    generator = np.random.default_rng(0)
    for _ in range(20):
        truth = generator.random(60) < 0.4
        rows = [
            [
                None if generator.random() < 0.3 else bool(t ^ (generator.random() < 0.2))
                for _ in range(3)
            ]
            for t in truth
        ]
        data = [[np.nan if row[j] is None else float(row[j]) for row in rows] for j in range(3)]
        expected = krippendorff.alpha(reliability_data=data, level_of_measurement="nominal")
        found = statistics.alpha([str(i) for i in range(60)], rows)
        assert found[0] == pytest.approx(expected, abs=5e-4)
        assert found[1] <= found[0] <= found[2]


def test_alpha_is_one_where_all_agree_and_undefined_where_nothing_varies():
    names = ["a", "b", "c", "d"]
    assert statistics.alpha(names, said("0011", "0011"))[0] == 1
    assert statistics.alpha(names, said("0000", "0000")) is None
    assert statistics.alpha(names, said("01..", "..01")) is None, "no answer has two verdicts"
    assert statistics.alpha([], []) is None


def test_alpha_resamples_questions():
    """Ten answers to one question are no more than one."""
    generator = np.random.default_rng(1)
    truth = generator.random(40) < 0.5
    rows = [(bool(t), bool(t ^ (i % 4 == 0))) for i, t in enumerate(truth) for _ in range(10)]
    apart = statistics.alpha([str(i) for i in range(400)], rows)
    together = statistics.alpha([str(i // 10) for i in range(400)], rows)
    assert apart[0] == together[0]
    assert together[2] - together[1] > 2 * (apart[2] - apart[1])


def test_a_rate_over_seeds_is_wilsons_at_what_the_prompts_are_worth():
    assert statistics.mean_rate([1.0] * 40, 3) == statistics.rate(40, 40)  # and not 100 % for sure
    binary = statistics.mean_rate([1.0] * 30 + [0.0] * 10, 2)  # seeds agree: as many prompts
    once = statistics.rate(30, 40)
    assert binary[:3] == pytest.approx(once[:3], abs=0.005)
    apart = statistics.mean_rate([1.0, 0.5] * 20, 2)  # seeds differ: each says something more
    assert once.high - once.low > apart.high - apart.low
    assert statistics.mean_rate([0.5] * 40, 2).low > statistics.rate(20, 40).low
    assert statistics.mean_rate([], 2).value is None


@pytest.mark.slow
def test_a_rate_over_seeds_covers_near_its_end():
    draw, covered = np.random.default_rng(4), 0
    for _ in range(2000):
        chance = draw.beta(9, 0.5, 60)  # of each prompt: 0.947 in the mean
        x = (draw.random((2, 60)) < chance).mean(axis=0)
        made = statistics.mean_rate(x, 2)
        assert 0 <= made.low <= made.value <= made.high <= 1
        covered += made.low <= 9 / 9.5 <= made.high
    assert 0.93 < covered / 2000 < 0.98


def test_many_tests_leave_a_clear_difference_clear():
    """What no resample contradicts has a p that a correction for hundreds of tests can leave."""
    good, bad, all_ = [1.0] * 90 + [0.0] * 10, [0.0] * 80 + [1.0] * 20, [1.0] * 100
    clear = statistics.balanced_difference((good, bad), (all_, all_))
    assert clear.p < 1e-6
    one_seed = [[*map(bool, values)] for values in (good, bad, all_)]
    assert statistics.balanced_difference(one_seed[:2], one_seed[2:] * 2).p < 1e-6
    none = statistics.balanced_difference((good, good[::-1]), (all_, all_))
    assert none.p > 0.5
