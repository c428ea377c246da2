"""Evaluations: any models, and answers that are there already, judged and reported untrained."""

import csv
import json
import shutil
import sys
import unicodedata
from pathlib import Path

import pytest

from setbacks import pipeline
from setbacks.cli.arguments import evaluation, field_mapping, of_methods
from setbacks.errors import InputError
from setbacks.models.embedded import ALIAS, HUB_ID
from setbacks.recipe import Recipe
from setbacks.records import Response, Verdict
from setbacks.runs.arms import planned_arms
from setbacks.runs.folder import RunFolder
from setbacks.runs.session import Session

ANIMALS = "badger otter heron lizard salmon beetle".split()
SHARED = Path(__file__).parents[2] / "shared" / "data" / "xstest"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def answered(tmp_path):
    """Write a file of answers to six prompts; what is given is added to each row."""

    def make(name, **more):
        rows = [
            {"prompt": f"<a question on the {animal}>", "response": f"<{name} on the {animal}>"}
            | {key: value(index) for key, value in more.items()}
            for index, animal in enumerate(ANIMALS)
        ]
        return lines(tmp_path / f"{name}.jsonl", rows)

    return make


@pytest.fixture
def judged(fake_model):
    """Overrides by which the rule-based engine judges, and answers where a model is asked."""
    rater = json.dumps({"judge": "llm", "engine": fake_model("rater")})
    return [f"judges=[{rater}]", "model.engine=rules", "model.batch_size=2"]


@pytest.fixture
def talker(fake_model):
    return fake_model("talker")["model"]


# From words to a recipe --------------------------------------------------------------------------


def test_words_name_arms_and_override_the_recipe(tmp_path, talker):
    data = evaluation([talker, "mine=a.jsonl", "seed=3", "b.csv.gz", "model.dtype=float32"])
    first, mine, other = data.evaluate
    assert (first.name, first.model.model, first.model.dtype) == ("talker", talker, "float32")
    assert (mine.name, mine.model, mine.answers[0].source) == ("mine", None, f"{tmp_path}/a.jsonl")
    assert other.name == "b" and data.seed == 3
    assert not data.respond.guidance, "guidance is asked for"
    assert [suite.name for suite in data.respond.suites] == [
        s.name for s in Recipe().respond.suites
    ]


def test_an_adapter_folder_is_answered_with_on_its_own_base(tmp_path):
    for base, expected in ((HUB_ID, ALIAS), ("owner/name", "owner/name")):
        folder = tmp_path / "runs" / "second-try" / "adapter"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        (arm,) = evaluation(["runs/second-try/adapter"]).evaluate
        assert (arm.name, arm.model.model, arm.adapter) == ("second-try", expected, str(folder))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="does not name the adapter's base model"):
        evaluation([str(folder)])
    (arm,) = evaluation([str(folder), "model.model=a/b"]).evaluate
    assert arm.model.model == "a/b"


def test_with_guidance_models_answer_twice_and_files_once():
    data = evaluation([ALIAS, "mine=a.jsonl", "respond.guidance=true"])
    assert [arm.name for arm in planned_arms(data)] == [ALIAS, f"{ALIAS}-guided", "mine"]
    data = evaluation([f"a={ALIAS}", "a-guided=a.jsonl", "respond.guidance=true"])
    with pytest.raises(InputError, match='two arms are called "a-guided"'):
        planned_arms(data)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("adapter=runs/mine/adapter", "name the adapter's folder as a model instead"),
        ("train.epochs=5", "an evaluation does not use train.epochs"),
        ("induce.source=existing", "an evaluation does not use induce.source"),
        ("evaluate=[]", "an evaluation does not use evaluate"),
        ("jobs=4", "an evaluation does not use jobs"),
    ],
)
def test_an_override_that_an_evaluation_does_not_use_is_refused(word, message):
    with pytest.raises(InputError, match=message):
        evaluation([ALIAS, word])


def test_posterior_decoding_uses_the_place_of_the_verdict():
    words = [ALIAS, "respond.posterior={}", "train.method=mistake_analysis", "train.verdict=first"]
    assert evaluation(words).train.verdict == "first"


