"""Settings that a method does not use: it names them, and a run says so."""

from contextlib import suppress

import pytest

from setbacks.errors import InputError
from setbacks.methods import CHOICE_OF_ANALYSES, LEARNING_OF_ANALYSES, open_method, unused
from setbacks.methods.corrections import CORRECTING
from setbacks.pipeline import run_until
from setbacks.plugins import installed
from setbacks.recipe import Mix, Recipe, Train
from setbacks.records import Analysis
from setbacks.runs.folder import Run
from setbacks.studies import carry_out
from setbacks.studies.ablation import applicable

SOME_USE = {*CHOICE_OF_ANALYSES, *LEARNING_OF_ANALYSES, *CORRECTING, "safe"}
SOME_USE -= {"verdict_weight"}  # which only the loss reads

METHODS = installed("methods").keys() - {"posterior_distillation"}  # needs an adapter


def analysis(number, harmful=True, kind="harmful"):
    return Analysis(
        id=f"<{number}>",
        response_id=str(number),
        instruction=f"<instruction {number}>",
        response="<a response>",
        harmful=harmful,
        kind=kind,
        text=f"<analysis {number}>",
        candidate=0,
        checks={"agrees": True},
        score=1.0,
        category=None,
        language="en",
        analyst="m",
    )


@pytest.fixture
def keys_read(monkeypatch):
    """The keys of `train` and of `train.mix` that are read from now on."""
    found = set()
    for section, prefix in ((Train, ""), (Mix, "mix.")):

        def read(self, name, prefix=prefix):
            found.add(prefix + name)
            return object.__getattribute__(self, name)

        monkeypatch.setattr(section, "__getattribute__", read)
    return found


@pytest.mark.parametrize(
    ("method", "options"),
    [
        *((name, {}) for name in sorted(METHODS - {"mistake_analysis"})),
        ("mistake_analysis", {"mix": {"safe": 1.0}}),
        ("dpo", {"pairs_from": "corrections"}),
    ],
    ids=str,
)
def test_a_method_names_the_settings_that_it_does_not_use(
    method, options, open_session, data, keys_read
):
    train = {"method": method, "verdict": "first"} | options
    run = open_session(train=train | {name: [str(data)] for name in ("safe", "helpful")})
    analyses = [analysis(n) for n in range(4)] + [analysis(n, False) for n in range(10, 14)]
    analyses += [analysis(20, False, "refusal")]
    chosen = open_method(run.recipe)
    unused = {*chosen.unused(run.recipe)}
    keys_read.clear()
    with suppress(InputError):  # the fake engine repeats its prompts: no correction is usable
        material = chosen.prepare(run, analyses)
        chosen.examples(run.recipe, material)
    has = {key for key in SOME_USE if key.partition(".")[0] in type(run.recipe.train).model_fields}
    assert unused & has == has - keys_read


def test_a_setting_that_the_method_does_not_use_is_noticed(recipe_data, fake_engine, tmp_path):
    def notices(name, **train):
        data = recipe_data()
        run_until(
            Recipe.model_validate(data | {"train": data["train"] | train}),
            tmp_path / name,
            "induce",
        )
        return Run(tmp_path / name).notices()

    def unused(method, *keys):
        told = "train.{} is set, but {} does not use it with these settings"
        return [told.format(key, method) for key in keys]

    given = {"mix": {"contrast": 0.5, "helpful": 0.5}, "question": "guided", "verdict": "first"}
    default = "mistake_distillation"
    of_default = notices("a", method=default, context="guidance", analyses="shuffled", **given)
    assert of_default == unused(default, "analyses", "mix.contrast", "question", "verdict")
    divergence = {"distill": "forward_kl", "top_k": 5, "jsd_beta": 0.1, "mix": {}}
    assert notices("b", method=default, **divergence) == unused(default, "jsd_beta")
    of_analysis = notices("c", verdict_weight=5, helpful_sampling={"max_new_tokens": 9}, mix={})
    assert of_analysis == unused("mistake_analysis", "helpful_sampling", "safe", "verdict_weight")
    assert notices("d", verdict="first", verdict_weight=5) == []


@pytest.mark.parametrize("rank_by", ["spoken", "states"])
def test_safe_answers_are_used_by_a_probe_that_ranks_drafts(rank_by):
    recipe = Recipe.model_validate(
        {
            "train": {"method": "mistake_analysis"},
            "respond": {"posterior": {"rank_by": rank_by}},
        }
    )
    assert ("safe" in unused(recipe)) == (rank_by == "spoken")


@pytest.mark.parametrize(
    ("method", "factor"),
    [
        ("mistake_distillation", "no_analyses"),
        ("mistake_distillation", "no_safe_answers"),
        ("mistake_analysis", "no_contrast"),
        ("mistake_analysis_sft", "verdict_first"),
        ("sft", "no_helpful"),
    ],
)
def test_an_ablation_varies_what_its_method_uses(method, factor):
    recipe = Recipe.model_validate({"train": {"method": method}})
    assert factor in applicable(recipe)
    for other in ("verdict_first", "no_contrast"):
        learns = "analysis" in method
        assert (other in applicable(recipe)) == learns


@pytest.mark.parametrize(
    ("study", "method", "options", "message"),
    [
        (
            "ablation",
            "mistake_distillation",
            {"factors": ["verdict_first"]},
            "train.verdict, which",
        ),
        ("ablation", "sft", {"factors": ["no_analyses"]}, "train.context, which sft does not use"),
        ("ablation", "sft", {"factors": ["no_safe_answers"]}, "leaves sft without the data"),
        ("quantity-quality", "critique_revise", {}, "does not choose among analyses"),
    ],
)
def test_a_study_of_what_its_method_does_not_use_does_not_begin(
    study, method, options, message, data, tmp_path
):
    train = {"method": method, "safe": [str(data)], "helpful": [str(data)]}
    recipe = Recipe.model_validate({"train": train, "study": options})
    with pytest.raises(InputError, match=message):
        carry_out(study, recipe, tmp_path / "study")
    assert not (tmp_path / "study").exists()
