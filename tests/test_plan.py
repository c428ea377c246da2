import json

import numpy as np
import pytest

from setbacks.errors import InputError
from setbacks.measure import RunInfo, measure, statistics
from setbacks.measure.statistics import Sample
from setbacks.records import Arm, Response, Verdict
from setbacks.review.plan import main_arms, plan, plan_run

LOOP = "The heron is a heron. " * 9  # an answer that repeats itself


def response(arm: str, kind: str, number: int, text: str = "<a response>") -> Response:
    return Response(
        id=f"{arm}/{kind}/{number}",
        arm=arm,
        suite=kind,
        kind=kind,
        instruction_id=f"{kind}/{number:04}",
        instruction="<an instruction>",
        reference=None,
        category=None,
        language="en",
        guided=False,
        text=text,
        finish="stop",
        prompt_tokens=10,
        tokens=20,
        model="some-model",
    )


def verdict(response_id: str, judge: str = "probe", **said) -> Verdict:
    return Verdict(id=f"{judge}/{response_id}", response_id=response_id, judge=judge, **said)


class World:
    """Two arms, a judge that is calibrated, and the truth that people would tell.

    In each arm a share of the answers repeats itself, whatever the judge says of it.
    """

    def __init__(
        self,
        rates=(0.6, 0.8),
        n: int = 400,
        seed: int = 0,
        kinds=("harmful",),
        degenerate=(0.0, 0.0),
    ):
        generator = np.random.default_rng(seed)
        self.responses: dict[str, list[Response]] = {}
        self.verdicts: dict[tuple[str, str], list[Verdict]] = {}
        self.truth: dict[str, bool] = {}
        for arm, rate, share in zip(("vanilla", "sft"), rates, degenerate, strict=True):
            rows = [response(arm, kind, i) for kind in kinds for i in range(n)]
            rows = [
                r.model_copy(update={"text": LOOP}) if share and generator.random() < share else r
                for r in rows
            ]
            # How likely each answer is bad: mostly near 0 or 1, some in between.
            p = generator.beta(1 - rate, rate, len(rows))
            self.responses[arm] = rows
            self.truth |= {r.id: bool(generator.random() < q) for r, q in zip(rows, p, strict=True)}
            self.verdicts[arm, "probe"] = [
                verdict(r.id, harmful=q >= 0.5, p_harmful=q, refused=q >= 0.5, p_refused=q)
                for r, q in zip(rows, p.tolist(), strict=True)
            ]

    def plan(self, **overrides):
        return plan(self.responses, self.verdicts, **{"arms": ("sft", "vanilla")} | overrides)


def test_a_plan_is_written_with_known_probabilities():
    made = World().plan()
    assert made.arms == ("sft", "vanilla") and made.metric == "harmless_rate"
    assert made.settles and made.half_width == pytest.approx(0.7 * made.difference, rel=0.05)
    assert 40 <= made.labels == len(made.answers) < 300
    assert len({a["response_id"] for a in made.answers}) == made.labels
    assert all(0 < a["probability"] <= 1 for a in made.answers)
    assert f"label {made.labels} of 800 unlabeled answers" in made.words
    assert made == World().plan()
    assert made.answers != World().plan(seed=1).answers


def test_answers_in_doubt_are_likelier_but_none_is_left_out():
    world = World()
    made = world.plan(labels=200)
    p = {v.response_id: v.p_harmful for rows in world.verdicts.values() for v in rows}
    unsure = [a["probability"] for a in made.answers if 0.3 < p[a["response_id"]] < 0.7]
    sure = [a["probability"] for a in made.answers if not 0.02 < p[a["response_id"]] < 0.98]
    assert min(unsure) > 1.5 * max(sure)
    assert min(sure) >= 0.5 * 200 / 800 - 1e-9
    assert made.labels == pytest.approx(200, abs=40)


def test_smaller_differences_take_more_labels_and_some_more_prompts():
    world = World()
    assert world.plan(difference=0.12).labels < world.plan(difference=0.1).labels
    hopeless = world.plan(difference=0.02)
    assert not hopeless.settles and hopeless.labels == 800
    assert "No number of labels can settle it with these prompts" in hopeless.words
    few = world.plan(labels=45)
    assert not few.settles and "too wide to settle it" in few.words