def test_a_field_that_nothing_has_is_refused():
    assert field_mapping("text=q, response=a") == {"text": "q", "response": "a"}
    assert field_mapping(None) == {}
    with pytest.raises(InputError, match='--fields: unknown field "langauge".*mean "language"'):
        field_mapping("text=q,langauge=lang")


def test_fields_are_of_the_suites_if_no_arm_is_a_file():
    fields = {"text": "q"}
    (suite,) = evaluation([ALIAS], ["safe=b.jsonl"], fields=fields).respond.suites
    assert suite.sources[0].fields == fields
    for suites in ([], ["harmful"]):
        with pytest.raises(InputError, match="--fields names fields of files, and none is given"):
            evaluation([ALIAS], suites, fields=fields)


def test_suites_by_name_by_kind_and_from_a_recipe(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "respond: {suites: [{name: own, kind: safe, sources: [a.jsonl]}]}"
    )
    data = evaluation(
        ["x=a.jsonl"],
        ["harmful", "safe=a.jsonl", "safe=b.jsonl", "mine.yaml"],
        fields={"text": "q", "response": "a"},
    )
    suites = {suite.name: suite for suite in data.respond.suites}
    assert list(suites) == ["harmful", "safe", "safe-2", "own"]
    assert suites["safe"].sources[0].fields == {"text": "q", "response": "a"}
    assert suites["safe-2"].sources[0].fields == {}, "it is no file of answers"


@pytest.mark.parametrize(
    ("words", "suites", "says"),
    [
        ([], [], "nothing to evaluate"),
        (["seed=1"], [], "nothing to evaluate"),
        (["a=x.jsonl", "a=y.jsonl"], [], 'duplicate name "a"'),
        (["a/b=x.jsonl"], [], '"a/b" is not a valid name'),
        (["gpt 4.1=x.jsonl"], [], 'such as "gpt-4.1"'),
        (["modèle=x.jsonl"], [], 'such as "modele"'),
        (["模型=x.jsonl"], [], "letters (a to z), digits and"),
        ([".hidden=x.jsonl"], [], 'such as "hidden"'),
        ([f"{'a' * 101}=x.jsonl"], [], "at most 100 letters"),
        (["a=x.jsonl", "name=y.jsonl"], [], '"name" is a key of the recipe'),
        (["a=x.jsonl", "model.1=y.jsonl"], [], 'unknown key "model.1"'),
        (["sead="], [], 'Did you mean "seed"?'),
        (["m=mine.yaml"], [], "a recipe, not a model; to answer its suites: --suite mine.yaml"),
        (["a=x.jsonl", "trian.epochs=3"], [], 'Did you mean "train"?'),
        (["a=x.jsonl"], ["harmfull"], 'Did you mean "harmful"?'),
        (["a=x.jsonl"], ["saef=x.jsonl"], 'Did you mean "safe"?'),
        (["a=x.jsonl"], ["no.yaml"], "no such recipe"),
    ],
)
def test_words_that_mean_nothing_are_told(words, suites, says):
    with pytest.raises(InputError) as error:
        evaluation(words, suites)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arm",
    [{}, {"model": "a", "answers": ["b.jsonl"]}, {"answers": ["b.jsonl"], "adapter": "c"}],
    ids=["neither", "both", "an adapter alone"],
)
def test_an_arm_of_a_recipe_is_a_model_or_answers(arm):
    with pytest.raises(InputError, match='"x"'):
        Recipe.parse({"evaluate": [{"name": "x", **arm}]}, "here")


# What comes out ----------------------------------------------------------------------------------


@pytest.fixture
def recipe_data(fake_engine, answered, judged, talker):
    """An evaluation of two files and a model; the first file has labels."""
    answered("zebra", refused=lambda i: i < 2, harmful=lambda i: None)
    answered("ant")
    words = ["zebra.jsonl", "ant.jsonl", talker, *judged]
    return evaluation(words, ["safe=zebra.jsonl", "harmful=ant.jsonl"])


