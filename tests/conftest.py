"""Fixtures that several test files share: a fake engine, a tiny model, and the command line."""

import gc
import importlib
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from setbacks.notices import drop_notices, keep_notices

# A shell makes background processes, and all their children, ignore Ctrl-C; undo that.
signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:  # there are as many workers as cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def notices():
    """The notices that are given during a test."""
    given = []
    keep_notices(given.append)
    yield given
    drop_notices(given.append)


@pytest.fixture(autouse=True, scope="session")
def own_data(tmp_path_factory):
    """Keep what setbacks stores for its user apart, such as calibrations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SETBACKS_DATA", str(tmp_path_factory.mktemp("data")))
        yield


def pytest_xdist_auto_num_workers(config):
    """Run a few files in one process, which is faster; share out the whole suite."""
    few = config.args and all(Path(word.partition("::")[0]).is_file() for word in config.args)
    return 0 if few else min(os.cpu_count() or 1, 4)


def pytest_collection_modifyitems(items):
    """Let the long tests take as long as they do; `timeout` in pyproject.toml is for the others."""
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.timeout(0))


settings.register_profile(
    "setbacks", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("setbacks")

ANIMALS = "badger otter heron lizard salmon beetle falcon walrus".split()

# An engine of another package, loaded through its entry point like any other. Its text depends on
# the prompt and the seed alone. The name of the recipe's model selects how it answers.
RULES = """
import random
import time
from pathlib import Path

from setbacks.engines import Engine, by_length
from setbacks.records import Completion

ENDS = "ran lop mik tus".split()
WORDS = [begin + end for begin in "ba ce di fo gu ly".split() for end in ENDS]
batches = []  # every batch, in order: (requests, sampling, adapter)


class Rules(Engine):
    '''Answers by simple rules; each rule has the name of a model.'''

    def __init__(self, spec, words=None):
        self.name, self.batch_size = Path(spec.model).name, spec.batch_size

    def plan(self, requests):
        return by_length([len(request.prompt) for request in requests], self.batch_size)

    def generate(self, requests, sampling, adapter=None):
        batches.append((list(requests), sampling, adapter))
        if self.name == "sleeper" and len(batches) > 1:
            time.sleep(600)
        if self.name == "broken":
            raise RuntimeError("the engine fell over")
        texts = [getattr(self, self.name, self.talker)(request, sampling) for request in requests]
        return [Completion(text, "stop", 10, len(text.split())) for text in texts]

    def talker(self, request, sampling):
        words = random.Random(request.seed).sample(WORDS, 18)
        return f"{request.prefill} {request.prompt} {' '.join(words)}.".strip()

    def shouter(self, request, sampling):
        return self.talker(request, sampling).upper()

    def refuser(self, request, sampling):
        return "I cannot help with that request."

    def parrot(self, request, sampling):
        return "a parrot says this same sentence to everybody who asks"

    def rater(self, request, sampling):
        return f"Rating: {request.seed % 10 + 1}"

    def praiser(self, request, sampling):
        return "Rating: 10"

    def scolder(self, request, sampling):
        return "Rating: 1"

    def mumbler(self, request, sampling):
        return "It depends, perhaps a 7."

    def hesitant(self, request, sampling):
        return "Rating: 9" if sampling.temperature else "Well."