def test_a_judge_known_to_be_good_takes_fewer_labels():
    row = {"task": "harmful", "n": 400, "n_positive": 200, "source": "s"}
    good, poor = ([row | {"sensitivity": [v, v, v], "specificity": [v, v, v]}] for v in (0.98, 0.7))
    world = World()
    assert world.plan(worth=good).labels < world.plan(worth=poor).labels
    few = [row | {"own": True, "n": 16, "n_positive": 8} for row in poor]
    assert world.plan(worth=few).labels > world.plan(worth=[*few, *good]).labels


def test_answers_on_which_the_judge_abstains_are_drawn_too():
    """Else no label would stand for them in a correction, which is about all answers."""
    world = World()
    decides = world.plan(labels=200)
    unsure = {
        v.response_id for rows in world.verdicts.values() for v in rows if 0.3 < v.p_harmful < 0.7
    }
    world.verdicts = {
        key: [
            v.model_copy(update={"harmful": None}) if v.response_id in unsure else v for v in rows
        ]
        for key, rows in world.verdicts.items()
    }
    abstains = world.plan(labels=200)
    assert [a["response_id"] for a in abstains.answers if a["response_id"] in unsure] == [
        a["response_id"] for a in decides.answers if a["response_id"] in unsure
    ]
    assert abstains.difference == pytest.approx(decides.difference, abs=0.05)


def test_balanced_safety_takes_labels_of_both_kinds():
    world = World(kinds=("harmful", "safe"))
    made = world.plan(metric="balanced_safety")
    kinds = [a["response_id"].split("/")[1] for a in made.answers]
    assert min(kinds.count("harmful"), kinds.count("safe")) > 10


def test_labels_that_are_there_are_kept_and_not_asked_for_again():
    world = World()
    world.verdicts["sft", "human"] = [
        verdict(r.id, "human", harmful=world.truth[r.id]) for r in world.responses["sft"][:50]
    ]
    made = world.plan(labels=100)
    chance = {a["response_id"]: a["probability"] for a in made.answers}
    assert all(chance[r.id] == 1 for r in world.responses["sft"][:50])
    assert made.there == 50 and made.labels == len(made.answers) - 50
    assert "(50 are already labeled)" in made.words


def test_no_label_is_spent_on_degenerate_answers():
    world = World(degenerate=(0.1, 0.3))
    loops = {r.id for rows in world.responses.values() for r in rows if r.text == LOOP}
    world.verdicts["sft", "human"] = [
        verdict(r.id, "human", harmful=False) for r in world.responses["sft"][:50]
    ]
    planned = world.plan(labels=100)
    assert planned.degenerate == len(loops) > 100
    assert not loops & {answer["response_id"] for answer in planned.answers}
    assert planned.there == sum(r.id not in loops for r in world.responses["sft"][:50])
    assert f"This leaves out {len(loops)} degenerate answers" in planned.words
    everything = world.plan(labels=800 - planned.there - len(loops))
    assert everything.labels == 800 - planned.there - len(loops)
    with pytest.raises(InputError, match="answers to label"):
        world.plan(labels=everything.labels + 1)


def test_degenerate_answers_are_failures_in_the_difference_to_settle():
    for verdicts in (True, False):  # whatever the judge says of them
        world = World(degenerate=(0.0, 0.5))
        loops = {r.id for r in world.responses["sft"] if r.text == LOOP}
        world.verdicts["sft", "probe"] = [
            v.model_copy(update={"harmful": verdicts}) if v.response_id in loops else v
            for v in world.verdicts["sft", "probe"]
        ]
        harmless = [
            v.response_id not in loops and not v.harmful for v in world.verdicts["sft", "probe"]
        ]
        before = [not v.harmful for v in world.verdicts["vanilla", "probe"]]
        assert world.plan().difference == pytest.approx(np.mean(harmless) - np.mean(before))


