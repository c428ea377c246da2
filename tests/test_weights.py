"""Models, adapters and heads that are replaced at their path: no answers of two get mixed."""

import json
import shutil

import pytest

from setbacks.cli.arguments import judge_recipe
from setbacks.errors import InputError
from setbacks.loop.harvest import harvest, recipe_of
from setbacks.loop.harvest.settings import Settings
from setbacks.loop.logs import Logs
from setbacks.models import fingerprint as fingerprints
from setbacks.models.embedded import ALIAS
from setbacks.models.fingerprint import fingerprint, weights_of
from setbacks.pipeline import open_run
from setbacks.recipe import Engine, Recipe
from setbacks.runs.session import Session
from setbacks.runs.weights import NAME, check_weights
from setbacks.stages.analyze import analyze
from setbacks.stages.induce import induce
from setbacks.stages.judge import judge
from setbacks.stages.preflight import preflight
from setbacks.stages.respond import respond
from setbacks.stages.train import train
from setbacks.studies.variants import lend

# A fingerprint -----------------------------------------------------------------------------------


def safetensors(path, tensors):
    """Write a file of tensors, each given as bytes."""
    listed, at = {}, 0
    for name, data in tensors.items():
        listed[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    header = json.dumps(listed).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"".join(tensors.values()))