"""


@pytest.fixture(scope="module", autouse=True)
def freeze_loaded_modules():
    """Keep the garbage collection between stages from scanning all loaded libraries each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def plugins(tmp_path_factory):
    """A folder with the package of the fake engine, as pip would install it."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "rules_for_setbacks.py").write_text(RULES)
    info = folder / "rules_for_setbacks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: rules_for_setbacks\nVersion: 1.0\n"
    )
    (info / "entry_points.txt").write_text("[setbacks.engines]\nrules=rules_for_setbacks:Rules\n")
    return folder


@pytest.fixture
def fake_engine(plugins, monkeypatch):
    """The module of the fake engine; its `batches` holds every batch that it was given."""
    from setbacks.plugins import installed

    monkeypatch.syspath_prepend(plugins)
    installed.cache_clear()
    module = importlib.import_module("rules_for_setbacks")
    module.batches.clear()
    yield module
    installed.cache_clear()


@pytest.fixture
def data(tmp_path):
    """A file of six instructions with answers and responses."""
    path = tmp_path / "data.jsonl"
    rows = [
        {
            "instruction": f"<a question on the {animal}>",
            "answer": f"<a good answer on the {animal}>",
            "response": f"<a bad response on the {animal}, unlike any of the others: {animal}>",
        }
        for animal in ANIMALS[:6]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def fake_model(tmp_path):
    """Make the recipe section of a fake model: a folder named after a rule of the fake engine."""

    def make(name):
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").touch()
        return {"model": str(folder), "engine": "rules", "batch_size": 4}

    return make


@pytest.fixture
def recipe_data(data, fake_model):
    """Make the data of a recipe for the fake engine; given keys win."""

    def make(model="talker", /, **more):
        recipe = {
            "model": fake_model(model),
            "instructions": [str(data)],
            "decontaminate": None,  # the suite has the same prompts
            "analyze": {"contrast": [str(data)]},
            # The safe answers are for other methods; mistake analysis takes none of so few.
            "train": {"helpful": [str(data)], "safe": [str(data)], "mix": {"safe": 0.001}},
            "respond": {
                "suites": [{"name": "harmful", "kind": "harmful", "sources": [str(data)]}],
                "guidance": True,
            },
            "judges": [{"judge": "llm", "engine": fake_model("rater")}],
        } | more
        # The fake engine repeats its prompts and corrects no mistakes, as the default method needs.
        return recipe | {"train": {"method": "mistake_analysis"} | recipe["train"]}

    return make


@pytest.fixture
def recipe(fake_engine, recipe_data):
    """Make a recipe for the fake engine."""
    from setbacks.recipe import Recipe

    return lambda *args, **more: Recipe.model_validate(recipe_data(*args, **more))


@pytest.fixture
def open_session(tmp_path, recipe):
    """Open a session in a run folder on a recipe for the fake engine; close it after the test."""
    from contextlib import ExitStack

    from setbacks.runs.folder import RunFolder
    from setbacks.runs.session import Session

    with ExitStack() as stack:

        def opening(*args, folder="run", **more):
            run = stack.enter_context(RunFolder(tmp_path / folder, recipe(*args, **more)))
            return stack.enter_context(Session(run))

        yield opening


@pytest.fixture
def answered(tmp_path):
    """Make a run folder with the responses of its arms: arm -> [(kind, instruction, text)]."""
    from setbacks.recipe import Recipe
    from setbacks.records import Response, digest
    from setbacks.runs.folder import RunFolder

    def make(arms, folder="run"):
        with RunFolder(tmp_path / folder, Recipe(name=folder, train={"method": "sft"})) as run:
            for arm, rows in arms.items():
                records = [
                    Response(
                        id=digest(arm, kind, instruction),
                        arm=arm,
                        suite=f"suite-of-{kind}",
                        kind=kind,
                        instruction_id=digest(instruction),
                        instruction=instruction,
                        reference=None,
                        category=f"category-of-{kind}",
                        language="en",
                        guided=False,
                        text=text,
                        finish="stop",
                        prompt_tokens=1,
                        tokens=1,
                        model="m",
                    )
                    for kind, instruction, text in rows
                ]
                run.journal(f"responses/{arm}.jsonl", Response).write(records)
        return tmp_path / folder

    return make


@pytest.fixture(scope="session", autouse=True)
def data_folder(tmp_path_factory):
    """Replace the user's data folder, so that tests neither see nor change calibrations."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("data")
        patch.setenv("SETBACKS_DATA", str(folder))
        yield folder