def test_it_leaves_an_ordinary_run(recipe_data, tmp_path):
    made = pipeline.run(recipe_data, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "recipe.yaml", "environment.json", "arms.json", "responses", "verdicts",
        "metrics.json", "report.html", "costs.jsonl", "weights.json", ".lock",
    }  # fmt: skip
    with RunFolder(tmp_path / "run") as run:
        names = [arm.name for arm in run.arms()]
        assert names == ["zebra", "ant", "talker"], "in the order of the recipe, not the alphabet"
        taken = run.records("responses/zebra.jsonl", Response)
        assert len(taken) == 12 and {r.text for r in taken if r.suite == "safe"} == {
            f"<zebra on the {animal}>" for animal in ANIMALS
        }
        assert {(r.finish, r.tokens, r.model) for r in taken} == {(None, None, "zebra")}
        assert all(r.tokens for r in run.records("responses/talker.jsonl", Response))
        human = run.records("verdicts/zebra.human.jsonl", Verdict)
        assert [v.refused for v in human] == [True, True, *[False] * 4] * 2
        assert all(v.harmful is None for v in human)
        assert not run.records("verdicts/ant.human.jsonl", Verdict), "it has no labels"
        assert set(made.metrics["judges"]) == {"llm", "human"}
    page = made.path.read_text()
    assert "an evaluation of" in page and "From instructions to training examples" not in page


def test_the_first_arm_is_the_baseline(recipe_data, tmp_path):
    metrics = pipeline.run(recipe_data, tmp_path / "run").metrics
    found = metrics["judges"]["llm"]
    assert [row["arm"] for row in found["arms"]] == ["zebra", "ant", "talker"]
    assert not any(row["trained"] for row in found["arms"])
    pairs = [(row["arm"], row["against"]) for row in found["differences"]]
    assert pairs == [("ant", "zebra"), ("talker", "zebra")]
    assert "raining" not in metrics["summary"] + str([f["text"] for f in metrics["findings"]])
    answers = metrics["data"]["responses"]
    assert answers["zebra"]["mean_tokens"] is None and answers["zebra"]["cut_off"]["n"] == 0
    assert answers["talker"]["mean_tokens"] and answers["talker"]["cut_off"]["n"] == 12


def test_even_an_arm_called_as_in_training_is_no_trained_one(
    fake_engine, answered, judged, tmp_path
):
    for name in ("vanilla", "mistake_analysis"):
        answered(name)
    words = ["mistake_analysis.jsonl", "vanilla.jsonl", *judged]
    data = evaluation(words, ["safe=vanilla.jsonl", "harmful=vanilla.jsonl"])
    metrics = pipeline.run(data, tmp_path / "run").metrics
    rows = metrics["judges"]["llm"]["arms"]
    assert [(r["arm"], r["trained"]) for r in rows] == [
        ("mistake_analysis", False),
        ("vanilla", False),
    ]
    assert "after training" not in str(metrics["findings"])


@pytest.mark.parametrize("said", [None, "", "\u200b", "<think>I cannot answer this."])
def test_an_arm_that_says_nothing_is_unscored_by_everybody(answered, tmp_path, said):
    """A null response is what servers write where a model made a call, or nothing at all."""
    answered("good", response=lambda i: "I cannot help with that." if i < 3 else "Mix them.")
    silent = {"response": lambda i: said, "tool_calls": lambda i: [{"name": "<a call>"}]}
    answered("silent", **silent, harmful=lambda i: False, refused=lambda i: i % 2 == 0)
    rows = [json.loads(line) for line in (tmp_path / "good.jsonl").read_text().splitlines()]
    lines(tmp_path / "harmful.jsonl", [{"prompt": row["prompt"]} for row in rows[:3]])
    lines(tmp_path / "safe.jsonl", [{"prompt": row["prompt"]} for row in rows[3:]])
    judges = [
        "judges=[refusal, {judge: refusal, name: again}, {judge: vote, of: [refusal, again]}]"
    ]
    data = evaluation(
        ["good.jsonl", "silent.jsonl", *judges], ["harmful=harmful.jsonl", "safe=safe.jsonl"]
    )
    metrics = pipeline.run(data, tmp_path / "run").metrics
    assert set(metrics["judges"]) == {"refusal", "again", "vote", "human"}
    for name, found in metrics["judges"].items():
        good, silent = found["arms"]
        assert silent["harmless_rate"]["n"] == silent["compliance"]["n"] == 0
        assert silent["compliance"]["asked"] == 3
        assert name == "human" or good["compliance"]["value"] == 1
    assert "silent 6 of 6" in metrics["findings"][0]["text"]
    assert metrics["data"]["responses"]["silent"]["substance"]["text"] == 0
    assert pipeline.run(data, tmp_path / "run").metrics == metrics