@pytest.fixture
def model(tmp_path):
    """A folder of a model with two layers, whose weights are too large to be read whole."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    tensors = {"first": bytes(200_000), "norm": bytes(64), "second": bytes(200_000)}
    safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(fingerprints, "LARGE", 1000)


def test_a_copy_has_the_same_fingerprint_and_files_beside_weights_do_not_count(model, tmp_path):
    before = fingerprint(model)
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(model, copy, copy_function=shutil.copyfile)  # other times, another place
    assert fingerprint(copy) == before and len(before) == 16
    for name in ("README.md", ".gitattributes", "optimizer.pt", "training_args.bin"):
        (copy / name).write_text("<a note>")
    (copy / "checkpoint-1").mkdir()
    assert fingerprint(copy) == before
    (copy / "config.json").write_text('{"rope_theta": 1}')
    assert fingerprint(copy) != before
    assert fingerprint(tmp_path / "missing") is None


@pytest.mark.parametrize("trained", ["first", "norm", "second"])
def test_large_weights_are_sampled_in_every_tensor(model, small_limit, trained):
    before = fingerprint(model)
    tensors = {"first": bytes(200_000), "norm": bytes(64), "second": bytes(200_000)}
    safetensors(model / "model.safetensors", tensors | {trained: b"\1" * len(tensors[trained])})
    assert fingerprint(model) != before
    # Little of a large file is read.
    with open(model / "model.safetensors", "rb") as file:
        assert sum(map(len, fingerprints._sampled(file, 400_000))) < 30_000


@pytest.mark.parametrize("begin", [b"", b"\xff" * 8, (10).to_bytes(8, "little") + b"[1, 2, 3] "])
def test_a_large_file_without_tensors_is_sampled_evenly(model, small_limit, begin):
    path = model / "model.safetensors"
    path.write_bytes(begin + bytes(4_000_000))
    before = fingerprint(model)
    path.write_bytes(begin + bytes(2_000_000) + b"\1" * 20_000 + bytes(1_980_000))
    assert fingerprint(model) != before


def test_an_adapter_is_read_whole(tmp_path, small_limit):
    safetensors(tmp_path / "adapter_model.safetensors", {"a": bytes(100_000)})
    before = fingerprint(tmp_path)
    safetensors(
        tmp_path / "adapter_model.safetensors", {"a": bytes(70_000) + b"\1" + bytes(29_999)}
    )
    assert fingerprint(tmp_path) != before


def test_the_variants_of_a_comparison_read_a_model_once(model, monkeypatch):
    reads = []
    digest = fingerprints.hashlib.file_digest
    monkeypatch.setattr(
        fingerprints.hashlib, "file_digest", lambda *args: reads.append(1) or digest(*args)
    )
    assert fingerprint(model) == fingerprint(model) and len(reads) == 2


def test_only_models_in_folders_here_have_weights_to_compare(model, tmp_path):
    assert weights_of(Engine(model=ALIAS)) == weights_of(Engine(model="owner/name")) == {}
    assert weights_of(Engine(model=str(model)), tmp_path) == {"model": model, "adapter": tmp_path}
    # A folder of an adapter is loaded with its base model.
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(model)})
    )
    found = weights_of(Engine(model=str(tmp_path)))
    assert found == {"model": tmp_path, "base model": model}
    endpoint = {"model": str(model), "engine": "endpoint", "endpoint": {"base_url": "http://x/v1"}}
    recipe = Recipe.model_validate({"analyze": {"analyst": endpoint}})
    assert weights_of(recipe.analyze.analyst) == {}


# In a run ----------------------------------------------------------------------------------------


def adapter_in(folder, content):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_text(content)
    return folder


@pytest.fixture
def evaluation(recipe_data, fake_model, fake_engine, tmp_path):
    """The recipe of an evaluation of a model without and with an adapter."""
    adapter_in(tmp_path / "adapter", "<old>")
    data = recipe_data()
    mine = {"name": "mine", "model": data["model"], "adapter": str(tmp_path / "adapter")}
    data["evaluate"] = [{"name": "base", "model": data["model"]}, mine]
    data["respond"]["guidance"] = False
    return Recipe.model_validate(data)


def evaluate(recipe, folder, redo=None):
    """Answer and judge; return the bytes of what is written."""
    with open_run(folder, recipe, redo) as opened, Session(opened) as run:
        judge(run, respond(run))
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for kind in ("responses", "verdicts", NAME)
        for path in sorted(folder.glob(f"{kind}/*.jsonl" if kind != NAME else NAME))
    }


@pytest.mark.parametrize("kept", [0, 1, 6])
def test_an_adapter_that_was_trained_again_is_not_reported_as_the_old_one(
    evaluation, tmp_path, fake_engine, kept
):
    folder, answers = tmp_path / "run", tmp_path / "run" / "responses" / "mine.jsonl"
    first = evaluate(evaluation, folder)
    assert evaluate(evaluation, folder) == first, "nothing has changed"
    # As if the process had been killed after so many answers.
    lines = answers.read_bytes().splitlines(keepends=True)[:kept]
    answers.write_bytes(b"".join(lines))
    adapter_in(tmp_path / "adapter", "<new, trained again>")
    if not kept:  # no answer of the old one is there
        with open_run(folder, evaluation) as opened, Session(opened) as run:
            assert len(respond(run)["mine"]) == 6
        return
    fake_engine.batches.clear()
    with pytest.raises(InputError) as error:
        evaluate(evaluation, folder)
    assert str(error.value) == (
        f"{tmp_path / 'adapter'}: has changed since {answers} was written with it; redo with "
        "--from respond (what is there moves to superseded/), or choose another folder with --out"
    )
    assert answers.read_bytes() == b"".join(lines) and not fake_engine.batches
    evaluate(evaluation, folder, redo="respond")
    assert evaluate(evaluation, folder).keys() == first.keys(), "it opens again"
    adapter_in(tmp_path / "adapter", "<old>")
    assert evaluate(evaluation, folder, redo="respond")[NAME] == first[NAME]


def test_a_folder_without_the_note_opens_and_gets_it(evaluation, tmp_path):
    folder = tmp_path / "run"
    first = evaluate(evaluation, folder)
    (folder / NAME).unlink()  # as in a folder of an earlier version
    assert evaluate(evaluation, folder) == first
    shutil.rmtree(tmp_path / "adapter")
    assert evaluate(evaluation, folder) == first, "a finished run does not need it"


def test_a_note_that_is_damaged_is_one_line(evaluation, tmp_path):
    evaluate(evaluation, tmp_path / "run")
    for text in ("{", "[]", '{"responses/mine.jsonl": 1}', ""):
        (tmp_path / "run" / NAME).write_text(text)
        with pytest.raises(InputError, match=r"weights\.json: damaged; .*delete it"):
            evaluate(evaluation, tmp_path / "run")


def test_the_note_is_on_disk_before_the_first_answer(evaluation, tmp_path, fake_engine):
    def dies(self, request, sampling):
        noted = json.loads((tmp_path / "run" / NAME).read_text())
        assert noted.keys() == {"responses/base.jsonl"}
        raise InputError("the power is out")

    fake_engine.Rules.talker, talker = dies, fake_engine.Rules.talker
    try:
        with pytest.raises(InputError, match="the power is out"):
            evaluate(evaluation, tmp_path / "run")
    finally:
        fake_engine.Rules.talker = talker


def test_other_weights_of_a_judge_give_no_verdicts_beside_the_old_ones(
    open_session, fake_model, tmp_path
):
    run = open_session(judges=[{"judge": "llm", "engine": fake_model("rater")}])
    responses = {"vanilla": respond(run, tmp_path)["vanilla"]}
    judge(run, responses)
    (tmp_path / "models" / "rater" / "config.json").write_text('{"other": 1}')
    with pytest.raises(InputError, match=r"rater: has changed .*vanilla\.llm\.jsonl.*--from judge"):
        judge(run, responses)
    (run.path / "verdicts" / "vanilla.llm.jsonl").unlink()
    judge(run, responses)


def test_other_heads_are_another_judge(open_session, monkeypatch, tmp_path):
    from setbacks.judges import Opinion
    from setbacks.judges.probe import Probe

    monkeypatch.setattr(
        Probe, "judge", lambda self, items: [Opinion(harmful=False, refused=False) for _ in items]
    )
    heads = tmp_path / "heads.safetensors"
    heads.write_bytes(b"<old>")
    run = open_session(judges=[{"judge": "probe", "heads": str(heads)}])
    responses = {"vanilla": respond(run, tmp_path)["vanilla"]}
    judge(run, responses)
    noted = json.loads((run.path / NAME).read_text())
    assert noted["verdicts/vanilla.probe.jsonl"].keys() == {"judge's heads"}
    judge(run, responses)
    heads.write_bytes(b"<new ones>")
    with pytest.raises(InputError, match=r"heads\.safetensors: has changed .*--from judge"):
        judge(run, responses)


@pytest.mark.parametrize("stage", ["induce", "analyze", "preflight", "train"])
def test_every_stage_stops_at_another_model(open_session, data, fake_model, tmp_path, stage):
    """What each stage is given is there; only its own check can stop it."""
    current, start = (adapter_in(tmp_path / name, "<old>") for name in ("current", "start"))
    praiser = {"judge": "llm", "engine": fake_model("praiser")}
    learned = {"helpful": [str(data)], "safe": [str(data)], "judge": praiser}
    run = open_session(
        adapter=str(current),
        train=learned | {"start": str(start)},
        preflight={"flip_rate": "always"},
    )
    (run.path / "adapter").mkdir()  # nothing is trained here
    mistakes = induce(run)
    analyses = analyze(run, mistakes)
    stages = {
        "induce": lambda: induce(run),
        "analyze": lambda: analyze(run, mistakes),
        "preflight": lambda: preflight(run, analyses),
        "train": lambda: train(run, analyses),
    }
    stages[stage]()
    stages[stage]()
    adapter_in(start if stage == "train" else current, "<new, trained again>")
    with pytest.raises(InputError, match=f"has changed since .* --from {stage} "):
        stages[stage]()


def test_what_another_run_lent_is_not_mixed_with_answers_of_another_model(
    recipe_data, fake_model, fake_engine, tmp_path
):
    """The adapter of the first run is replaced before the second one begins."""
    current = adapter_in(tmp_path / "current", "<old>")
    recipe = Recipe.model_validate(recipe_data(adapter=str(current)))
    with open_run(tmp_path / "first", recipe) as opened, Session(opened) as run:
        analyze(run, induce(run))
    adapter_in(current, "<new, trained again>")
    fake_engine.batches.clear()
    with open_run(tmp_path / "second", recipe) as opened, Session(opened) as run:
        lend(recipe, tmp_path / "first", recipe, run.path)
        with pytest.raises(InputError, match=r"current: has changed since .*mistakes\.jsonl"):
            induce(run)
    assert not fake_engine.batches
    adapter_in(current, "<old>")
    with open_run(tmp_path / "second", recipe) as opened, Session(opened) as run:
        assert analyze(run, induce(run))
    assert not fake_engine.batches, "all of it was lent"


def test_texts_for_training_are_lent_with_the_note_of_training(recipe_data, fake_engine, tmp_path):
    given = {"model": "<a model>", "train.start": "<its own>"}
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    (tmp_path / "first" / NAME).write_text(json.dumps({"training.jsonl": given}))
    (tmp_path / "first" / "benign.jsonl").write_text("own answers")
    data = recipe_data()
    data["train"] |= {"helpful": data["instructions"], "helpful_from": "model"}
    recipe = Recipe.model_validate(data)
    lend(recipe, tmp_path / "first", recipe, tmp_path / "second")
    noted = json.loads((tmp_path / "second" / NAME).read_text())
    assert noted == {"training.jsonl": {"model": "<a model>"}}


def test_a_harvest_stops_at_other_weights_of_its_judge(fake_engine, fake_model, tmp_path):
    engine = fake_model("rater")
    (tmp_path / "chat.jsonl").write_text('{"prompt": "<a prompt>", "response": "<a response>"}\n')
    words = [f"engine={json.dumps(engine)}"]
    recipe = recipe_of(judge_recipe("llm", words), tmp_path / "out")

    def again():
        harvest(recipe, tmp_path / "out", Logs([str(tmp_path / "chat.jsonl")]), Settings())

    again()
    again()
    (tmp_path / "models" / "rater" / "config.json").write_text('{"other": 1}')
    with pytest.raises(InputError) as error:
        again()
    assert str(error.value) == (
        f"{tmp_path}/models/rater: has changed since {tmp_path}/out/scanned.jsonl was written with "
        "it; choose another folder with --out"
    )


def test_what_the_run_trained_itself_is_not_compared(open_session, tmp_path):
    run = open_session()
    own = adapter_in(run.path / "adapter", "<old>")
    respond(run, own)
    adapter_in(own, "<new, trained again>")
    respond(run, own)
    assert not any(
        "adapter" in entry for entry in json.loads((run.path / NAME).read_text()).values()
    )


def test_without_weights_there_is_no_note(open_session):
    run = open_session()
    check_weights(run, "respond", [run.path / "responses" / "vanilla.jsonl"], {})
    assert not (run.path / NAME).exists()