@pytest.fixture
def no_home(monkeypatch):
    """A user without an entry in the password database, as in a container."""
    pwd = pytest.importorskip("pwd")

    def unknown(number):
        raise KeyError(number)

    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def analysis_of(number, text, *, harmful=True, passed=True, candidate=0):
    """An analysis of a numbered response, with a text of its own."""
    from setbacks.records import Analysis, digest

    return Analysis(
        id=digest("analysis", number, candidate),
        response_id=digest("response", number),
        instruction=f"<instruction {number}>",
        response=f"<mistake {number}>",
        harmful=harmful,
        text=text,
        candidate=candidate,
        checks={"agrees": passed},
        score=1.0,
        category=None,
        language="en",
        analyst="m",
    )


# The command line ------------------------------------------------------------------------------


@pytest.fixture
def environment(plugins):
    """The environment of a child process: with the plugins, without a hub."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(plugins), os.environ.get("PYTHONPATH")])),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
    }


@pytest.fixture
def command():
    """The installed command."""
    script = Path(sys.executable).with_name("setbacks")
    return [str(script)] if script.exists() else [sys.executable, "-m", "setbacks"]


@pytest.fixture
def cli(command, environment, tmp_path):
    """Run the command line in the folder of the test."""

    def call(*words, timeout=120):
        return subprocess.run(
            [*command, *map(str, words)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return call


@pytest.fixture
def cli_in_process(tmp_path, fake_engine, monkeypatch):
    """Run the command line like `cli`, but in this process, which loads libraries once."""
    from setbacks import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    ours, root = logging.getLogger("setbacks"), logging.getLogger()

    def call(*words):
        out, err = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "argv", ["setbacks", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        before = ours.level, ours.handlers, root.handlers
        ours.handlers, root.handlers = [], []  # the command adds handlers, as in a new process
        try:
            with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
                cli.main()
        finally:
            ours.level, ours.handlers, root.handlers = before
        return subprocess.CompletedProcess(words, ended.value.code, out.getvalue(), err.getvalue())

    return call


# Models ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with a random two-layer model and a byte-level tokenizer with a ChatML template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny") / "model"
    special = ["<|im_start|>", "<|im_end|>", "<|pad|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: index for index, word in enumerate([*special, *letters])}
    inner = Tokenizer(models.BPE(vocab=words, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=special[0],
        eos_token=special[1],
        pad_token=special[2],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def other_eos(tiny, tmp_path):
    """A copy of the tiny model with another eos than the token that ends a turn."""
    folder = tmp_path / "other-eos"
    shutil.copytree(tiny, folder)
    for name, changes in {
        "tokenizer_config.json": {"eos_token": "<|pad|>"},
        "config.json": {"eos_token_id": 2},
        "generation_config.json": {"eos_token_id": 2},
    }.items():
        data = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(data | changes))
    return folder


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


@pytest.fixture(scope="session")
def model_of(tiny, tmp_path_factory):
    """Make a folder with a small random model of any kind, beside the tiny model's tokenizer.

    Its weights are large enough for each token to depend on much of what came before it, and
    several tokens end an answer, so that rows of a batch end at different times.
    """
    import math

    import torch
    import transformers
    from transformers import AutoConfig, AutoTokenizer

    def make(kind, auto="AutoModelForCausalLM", *, sizes=SIZES, **overrides):
        tokenizer = AutoTokenizer.from_pretrained(tiny)
        config = AutoConfig.for_model(kind, **{"vocab_size": len(tokenizer), **sizes, **overrides})
        torch.manual_seed(0)
        model = getattr(transformers, auto).from_config(config).eval()
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "conv" not in name:
                scale = 1.6 / math.sqrt(weight.shape[1])
                if "embed" in name or "wte" in name:
                    scale = 0.1 if "gemma" in kind else 0.7  # Gemma's are multiplied later
                torch.nn.init.normal_(weight, std=scale)
        model.tie_weights()
        if model.can_generate():
            model.generation_config.eos_token_id = [1, *range(150, 216)]
        folder = tmp_path_factory.mktemp(kind) / "model"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(
    scope="session",
    params=["tiny", pytest.param("smollm2-135m", marks=pytest.mark.slow)],
)
def spec(request):
    """The recipe section of a model: a tiny random one, and the embedded one (slow)."""
    from setbacks.recipe import Engine

    name = request.param
    model = str(request.getfixturevalue("tiny")) if name == "tiny" else name
    return Engine(model=model, dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def tokenizer(spec):
    """The model's tokenizer."""
    from setbacks.models.loading import load_tokenizer

    return load_tokenizer(spec)