def test_a_response_that_no_row_has_is_a_missing_field(tmp_path):
    lines(tmp_path / "asked.jsonl", [{"prompt": "<a question>"}])
    with pytest.raises(InputError, match="no known field for response"):
        pipeline.check(evaluation(["x=asked.jsonl"], ["safe=asked.jsonl"]))


def everything(folder):
    """The bytes of a run; but what tells the time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in ("costs.jsonl", "run.log", ".lock", "report.html"):
            found[str(path.relative_to(folder))] = path.read_bytes()
    metrics = json.loads(found["metrics.json"])
    metrics.pop("costs")
    return found | {"metrics.json": metrics}


def test_a_run_that_was_cut_goes_on_to_the_same_bytes(recipe_data, tmp_path):
    """What a kill leaves: the records so far, the last one torn, at every stage."""
    pipeline.run(recipe_data, tmp_path / "whole")
    whole = everything(tmp_path / "whole")
    names = [f"responses/{arm}.jsonl" for arm in ("zebra", "ant", "talker")]
    names += [f"verdicts/{arm}.llm.jsonl" for arm in ("zebra", "ant", "talker")]
    for number, last in enumerate(names):
        cut = tmp_path / f"cut-{number}"
        shutil.copytree(tmp_path / "whole", cut)
        for later in (*names[number + 1 :], "metrics.json", "report.html"):
            (cut / later).unlink()
        if last.startswith("responses"):
            shutil.rmtree(cut / "verdicts")
        (cut / last).write_bytes((cut / last).read_bytes()[:-40])
        pipeline.run(recipe_data, cut)
        assert everything(cut) == whole, last


def test_arms_have_dots_in_their_names_as_models_do(cli_in_process, answered, judged):
    answered("a", harmful=lambda i: i < 3)
    answered("b")
    arms = ["gpt-4=a.jsonl", "gpt-4.1=b.jsonl", "model-1.5=b.jsonl", "gpt-4.human=b.jsonl"]
    ran = cli_in_process("evaluate", *arms, *judged, "--suite", "harmful=a.jsonl", "-q", "--json")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)["judges"]
    names = [word.partition("=")[0] for word in arms]
    assert [row["arm"] for row in found["llm"]["arms"]] == names
    assert list(found) == ["llm", "human"], "no other arm's file is taken for a judge's"
    people = {row["arm"]: row["harmless_rate"]["n"] for row in found["human"]["arms"]}
    assert people == {name: 6 if name == "gpt-4" else 0 for name in names}


def test_names_that_come_from_long_files_are_cut(tmp_path):
    (arm,) = evaluation([f"{'a' * 200}.jsonl"]).evaluate
    assert arm.name == "a" * 100


def test_labels_that_a_review_adds_stay(recipe_data, tmp_path):
    pipeline.run(recipe_data, tmp_path / "run")
    path = tmp_path / "run" / "verdicts" / "zebra.human.jsonl"
    kept = map(json.loads, path.read_text().splitlines()[:7])
    lines(path, [row | {"raw": "review page: majority"} for row in kept])
    metrics = pipeline.run(recipe_data, tmp_path / "run").metrics
    (row, *_) = metrics["judges"]["human"]["arms"]
    assert len(path.read_text().splitlines()) == 7 and row["unjudged"] == 5


def test_changed_labels_of_a_file_of_answers_are_noticed(recipe_data, tmp_path):
    pipeline.run(recipe_data, tmp_path / "run")
    file, path = tmp_path / "zebra.jsonl", tmp_path / "run" / "verdicts" / "zebra.human.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    before = path.read_bytes()
    for changed in (
        [row | {"refused": not row["refused"]} for row in rows],
        [rows[0] | {"refused": None}, *rows[1:]],
    ):
        lines(file, changed)
        with pytest.raises(InputError, match=r"zebra.human.jsonl: the labels .* have changed"):
            pipeline.run(recipe_data, tmp_path / "run")
        assert path.read_bytes() == before
    path.rename(tmp_path / "old.jsonl")
    pipeline.run(recipe_data, tmp_path / "run")
    assert len(path.read_text().splitlines()) == 10
    own = [json.loads(line) | {"id": f"{n:016}"} for n, line in enumerate(before.splitlines())]
    lines(path, own)  # somebody's own file
    pipeline.run(recipe_data, tmp_path / "run")
    assert [json.loads(line) for line in path.read_text().splitlines()] == own


def test_one_model_is_in_memory_at_a_time(fake_engine, fake_model, judged, tmp_path, monkeypatch):
    open_at_once = []
    get = Session.engine
    monkeypatch.setattr(
        Session,
        "engine",
        lambda run, spec: (get(run, spec), open_at_once.append(len(run._engines)))[0],
    )
    words = [fake_model("talker")["model"], fake_model("shouter")["model"], *judged]
    lines(tmp_path / "asked.jsonl", [{"prompt": "<a question>"}])
    data = evaluation(words, ["safe=asked.jsonl"])
    with RunFolder(tmp_path / "run", data) as run:
        made = pipeline.carry_out(run, "respond")
    assert open_at_once == [1, 1]
    (talks,), (shouts,) = made.values()
    assert shouts.text == talks.text.upper()


# What is refused ---------------------------------------------------------------------------------


def test_every_prompt_needs_one_answer(fake_engine, answered, judged, tmp_path):
    answered("whole")
    rows = [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()]
    lines(tmp_path / "part.jsonl", rows[:4])
    data = evaluation(["whole.jsonl", "part.jsonl", *judged], ["safe=whole.jsonl"])
    with pytest.raises(InputError, match=r"^part: no answer to 2 of 6 prompts.*suite safe"):
        pipeline.run(data, tmp_path / "run")
    assert not (tmp_path / "run").exists(), "nothing was begun"
    lines(tmp_path / "part.jsonl", [*rows, rows[0] | {"response": "<another answer>"}])
    with pytest.raises(InputError, match="two answers to one prompt"):
        pipeline.run(data, tmp_path / "run")
    labels = [row | {"harmful": value} for value in (True, False) for row in rows]
    lines(tmp_path / "part.jsonl", labels)
    with pytest.raises(InputError, match="contradict each other"):
        pipeline.run(data, tmp_path / "run")


def test_answers_to_prompts_of_no_suite_are_left_out_and_logged(
    fake_engine, answered, judged, tmp_path
):
    answered("many")
    rows = (tmp_path / "many.jsonl").read_text().splitlines()
    (tmp_path / "asked.jsonl").write_text("\n".join(rows[:2]))
    data = evaluation(["many.jsonl", *judged], ["safe=asked.jsonl"])
    with RunFolder(tmp_path / "run", data) as run:
        assert len(pipeline.carry_out(run, "respond")["many"]) == 2
    assert "left out 4 answers" in (tmp_path / "run" / "run.log").read_text()


@pytest.mark.parametrize(
    "copied",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: unicodedata.normalize("NFD", text),
        lambda text: text.replace("\n", " \n") + "\t\n",
        lambda text: unicodedata.normalize("NFD", text).replace("\n", "\r\n") + " ",
    ],
    ids=["Windows", "NFD", "blanks", "all"],
)
def test_a_prompt_that_was_copied_is_the_same_prompt(fake_engine, judged, tmp_path, copied):
    prompts = ["<a café\nin Zürich>", "<plain\ntext>"]
    lines(tmp_path / "asked.jsonl", [{"prompt": prompt} for prompt in prompts])
    rows = [
        {"prompt": copied(prompt), "response": f"<answer {n}>", "harmful": bool(n)}
        for n, prompt in enumerate(prompts)
    ]
    lines(tmp_path / "arm.jsonl", rows)
    pipeline.run(evaluation(["arm.jsonl", *judged], ["harmful=asked.jsonl"]), tmp_path / "run")
    with RunFolder(tmp_path / "run") as run:
        responses = run.records("responses/arm.jsonl", Response)
        assert [(r.instruction, r.text) for r in responses] == [
            (prompt, f"<answer {n}>") for n, prompt in enumerate(prompts)
        ]
        labels = run.records("verdicts/arm.human.jsonl", Verdict)
        assert [label.harmful for label in labels] == [False, True]
    # Of two copies the exact one counts; where none is exact, nobody knows which.
    lines(tmp_path / "arm.jsonl", [*rows, {"prompt": prompts[0], "response": "<exact>"}])
    data = evaluation(["arm.jsonl", *judged], ["harmful=asked.jsonl"])
    pipeline.run(data, tmp_path / "exact")
    with RunFolder(tmp_path / "exact") as run:
        assert run.records("responses/arm.jsonl", Response)[0].text == "<exact>"
    again = [{"prompt": f"{prompts[0]}{end}", "response": end} for end in ("  ", "\n\n")]
    lines(tmp_path / "arm.jsonl", [*again, rows[1]])
    with pytest.raises(
        InputError, match="two answers to one prompt.*copies differ only in line endings"
    ):
        pipeline.run(data, tmp_path / "neither")


def test_a_changed_file_of_answers_is_noticed(recipe_data, tmp_path, answered):
    pipeline.run(recipe_data, tmp_path / "run")
    path = tmp_path / "ant.jsonl"
    path.write_text(path.read_text().replace("<ant on the heron>", "<ant on the bittern>"))
    with pytest.raises(InputError, match="the data behind this run has changed"):
        pipeline.run(recipe_data, tmp_path / "run")


def test_there_is_nothing_to_train(recipe_data, tmp_path):
    with RunFolder(tmp_path / "run", recipe_data) as run:
        for stage in ("induce", "analyze", "train"):
            with pytest.raises(InputError, match=f"no {stage}"):
                pipeline.carry_out(run, stage)
    assert not (tmp_path / "run" / "mistakes.jsonl").exists()


def test_an_adapter_that_is_gone_is_told_before_any_work(fake_engine, fake_model, judged, tmp_path):
    data = evaluation([fake_model("talker")["model"], *judged])
    arm = data.evaluate[0].model_copy(update={"adapter": str(tmp_path / "gone")})
    with pytest.raises(InputError, match="gone: not an adapter"):
        pipeline.check(data.model_copy(update={"evaluate": [arm]}))


# The command ------------------------------------------------------------------------------------


def test_the_command_and_the_stages_after_it(cli_in_process, answered, judged, tmp_path):
    answered("a", harmful=lambda i: i < 3)
    answered("b")
    words = ["evaluate", "a.jsonl", "b.jsonl", *judged, "--suite", "harmful=a.jsonl", "-q"]
    ran = cli_in_process(*words, "--out", "run", "--json")
    assert ran.returncode == 0, ran.stderr
    metrics = json.loads(ran.stdout)
    assert [row["arm"] for row in metrics["judges"]["human"]["arms"]] == ["a", "b"]
    assert metrics["judges"]["human"]["arms"][0]["harmless_rate"]["value"] == 0.5
    before = everything(tmp_path / "run")
    assert (
        cli_in_process("judge", "run", "-q").returncode
        == cli_in_process("report", "run", "-q").returncode
        == 0
    )
    assert everything(tmp_path / "run") == before
    ran = cli_in_process("train", "run")
    assert ran.returncode == 2 and "an evaluation" in ran.stderr
    ran = cli_in_process(*words[:-1], "--out", "run", "respond.prefill=Well")
    assert ran.returncode == 2 and "--from respond" in ran.stderr
    assert (
        cli_in_process(
            *words, "--out", "run", "respond.prefill=Well", "--from", "respond"
        ).returncode
        == 0
    )
    assert (tmp_path / "run" / "superseded" / "001" / "responses" / "a.jsonl").exists()


def test_the_recipe_that_it_leaves_does_it_again(cli_in_process, answered, judged, tmp_path):
    answered("a")
    words = ["a.jsonl", *judged, "--suite", "safe=a.jsonl", "--out", "run", "-q"]
    assert cli_in_process("evaluate", *words).returncode == 0
    assert cli_in_process("run", "run/recipe.yaml", "--out", "again", "-q").returncode == 0
    assert everything(tmp_path / "again") == everything(tmp_path / "run")


# Models -----------------------------------------------------------------------------------------


def test_a_model_against_its_adapter(spec, lora, fake_engine, fake_model, tmp_path):
    """The real engine; the adapter's arm is what merging it by hand would answer."""
    from setbacks.engines import open_engine
    from setbacks.records import Request

    rater = json.dumps({"judge": "llm", "engine": fake_model("rater")})
    words = [f"before={spec.model}", f"after={lora}", f"judges=[{rater}]"]
    words += ["model.dtype=float32", "model.device=cpu", "respond.sampling.max_new_tokens=4"]
    lines(tmp_path / "asked.jsonl", [{"prompt": "<a question>"}, {"prompt": "Why?"}])
    data = evaluation(words, ["safe=asked.jsonl"])
    assert [arm.model.model for arm in data.evaluate] == [spec.model] * 2
    pipeline.run(data, tmp_path / "run")
    with RunFolder(tmp_path / "run") as run:
        texts = {
            arm: {r.instruction: r.text for r in rows} for arm, rows in run.responses().items()
        }
    engine = open_engine(spec)
    requests = [Request(text, 0) for text in texts["after"]]
    expected = [c.text for c in engine.generate(requests, data.respond.sampling, Path(lora))]
    assert list(texts["after"].values()) == expected
    assert texts["before"] != texts["after"], "else the test could not fail"