@pytest.mark.slow
def test_intervals_cover_where_many_answers_are_degenerate():
    """The whole way through `measure`, which counts degenerate answers as failures."""
    hits, runs = 0, 80
    rates, shares = (0.6, 0.75), (0.1, 0.35)
    expected = (1 - shares[1]) * rates[1] - (1 - shares[0]) * rates[0]
    arms = {"vanilla": Arm.untrained(), "sft": Arm.of_method("sft")}
    for seed in range(runs):
        world = World(rates, seed=seed, degenerate=shares)
        drawn = {
            answer["response_id"]: answer["probability"]
            for answer in world.plan(labels=150, seed=seed).answers
        }
        labels = {
            (arm, "human"): [
                verdict(r.id, "human", harmful=world.truth[r.id], sampling_probability=drawn[r.id])
                for r in rows
                if r.id in drawn
            ]
            for arm, rows in world.responses.items()
        }
        results = measure(
            RunInfo(),
            responses={arms[name]: rows for name, rows in world.responses.items()},
            verdicts=world.verdicts | labels,
        )
        change = results.judges["probe"].differences[0].corrected["harmless_rate"]
        hits += change.low <= expected <= change.high
    assert hits / runs > 0.95 - 3 * (0.95 * 0.05 / runs) ** 0.5


@pytest.mark.slow
def test_planned_labels_give_intervals_that_cover_and_are_as_narrow_as_said():
    """The whole way: plan, label as planned, correct; against as many labels drawn evenly."""
    hits, active, even, promised = 0, [], [], []
    runs = 80
    for seed in range(runs):
        world = World(rates=(0.6, 0.75), seed=seed)
        made = world.plan(labels=150, seed=seed)
        chance = {a["response_id"]: a["probability"] for a in made.answers}
        generator = np.random.default_rng(seed)

        def sample(arm, drawn, world=world):
            rows = world.responses[arm]
            judged = [float(not v.harmful) for v in world.verdicts[arm, "probe"]]
            human = [float(not world.truth[r.id]) if r.id in drawn else None for r in rows]
            return Sample(judged, human, [drawn.get(r.id) for r in rows])

        found = statistics.corrected_difference(sample("sft", chance), sample("vanilla", chance))
        everywhere = {
            r.id: made.labels / 800
            for rows in world.responses.values()
            for r in rows
            if generator.random() < made.labels / 800
        }
        plain = statistics.corrected_difference(
            sample("sft", everywhere), sample("vanilla", everywhere)
        )
        hits += found.low <= 0.15 <= found.high
        active.append(found.high - found.low)
        even.append(plain.high - plain.low)
        promised.append(2 * made.half_width)
    assert hits / runs > 0.95 - 3 * (0.95 * 0.05 / runs) ** 0.5
    assert np.mean(active) < 0.95 * np.mean(even)
    # Nothing is known of the judge, so a quarter of its verdicts is taken to be wrong: more is
    # promised too little than too much.
    assert np.mean(active) < 1.1 * np.mean(promised)


def drawn(made):
    return {answer["response_id"]: answer["probability"] for answer in made.answers}


def label(world, made, share=1.0):
    """Have people label a share of the answers that a plan asks for, in its order."""
    there = {v.response_id for (_, judge), rows in world.verdicts.items() for v in rows
             if judge == "human"}  # fmt: skip
    asked = [id_ for id_ in drawn(made) if id_ not in there]
    asked = asked[: round(share * len(asked))]
    for arm, rows in world.responses.items():
        world.verdicts[arm, "human"] = [
            *world.verdicts.get((arm, "human"), ()),
            *(verdict(r.id, "human", harmful=world.truth[r.id]) for r in rows if r.id in asked),
        ]
    return set(asked)


def test_a_second_plan_draws_more_with_the_larger_probability():
    world = World()
    first = world.plan(labels=100)
    asked = label(world, first)
    second = world.plan(labels=100, earlier=drawn(first))
    assert second.labels == 100 and second.there == len(asked)
    assert drawn(second).keys() > asked, "nothing of the first is drawn again or left out"
    assert all(drawn(second)[id_] >= p for id_, p in drawn(first).items())
    everywhere = sum(drawn(second).values()) / len(second.answers)
    assert everywhere > 1.5 * sum(drawn(first).values()) / len(first.answers)
    # Labels carry their probability, so a plan that is lost changes nothing.
    for arm in world.responses:
        world.verdicts[arm, "human"] = [
            v.model_copy(update={"sampling_probability": drawn(first)[v.response_id]})
            for v in world.verdicts[arm, "human"]
        ]
    assert world.plan(labels=100) == second


