"""Settings that a method does not use: it names them, and a run says so."""

import json
from contextlib import suppress

import pytest
from conftest import analysis_of

from setbacks.engines import open_engine
from setbacks.errors import InputError
from setbacks.methods import CHOICE_OF_ANALYSES, LEARNING_OF_ANALYSES, open_method, unused
from setbacks.methods.corrections import CORRECTING
from setbacks.methods.rlhf import steps_of
from setbacks.pipeline import run_until
from setbacks.plugins import installed
from setbacks.recipe import Mix, Recipe, Sampling, Train
from setbacks.records import Request
from setbacks.runs.folder import Run
from setbacks.stages.unused import unused_settings
from setbacks.studies import carry_out
from setbacks.studies.ablation import applicable, factors
from setbacks.studies.quantity_quality import QuantityQuality

SOME_USE = {*CHOICE_OF_ANALYSES, *LEARNING_OF_ANALYSES, *CORRECTING, "safe"}
SOME_USE -= {"verdict_weight"}  # which only the loss reads

METHODS = installed("methods").keys() - {"posterior_distillation"}  # needs an adapter


def analysis(number, harmful=True):
    return analysis_of(number, f"<analysis {number}>", harmful=harmful)


@pytest.fixture
def keys_read(monkeypatch):
    """The keys of `train` and of `train.mix` that are read from now on."""
    keys = set()
    for section, prefix in ((Train, ""), (Mix, "mix.")):

        def read(self, name, prefix=prefix):
            keys.add(prefix + name)
            return object.__getattribute__(self, name)

        monkeypatch.setattr(section, "__getattribute__", read)
    return keys


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
    analyses += [analysis(20, False).model_copy(update={"kind": "refusal"})]
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
        line = "train.{} is set, but {} does not use it with these settings"
        return [line.format(key, method) for key in keys]

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


def test_an_ablation_varies_from_what_the_recipe_has():
    train = {"method": "mistake_distillation", "mix": {"helpful": 1.5}}
    recipe = Recipe.model_validate({"train": train})
    assert factors(recipe)["helpful_twice"] == {"train.mix.helpful": 3.0}
    none = Recipe.model_validate({"train": train | {"mix": {"helpful": 0}}})
    assert not {"no_helpful", "helpful_twice"} & {*applicable(none)}


