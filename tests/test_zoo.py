"""Every architecture of the zoo: what the engine writes, and a run from mistakes to an export.

The truth is the plainest there is: transformers' own class reads a whole text, one row, without a
cache and without padding, and the likeliest next token is taken. `python
benchmarks/architectures.py` runs these tests and writes what they found as a table.
"""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import zoo

from setbacks import pipeline
from setbacks.engines import fidelity, graphs, local, reading
from setbacks.engines.local import Local
from setbacks.export import export
from setbacks.models.adapters import attached, merged
from setbacks.models.loading import load_model
from setbacks.recipe import Engine, Recipe, Sampling
from setbacks.records import Message, Request

NEW = 20  # tokens of each text
SAMPLING = Sampling(max_new_tokens=NEW)
TEXTS = [
    "Hi",
    "Say yes.",
    "Name three colors, and nothing else.",
    "What is the capital of France, and what is that of Spain?",
    "One two three four five six seven eight nine ten eleven twelve thirteen fourteen",
    "Write one sentence on the sea, and one on the mountains that lie behind it, far away.",
]
CONVERSATIONS = [
    tuple(Message(role=role, content=text) for role, text in turns)
    for turns in (
        [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", TEXTS[3])],
        [("user", TEXTS[2]), ("assistant", "Red, green, blue."), ("user", "And one more.")],
    )
]
GUIDANCE = "Be helpful and harmless, and be brief. "


def parameters(names):
    """Of an architecture: slow where every CI run tries it, and all of them long."""
    marks = {True: [pytest.mark.slow, pytest.mark.long], False: [pytest.mark.long]}
    return [pytest.param(name, marks=marks[zoo.ZOO[name].every_run]) for name in names]


WORKING = parameters(name for name, data in zoo.ZOO.items() if data.refused is None)
REFUSED = parameters(name for name, data in zoo.ZOO.items() if data.refused is not None)


@pytest.fixture(scope="module", params=WORKING)
def architecture(request):
    return request.param


@pytest.fixture(scope="module")
def folder(architecture, tmp_path_factory):
    """A model of the architecture, as it would be published."""
    return zoo.build(architecture, tmp_path_factory.mktemp("zoo") / architecture)


@pytest.fixture(scope="module")
def plain(architecture, folder):
    """The same model, as transformers loads it."""
    return Plain(zoo.ZOO[architecture].loader, folder)


@pytest.fixture(scope="module")
def spec(folder):
    return Engine(model=str(folder), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def engine(spec):
    return Local(spec)


class Plain:
    """A model that reads whole texts, one at a time."""

    def __init__(self, loader, folder):
        import torch
        from transformers import AutoTokenizer

        self.model = loader.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.stops = set(self.model.generation_config.eos_token_id)

    def logits(self, ids):
        """What comes after each token, [tokens, vocabulary]."""
        import torch

        with torch.inference_mode():
            return self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()

    def writes(self, text):
        """The answer and how it ends; None where two tokens are as likely as each other."""
        ids, written = zoo.prompt_ids(text), []
        for _ in range(NEW):
            logits = self.logits(ids + written)[-1]
            (first, second), (token, _) = (top.tolist() for top in logits.topk(2))
            if first - second < 1e-4 * float(logits.std()):
                return None
            if token in self.stops:
                break
            written.append(token)
        words = self.tokenizer.decode(written, skip_special_tokens=True).strip()
        return words, "stop" if len(written) < NEW else "length", len(written)

    def shares(self, text, begun, options):
        """How likely the answer goes on with each option, if with one of them."""
        import torch

        start = len(zoo.prompt_ids(text, begun))
        logs = []
        for option in options:
            ids = zoo.prompt_ids(text, begun + option)
            each = self.logits(ids).log_softmax(dim=-1)
            logs.append(sum(float(each[n - 1, ids[n]]) for n in range(start, len(ids))))
        return torch.tensor(logs).softmax(dim=0).tolist()


def agree(engine, plain, texts):
    """Whether an engine writes what a plain model writes, in one batch."""
    made = engine.generate([Request(text, seed) for seed, text in enumerate(texts)], SAMPLING)
    got = [(one.text, one.finish, one.tokens) for one in made]
    expected = {text: plain.writes(text) for text in set(texts)}
    clear = [n for n, text in enumerate(texts) if expected[text] is not None]
    assert len(clear) >= len(texts) - 2, "ties: nothing to compare"
    assert [got[n] for n in clear] == [expected[texts[n]] for n in clear]
    return got


# What an engine writes ---------------------------------------------------------------------------


def test_a_token_depends_on_what_is_far_before_it(plain):
    """Else nothing below could fail: the models of the zoo have to be worth asking."""
    ids = zoo.prompt_ids(TEXTS[-1])
    other = [*ids[:-12], *ids[-20:-12], *ids[-4:]]
    here, there = plain.logits(ids)[-1], plain.logits(other)[-1]
    assert float((here - there).abs().max()) > 0.1 * float(here.std())


def test_greedy_text_is_that_of_a_plain_forward(engine, plain, record_property):
    """Prompts of uneven length in one batch, one of them twice; rows that end on the way."""
    notes = []
    engine.note = notes.append
    made = agree(engine, plain, [*TEXTS, TEXTS[1]])
    assert "stop" in {finish for _, finish, _ in made} and len({n for _, _, n in made}) > 1
    # What prompts share is read once; conversations are in one batch with single questions.
    agree(engine, plain, [*(GUIDANCE + text for text in TEXTS[:3]), *CONVERSATIONS])
    (said,) = notes
    *_, way = (way for way in fidelity.WAYS if way in said)
    if way != "in batches with our attention":
        record_property("cell", f"pass, {way}")


def test_a_choice_is_that_of_a_plain_forward(engine, plain):
    options, begun = [" harmful", " harmless", " it depends", "?"], "The answer is"
    made = engine.choose([Request(text, 0, begun) for text in TEXTS[:4]], options)
    for text, shares in zip(TEXTS, made, strict=False):
        assert shares == pytest.approx(plain.shares(text, begun, options), abs=1e-4), text


def test_replayed_steps_give_the_text_of_a_plain_forward(spec, plain, monkeypatch, record_property):
    """What a GPU captures in a graph and replays, run as it is: the same forward, fixed places."""
    from transformers import DynamicCache

    def run(step):
        replayed.append(step)
        forward(step)

    replayed, forward = [], graphs.Step.run
    monkeypatch.setattr(graphs.Step, "run", run)
    monkeypatch.setattr(local, "_checked", {})
    monkeypatch.setattr(fidelity, "ways", lambda *_: list(fidelity.WAYS))
    monkeypatch.setattr(reading, "cache_for", lambda model: DynamicCache(config=model.config))
    engine = Local(spec)
    engine.generate([Request(TEXTS[0], 0)], SAMPLING)  # checks the model, with steps of its own
    replayed.clear()
    agree(engine, plain, TEXTS)
    if not replayed:
        record_property("cell", "not replayed")


# A run and what comes out of it ------------------------------------------------------------------


def recipe(folder, place):
    """A run of two steps on a few rows, with everything on that asks the engine in its own way."""
    rows = [
        {
            "instruction": f"<a question {'that goes on ' * (n % 4)}on {n}>",
            "answer": f"<an answer {n}>",
            "response": f"<PLACEHOLDER {n}, {n**3}>",
        }
        for n in range(4)
    ]
    data = place / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model": {"model": str(folder), "dtype": "float32", "device": "cpu", "batch_size": 4},
        "instructions": [str(data)],
        "decontaminate": None,  # the same rows are learned and tested
        "induce": {"source": "existing", "existing": [str(data)]},
        "analyze": {
            "contrast": [str(data)],
            "min_words": 1,
            "max_words": 1000,
            "min_overlap": 0,
            "min_distinct": 0,
            "sampling": {"max_new_tokens": 12, "temperature": 0.8},
        },
        "train": {
            "method": "mistake_analysis",
            "helpful": [str(data)],
            "steps": 2,
            "batch_size": 4,
            "learning_rate": 0.02,  # two steps have to be heard
            "warmup": 0,
            "lora": {"r": 2},
        },
        "respond": {
            "guidance": False,
            "posterior": {"drafts": 2},
            "suites": [
                {"name": kind, "kind": kind, "sources": [str(data)]} for kind in ("harmful", "safe")
            ],
            "sampling": {"max_new_tokens": 12},
        },
        "judges": [{"judge": "refusal"}],
    }
    return Recipe.model_validate(values)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """The folder of a run on the architecture."""
    place = tmp_path_factory.mktemp("run")
    pipeline.run(recipe(folder, place), place / "run")
    return place / "run"


def test_a_run_of_two_steps(run):
    before, after, chosen = (
        lines(run / "responses" / f"{arm}.jsonl")
        for arm in ("vanilla", "mistake_analysis", "mistake_analysis-posterior")
    )
    assert len(before) == len(after) == len(chosen) == 8
    assert [row["text"] for row in before] != [row["text"] for row in after]
    assert len(lines(run / "loss.jsonl")) == 2 and (run / "report.html").exists()


def test_merged_is_beside(run, spec):
    """An adapter merged into the weights gives the logits that it gives beside them."""
    import torch

    ids = torch.tensor([zoo.prompt_ids(TEXTS[-1])])
    with torch.inference_mode():
        base, beside, within = (
            make().eval()(input_ids=ids, use_cache=False).logits
            for make in (
                lambda: load_model(spec),
                lambda: attached(load_model(spec), run / "adapter"),
                lambda: merged(load_model(spec), run / "adapter"),
            )
        )
    changed = float((beside - base).abs().max())
    assert changed > 0.1
    assert float((beside - within).abs().max()) < 1e-3 * changed


def test_an_export_writes_what_the_run_wrote(architecture, run, folder, tmp_path):
    import torch
    from peft import PeftModel

    loader = zoo.ZOO[architecture].loader
    whole = export(run, tmp_path / "whole", "merged")
    assert {path.name for path in folder.iterdir()} <= {path.name for path in whole.iterdir()}
    model, found = loader.from_pretrained(whole, dtype=torch.float32, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    exported = Plain(loader, whole)
    for row in lines(run / "responses/mistake_analysis.jsonl"):
        ids = torch.tensor([zoo.prompt_ids(row["instruction"])])
        out = model.eval().generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12
        )
        written = [
            token for token in out[0, ids.shape[1] :].tolist() if token not in exported.stops
        ]
        assert exported.tokenizer.decode(written, skip_special_tokens=True).strip() == row["text"]

    part = export(run, tmp_path / "part", "adapter")
    beside = PeftModel.from_pretrained(loader.from_pretrained(folder, dtype=torch.float32), part)
    with torch.inference_mode():
        theirs = beside.eval()(input_ids=ids, use_cache=False).logits[0]
    ours = exported.logits(ids[0].tolist())
    assert float((theirs - ours).abs().max()) < 1e-3 * float(ours.std())


# Killed ------------------------------------------------------------------------------------------

KILLED = [  # with states; with a window; with a vision tower
    *parameters(["qwen3_next"]),
    *(pytest.param(name, marks=pytest.mark.long) for name in ("mistral", "gemma3")),
]


@pytest.mark.parametrize("architecture", KILLED, indirect=True)
def test_a_run_that_is_killed_ends_with_the_same_bytes(
    architecture, folder, tmp_path, command, environment
):
    """Killed in training and in answering, as nothing can be prepared for."""
    (tmp_path / "recipe.yaml").write_text(recipe(folder, tmp_path).to_yaml())
    longer = ["train.steps=40", "train.checkpoint_every=4", "train.learning_rate=1e-4"]

    def start(name):
        return subprocess.Popen(
            [*command, "run", "recipe.yaml", *longer, "model.batch_size=2", "--out", name],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    assert start("whole").wait(timeout=300) == 0
    killed = tmp_path / "killed"
    for sign in ("checkpoints/checkpoint-4/whole", "responses/mistake_analysis.jsonl"):
        process = start("killed")
        while process.poll() is None and not (killed / sign).exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL, "it ended before it could be killed"
    assert start("killed").wait(timeout=300) == 0
    assert everything(killed) == everything(tmp_path / "whole")


def everything(folder):
    """The bytes of a run's records and weights; other files tell the time."""
    paths = [*folder.rglob("*.jsonl"), *folder.glob("adapter/*")]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in paths
        if path.name != "costs.jsonl"
    }


# Refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_wrong_is_refused_in_one_line(
    name, cli_in_process, tmp_path, record_property
):
    """Before the model is asked anything: at most the mistakes that are in the data are there."""
    folder = zoo.build(name, tmp_path / name)
    (tmp_path / "recipe.yaml").write_text(recipe(folder, tmp_path).to_yaml())
    suite = f"harmful={tmp_path / 'data.jsonl'}"
    for words in (
        ("evaluate", folder, "--suite", suite, "--judge", "refusal", "--out", "evaluation"),
        ("run", "recipe.yaml", "--out", "run"),
    ):
        ended = cli_in_process(*words)
        *_, line = ended.stderr.splitlines()  # what comes before is progress: 0 of so many
        assert ended.returncode == 2 and line.startswith("setbacks: "), ended.stderr
        assert str(folder) in line and zoo.ZOO[name].refused in line
    made = {path.name for path in tmp_path.glob("*/**/*.jsonl") if path.stat().st_size}
    assert made <= {"mistakes.jsonl", "costs.jsonl"}
    record_property("cell", line.removeprefix(f'setbacks: model "{folder}": '))


# The table ---------------------------------------------------------------------------------------


def test_the_table_has_every_architecture_and_none_that_fails():
    path = Path(__file__).parents[1] / "benchmarks" / "results" / "architectures.json"
    rows = json.loads(path.read_text())["rows"]
    assert [row["architecture"] for row in rows] == list(zoo.ZOO)
    assert not [row for row in rows if any(cell.startswith("FAILED") for cell in row.values())]