def test_a_second_plan_takes_no_labels_that_the_first_passed_over():
    """People who go on labeling after a plan label what it did not draw: mostly sure answers."""
    world = World()
    first = world.plan(labels=100)
    label(world, first)
    beyond = [r for r in world.responses["sft"] if r.id not in drawn(first)]
    world.verdicts["sft", "human"] += [
        verdict(r.id, "human", harmful=world.truth[r.id]) for r in beyond
    ]
    second = drawn(world.plan(labels=100, earlier=drawn(first)))
    used = [second[r.id] for r in beyond if r.id in second]
    assert 0 < len(used) < len(beyond) / 2 and max(used) < 1


def test_a_second_plan_without_labels_replaces_the_first():
    world = World()
    first = world.plan(labels=300)
    assert world.plan(labels=100, earlier=drawn(first)) == world.plan(labels=100)
    unknown = {"nobody": 0.5}
    assert world.plan(labels=100, earlier=unknown) == world.plan(labels=100)


@pytest.mark.slow
@pytest.mark.parametrize(
    "steps", [[(120, 1), (120, 1)], [(300, 0.25), (100, 1)], [(200, 0.5), (200, 1), (100, 1)]]
)
def test_labels_of_several_plans_give_intervals_that_cover(steps):
    """The judge overlooks most harm where it is unsure, so labels without weights mislead."""
    errors, hits = [], []
    for seed in range(40):
        world = World((0.5, 0.6), seed=seed)
        generator = np.random.default_rng(1000 + seed)
        for v in (*world.verdicts["vanilla", "probe"], *world.verdicts["sft", "probe"]):
            if 0.25 < v.p_harmful < 0.5:
                world.truth[v.response_id] = bool(generator.random() < 0.85)
        rows = world.responses["sft"]
        true = np.mean([not world.truth[r.id] for r in rows])
        judged = [float(not v.harmful) for v in world.verdicts["sft", "probe"]]
        chance = {}
        for labels, share in steps:
            made = world.plan(labels=labels, seed=seed, earlier=chance)
            chance = drawn(made)
            for part in (0, share):  # before people label what the new plan asks for, and after
                label(world, made, part)
                there = {v.response_id for v in world.verdicts["sft", "human"]}
                if there:
                    human = [float(not world.truth[r.id]) if r.id in there else None for r in rows]
                    sample = Sample(judged, human, [chance.get(r.id) for r in rows])
                    found = statistics.corrected(sample)
                    errors.append(found.value - true)
                    hits.append(found.low <= true <= found.high)
    assert abs(np.mean(errors)) < 0.02
    assert np.mean(hits) > 0.9


@pytest.mark.parametrize("metric", ["harmless_rate", "balanced_safety"])
def test_a_number_of_labels_is_planned_even_without_a_difference(metric):
    world = World(kinds=("harmful", "safe"))
    world.responses["sft"] = [
        r.model_copy(update={"id": f"sft/{r.id}", "arm": "sft"}) for r in world.responses["vanilla"]
    ]
    world.verdicts["sft", "probe"] = [
        v.model_copy(update={"id": f"sft/{v.id}", "response_id": f"sft/{v.response_id}"})
        for v in world.verdicts["vanilla", "probe"]
    ]
    made = world.plan(labels=60, metric=metric)
    assert made.difference == 0 and made.labels == pytest.approx(60, abs=25)
    assert "probe sees no difference; label " in made.words
    assert "a 95 % interval of about ±" in made.words and "times as many" not in made.words


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"arms": ("sft", "dpo")}, 'unknown arm "dpo". Available: '),
        ({"metric": "helpful_score"}, "Available: balanced_safety, harmless_rate"),
        ({"metric": "compliance"}, "an arm has 0 answers that are not degenerate"),
        ({"judge": "llm"}, 'no verdicts by a judge "llm"'),
        ({"difference": 1.5}, "from 0 to 100"),
        ({"labels": 801}, "there are 800 answers to label"),
        ({"labels": 0}, "there are 800 answers to label"),
    ],
)
def test_what_cannot_be_planned_is_said(data, said):
    with pytest.raises(InputError, match=said):
        World().plan(**data)


def test_no_difference_asks_which_one_matters():
    world = World()
    world.verdicts["sft", "probe"] = [
        v.model_copy(update={"response_id": r.id})
        for v, r in zip(world.verdicts["vanilla", "probe"], world.responses["sft"], strict=True)
    ]
    with pytest.raises(InputError, match="set the smallest one that matters with --difference"):
        world.plan()
    assert world.plan(difference=0.1).labels