def test_another_analyst_is_not_varied_for_a_teacher_that_sees_no_analysis():
    def varied(context):
        train = {"method": "mistake_distillation", "context": context}
        analyze = {"analyst": {"model": "smollm2-135m"}}
        return "self_analysis" in applicable(
            Recipe.model_validate({"train": train, "analyze": analyze})
        )

    assert varied("analysis") and not varied("guidance")


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
        ("ablation", "sft", {"factors": ["existing_mistakes"]}, "sft learns from no mistakes"),
        ("ablation", "helpful", {}, "no factor changes anything for helpful"),
        ("quantity-quality", "critique_revise", {}, "does not choose among analyses"),
        ("discrimination", "sft", {}, "sft learns from no mistakes, so the run has no harmful"),
        ("diversity", "sft", {}, "sft learns from no mistakes"),
    ],
)
def test_a_study_of_what_its_method_does_not_use_does_not_begin(
    study, method, options, message, data, tmp_path
):
    train = {"method": method, "safe": [str(data)], "helpful": [str(data)]}
    told = {"train": train, "study": options, "induce": {"existing": [str(data)]}}
    recipe = Recipe.model_validate(told)
    with pytest.raises(InputError, match=message):
        carry_out(study, recipe, tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_method_that_does_not_see_analyses_is_not_told_to_use_itself():
    study = QuantityQuality()
    train = {"method": "mistake_distillation", "context": "guidance"}
    recipe = Recipe.model_validate({"train": train})
    with pytest.raises(InputError, match="train.analyses changes nothing.* train.context=analysis"):
        study.check(recipe, study.options(recipe))


# Other sections ----------------------------------------------------------------------------------

SERVER = {"engine": "endpoint", "endpoint": {"base_url": "http://localhost:1/v1"}, "model": "far"}
GREEDY = {"temperature": 0.0}
ONE_SUITE = {"suites": [{"name": "a", "kind": "harmful", "sources": ["a.jsonl"]}]}
OF_SOURCE = "since induce.source is existing"


def lines(**data):
    return [*unused_settings(Recipe.model_validate(data))]


def test_the_defaults_give_no_notice():
    assert lines() == []
    for method in METHODS:
        assert lines(train={"method": method}) == []


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            {"induce": {"existing": ["a.jsonl"]}},
            ["induce.existing is set, but changes nothing, since induce.source is induced"],
        ),
        ({"induce": {"existing": ["a.jsonl"], "source": "both"}}, []),
        (
            {
                "induce": {
                    "source": "existing",
                    "existing": ["a.jsonl"],
                    "judge": "probe",
                    "min_harmful": 0.7,
                    "attempts": 5,
                },
            },
            [
                f"{key} is set, but changes nothing, {OF_SOURCE}"
                for key in (
                    "induce.attempts",
                    "induce.judge",
                    "induce.min_harmful",
                )
            ],
        ),
        (
            {"induce": {"min_harmful": 0.7}},
            ["induce.min_harmful is set, but changes nothing, since induce.judge is null"],
        ),
        ({"induce": {"min_harmful": 0.7, "judge": "probe"}}, []),
        ({"induce": {"min_harmful": 0.7}, "train": {"method": "sft"}}, []),
        (
            {"decontaminate": None, "held_out": ["a.jsonl"]},
            [
                "held_out is set, but changes nothing, since decontaminate is null, which also "
                "trains on held-out prompts"
            ],
        ),
        ({"held_out": ["a.jsonl"]}, []),
        (
            {"train": {"method": "sft", "judge": "llm"}},
            [
                "train.judge is set, but changes nothing, since sft learns no text that the model "
                "writes"
            ],
        ),
        (
            {"judges": ["probe", {"judge": "llm", "kinds": ["helpful"]}], "respond": ONE_SUITE},
            ["llm judges nothing, since no suite is of kind helpful (judges.kinds)"],
        ),
        ({"judges": [{"judge": "llm", "kinds": ["helpful"]}]}, []),
        ({"train": {"judge": "llm"}}, []),
        ({"train": {"method": "sft", "judge": "llm", "helpful_from": "model"}}, []),
        (
            {"train": {"method": "dpo", "judge": "llm"}, "preflight": {"flip_rate": "always"}},
            [],
        ),
        (
            {"words": {"zh": {"guided": "{instruction}?"}}},
            [
                "words.zh changes no prompt, since language is en; for prompts in the language of "
                "each row, set language to auto"
            ],
        ),
        ({"words": {"zh": {"guided": "{instruction}?"}}, "language": "zh"}, []),
        ({"words": {"zh": {"guided": "{instruction}?"}}, "language": "auto"}, []),
        ({"words": {"zh": {"refusal": {"opening": ["x"]}}}}, []),
        (
            {"words": {"guided": "{instruction}?"}, "train": {"method": "sft"}},
            ["words.en.guided changes nothing, since respond.guidance is false"],
        ),
        (
            {
                "words": {"guided": "{instruction}?"},
                "train": {"method": "sft"},
                "respond": {"guidance": True},
            },
            [],
        ),
        ({"words": {"guided": "{instruction}?"}, "train": {"method": "chain_of_hindsight"}}, []),
        ({"words": {"guided": "{instruction}?"}}, []),
        (
            {"preflight": {"flip_rate": "never", "mistakes": 90}},
            ["preflight.mistakes is set, but changes nothing, since preflight.flip_rate is never"],
        ),
        (
            {"respond": {"sampling": {"top_p": 0.9}}, "train": {"correct": {"top_k": 5}}},
            [
                "train.correct.top_k is set, but changes nothing, since train.correct.temperature "
                "is 0",
                "respond.sampling.top_p is set, but changes nothing, since "
                "respond.sampling.temperature is 0",
            ],
        ),
        ({"respond": {"sampling": {"top_p": 0.9, "temperature": 0.7}}}, []),
        ({"respond": {"sampling": {"top_p": 0.9}, "posterior": {}}}, []),
        (
            {"analyze": {"sampling": GREEDY}},
            [
                "analyze.candidates is 2, but with analyze.sampling.temperature 0 all candidates "
                "are the same"
            ],
        ),
        ({"analyze": {"sampling": GREEDY, "candidates": 1}}, []),
        ({"analyze": {"sampling": GREEDY, "analyst": SERVER}}, []),
        (
            {"train": {"attempts": 3, "openings": False}},
            [
                "train.attempts is 3, but with train.openings false and train.correct.temperature "
                "0 all answers to a mistake are the same"
            ],
        ),
        ({"train": {"attempts": 3}}, []),
        ({"train": {"attempts": 3, "openings": False, "correct": {"temperature": 0.7}}}, []),
        (
            {"analyze": {"analyst": SERVER | {"dtype": "float32", "revision": "main"}}},
            [
                f"{key} is set for far, but changes nothing, since the engine endpoint does not "
                "use it"
                for key in ("revision", "dtype")
            ],
        ),
        ({"analyze": {"analyst": SERVER | {"batch_size": 4, "system": "Be kind."}}}, []),
        (
            {"analyze": {"analyst": SERVER, "sampling": {"top_k": 5}}},
            [
                "analyze.sampling.top_k is set, but changes nothing, since servers do not get it; "
                "set top_k in endpoint.body"
            ],
        ),
        ({"model": {"engine": "vllm", "device": "cuda:1"}}, []),
        (
            {
                "model": {"engine": "vllm", "cuda_graphs": False},
                "analyze": {"analyst": {"engine": "vllm", "device": "cuda:1", "model": "a/b"}},
            },
            [
                "cuda_graphs is set for smollm2-135m, but changes nothing, since the engine vllm "
                "does not use it",
                "device is set for a/b, but changes nothing, since the engine vllm does not use it",
            ],
        ),
        (
            {"model": {"revision": "abc"}},
            [
                "revision is set for smollm2-135m, but changes nothing, since it is for models of "
                "the hub"
            ],
        ),
        ({"model": {"model": "a/b", "revision": "abc"}}, []),
        (
            {"model": {"chat_template": "alpaca", "template": {"enable_thinking": False}}},
            [
                "template is set for smollm2-135m, but changes nothing, since chat_template is "
                "alpaca"
            ],
        ),
    ],
    ids=str,
)
def test_a_setting_without_effect_is_named(data, expected):
    assert lines(**data) == expected