@pytest.fixture(scope="session")
def model(spec):
    """The model itself."""
    from setbacks.models.loading import load_model

    return load_model(spec).eval()


def adapter_of(spec, folder):
    """Save an adapter of a model, with random weights large enough to change its answers."""
    import torch
    from peft import LoraConfig, get_peft_model

    from setbacks.models.embedded import ALIAS, HUB_ID
    from setbacks.models.loading import load_model

    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(load_model(spec), config).save_pretrained(folder)
    path = folder / "adapter_config.json"
    data = json.loads(path.read_text())
    data["base_model_name_or_path"] = HUB_ID if spec.model == ALIAS else spec.model
    path.write_text(json.dumps(data))
    return folder


@pytest.fixture(scope="session")
def lora(spec, tmp_path_factory):
    """The folder of an adapter of the model to test on."""
    return adapter_of(spec, tmp_path_factory.mktemp("lora") / "adapter")


@pytest.fixture(scope="session")
def lora_of_tiny(tiny, tmp_path_factory):
    """The folder of an adapter of the tiny model."""
    from setbacks.recipe import Engine

    spec = Engine(model=str(tiny), dtype="float32", device="cpu")
    return adapter_of(spec, tmp_path_factory.mktemp("lora") / "adapter")


@pytest.fixture
def tiny_recipe(tiny, tmp_path, recipe_data, fake_engine):
    """Make a recipe that has the tiny model analyze and train on a few words of made-up data."""

    def make(number=24, **more):
        path = tmp_path / f"{number}.jsonl"
        rows = [
            {"instruction": f"<q {i}>", "answer": f"<answer {i}>", "response": f"<bad {i}, {i**3}>"}
            for i in range(number)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        drawn = {"max_new_tokens": 4, "temperature": 1.0}
        suites = [
            {"name": kind, "kind": kind, "sources": [str(path)]}
            for kind in ("harmful", "safe", "helpful")
        ]
        parts = {
            "model": {"model": str(tiny), "dtype": "float32", "device": "cpu"},
            "instructions": [str(path)],
            "induce": {"source": "existing", "existing": [str(path)]},
            "analyze": {
                "contrast": [str(path)],
                "candidates": 1,
                "min_words": 1,
                "min_overlap": 0,
                "min_distinct": 0,
                "sampling": drawn,
            },
            "respond": {"suites": suites, "sampling": {"max_new_tokens": 6}},
            "train": {
                "helpful": [str(path)],
                "safe": [str(path)],
                "steps": 4,
                "batch_size": 4,
                "lora": {"r": 2},
            },
        }
        from setbacks.recipe import Recipe

        return Recipe.model_validate(recipe_data(**parts | more))

    return make


@pytest.fixture
def loop_recipe(tiny_recipe, tmp_path):
    """Make a recipe for `setbacks loop` on the tiny model, whose gate accepts every round."""

    def make(**loop):
        from setbacks.recipe import Recipe

        def suites(name, *kinds):
            path = tmp_path / f"{name}.jsonl"
            rows = [json.dumps({"text": f"<{name} {i}>"}) for i in range(6)]
            path.write_text("\n".join(rows) + "\n")
            return [{"name": kind, "kind": kind, "sources": [str(path)]} for kind in kinds]

        data = tiny_recipe(8).model_dump(mode="json")
        data["train"] |= {"steps": 2, "learning_rate": 0.02}
        data["respond"] |= {"suites": suites("test", "harmful", "safe", "helpful")}
        accepting = {"better": [], "no_worse": ["helpful_score:9"]}
        validation = suites("validation", "harmful", "safe", "helpful")
        data["loop"] = {"rounds": 3, "validation": validation, "gate": accepting} | {
            "stream": suites("stream", "harmful"),
            "slice": 2,
            **loop,
        }
        return Recipe.model_validate(data)

    return make