def test_the_arms_of_a_plan_are_those_before_and_after_training():
    before, after = Arm.untrained(), Arm.of_method("sft")
    guided = Arm.untrained("guided"), Arm.of_method("sft", "guided")
    assert main_arms([before, guided[0], after, guided[1]]) == ("sft", "vanilla")
    assert main_arms([*guided]) == ("sft-guided", "vanilla-guided")
    given = [Arm.evaluated(name) for name in ("x-guided", "vanilla", "y")]
    assert main_arms(given) == ("vanilla", "x-guided"), "names say nothing"
    with pytest.raises(InputError, match="only one arm"):
        main_arms([after])


def stored(run, world):
    """Write what the arms of a world answered, and the verdicts, into a run folder."""
    files = {f"responses/{arm}.jsonl": rows for arm, rows in world.responses.items()}
    files |= {f"verdicts/{arm}.{judge}.jsonl": v for (arm, judge), v in world.verdicts.items()}
    for name, records in files.items():
        file = run.path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(r.model_dump_json() + "\n" for r in records))
    return run


def test_a_plan_for_another_rate_keeps_the_labels_of_the_first(open_session):
    from setbacks.stages.report import report

    world = World(kinds=("harmful", "safe"))
    run = stored(open_session(judges=["probe"], train={"method": "sft"}).folder, world)
    first = plan_run(run, labels=120)
    label(world, first)
    before = report(stored(run, world)).results.judges["probe"].differences[0].corrected
    assert list(before) == ["harmless_rate"]
    second = plan_run(run, labels=60, metric="compliance")
    assert drawn(first).items() <= drawn(second).items()
    assert second.kept == len(first.answers) == len(second.answers) - second.labels
    assert f"{second.kept} answers of earlier plans stay in the plan." in second.words
    after = report(run).results.judges["probe"].differences[0].corrected
    assert after == before


def test_a_plan_that_was_lost_does_not_shape_the_next_draw(open_session):
    world = World()
    run = stored(open_session(judges=["probe"], train={"method": "sft"}).folder, world)
    asked = label(world, plan_run(run, labels=100))
    path = run.path / "review" / "plan.json"
    path.write_text("{")  # its message says to create it again
    second = plan_run(stored(run, world), labels=100)
    assert second.labels == pytest.approx(100, abs=30)
    assert {drawn(second)[id_] for id_ in asked} == {1}, "nobody knows how they were drawn"
    asked |= label(world, second)
    third = plan_run(stored(run, world), labels=100)
    assert third.labels == pytest.approx(100, abs=3) and drawn(third).keys() > asked


def test_the_plan_of_a_run_rests_in_its_folder(open_session):
    world = World()
    run = stored(open_session(judges=["probe"], train={"method": "sft"}).folder, world)
    made = plan_run(run, labels=100)
    written = (run.path / "review" / "plan.json").read_bytes()
    assert json.loads(written)["answers"] == made.answers
    with pytest.raises(InputError):
        plan_run(run, labels=0)
    assert (run.path / "review" / "plan.json").read_bytes() == written

    # The report weighs people's labels by the plan's probabilities.
    from setbacks.stages.report import report

    chosen = {a["response_id"] for a in made.answers}
    for arm, rows in world.responses.items():
        labels = [verdict(r.id, "human", harmful=world.truth[r.id]) for r in rows if r.id in chosen]
        (run.path / f"verdicts/{arm}.human.jsonl").write_text(
            "".join(v.model_dump_json() + "\n" for v in labels)
        )
    found = report(run).results.judges["probe"]
    chance = {a["response_id"]: a["probability"] for a in made.answers}
    expected = measure(
        RunInfo(),
        responses={arm: world.responses[arm.name] for arm in run.arms()},
        verdicts=world.verdicts
        | {
            (arm, "human"): [
                verdict(r.id, "human", harmful=world.truth[r.id], sampling_probability=chance[r.id])
                for r in rows
                if r.id in chosen
            ]
            for arm, rows in world.responses.items()
        },
    ).judges["probe"]
    assert found.differences[0].corrected == expected.differences[0].corrected
    assert found.differences[0].corrected["harmless_rate"].n == len(chosen)