def test_the_shape_of_an_adapter_that_training_continues_stays(tmp_path):
    held = {"r": 2, "lora_alpha": 32, "lora_dropout": 0.0, "modules_to_save": None}
    (tmp_path / "adapter_config.json").write_text(json.dumps(held))
    start = str(tmp_path)

    def named(**lora):
        return [line.split()[0] for line in lines(train={"start": start, "lora": lora})]

    assert named(r=8, alpha=16, dropout=0.1) == [
        f"train.lora.{key}" for key in ("r", "alpha", "dropout")
    ]
    assert named(r=2) == [], "as the adapter has it"
    assert named() == []
    assert lines(train={"lora": {"r": 8}}) == [], "a new adapter has this shape"
    (line,) = lines(adapter=start, train={"lora": {"dora": True}})
    assert line == (
        "train.lora.dora is set, but changes nothing, since training continues the adapter "
        f"{start}, which keeps its shape"
    )


def test_greedy_texts_do_not_depend_on_the_seed(tiny):
    recipe = Recipe.model_validate({"model": {"model": str(tiny), "device": "cpu"}})
    engine = open_engine(recipe.model)
    asked = [Request("<a question>", seed) for seed in range(2)]
    for temperature, top_p, number in ((0.0, 1.0, 1), (0.0, 0.5, 1), (1.0, 1.0, 2)):
        sampling = Sampling(max_new_tokens=8, temperature=temperature, top_p=top_p)
        assert len({one.text for one in engine.generate(asked, sampling)}) == number


def test_a_run_has_these_notices_in_its_log(recipe_data, fake_engine, tmp_path):
    recipe = Recipe.model_validate(recipe_data(held_out=["builtin:safe"]))
    run_until(recipe, tmp_path / "run", "induce")
    (line,) = Run(tmp_path / "run").notices()
    assert line.startswith("held_out is set, but changes nothing")


def test_reinforcement_reads_its_prompts_as_often_as_the_recipe_says():
    def steps(**train):
        return steps_of(Train(**train), examples=10, group=2, tokens=100)

    assert steps(epochs=1) == 5
    assert steps(epochs=3) == 15
    assert steps(steps=7) == 7
    assert steps(tokens=950) == 10
    assert steps(tokens=950, steps=7) == 7
    assert steps(tokens=350, steps=7) == 4