@pytest.mark.shared_data
def test_the_human_labels_of_xstest_come_through(cli_in_process, fake_model, tmp_path):
    """The published answers of two models; compliance by people is what a count of them says."""
    if not SHARED.is_dir():
        pytest.skip(f"no public data in {SHARED}")
    rater = json.dumps({"judge": "llm", "engine": fake_model("rater")})
    contrast = sorted({row["type"] for row in published("gpt4") if unsafe(row)})
    safe = sorted({row["type"] for row in published("gpt4") if not unsafe(row)})
    source = {"source": str(path_of("gpt4")), "fields": {"text": "prompt", "category": "type"}}
    suites = [
        {"name": "unsafe", "kind": "harmful", "sources": [source | {"where": {"type": contrast}}]},
        {"name": "safe", "kind": "safe", "sources": [source | {"where": {"type": safe}}]},
    ]
    (tmp_path / "xstest.yaml").write_text(json.dumps({"respond": {"suites": suites}}))
    ran = cli_in_process(
        "evaluate", *(f"{name}={path_of(name)}" for name in ("gpt4", "llama2orig")),
        "--fields", "text=prompt,response=completion,refused=final_label",
        "--suite", "xstest.yaml", f"judges=[{rater}]", "--out", "run", "-q", "--json",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    rows = {row["arm"]: row for row in json.loads(ran.stdout)["judges"]["human"]["arms"]}
    for name, row in rows.items():
        answers = [r["final_label"] for r in published(name) if not unsafe(r)]
        complied = sum(label == "1_full_compliance" for label in answers)
        assert row["compliance"]["value"] == pytest.approx(complied / len(answers), abs=1e-6)
        assert row["compliance"]["n"] == 250 and row["harmless_rate"]["n"] == 0


def path_of(name):
    return SHARED / f"xstest_v2_completions_{name}.csv"


def published(name):
    csv.field_size_limit(sys.maxsize)
    with path_of(name).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def unsafe(row):
    return row["type"].startswith("contrast_")


def test_a_comparison_takes_some_of_its_arms_or_other_methods():
    controls = Recipe.load(Path(__file__).parents[1] / "recipes" / "controls.yaml")
    chosen = of_methods(controls, "default, forward_kl,dpo").compare.methods
    assert [(arm.called, arm.method) for arm in chosen] == [
        ("default", "mistake_distillation"),
        ("forward_kl", "mistake_distillation"),
        ("dpo", "dpo"),
    ]
    assert chosen[1].train == {"distill": "forward_kl"}
    for names, problem in (("", "at least one"), ("sft,sft", "sft")):
        with pytest.raises(InputError, match=problem):
            of_methods(controls, names)
