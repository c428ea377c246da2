"""The hub, by its own client library, against a small one on this machine and against none."""

import json
import os
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

WHOLE = {"config.json": b"{}", "model.safetensors": b"<weights>"}
MODELS = {"own/whole": WHOLE, "own/adapter": {"adapter_config.json": b"{}"}, "own/empty": {}}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as gives a file of a model."""

    status = 200  # of its first page

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        if self.path == "/":
            return self.answer(self.status)
        owner, name, _, revision, file = self.path.strip("/").split("/")
        files = MODELS.get(f"{owner}/{name}")
        if owner == "gated":
            return self.answer(403, error="GatedRepo")
        if files is None:
            return self.answer(401, error="RepoNotFound")
        if revision not in ("main", "a" * 40):
            return self.answer(404, error="RevisionNotFound")
        return (
            self.answer(200, files[file])
            if file in files
            else self.answer(404, error="EntryNotFound")
        )

    do_GET = do_HEAD

    def answer(self, status, data=b"", error=None):
        self.send_response(status)
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("ETag", f'"{data.hex()}"')
        self.send_header("Content-Length", str(len(data)))
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@pytest.fixture
def hub():
    """A hub on this machine: its address, and its handler."""
    handler = type("Mine", (Hub,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()


@pytest.fixture
def nowhere():
    """An address at which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def silent():
    """The address of a server that takes requests, and never answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def check(tmp_path):
    """Look models up in a process of its own; return what each comes to."""

    def call(address, *models, first="", **more):
        code = (
            "import json, sys\n"
            "from setbacks import hub\n"
            f"{first}\n"
            "def said(model):\n"
            "    try:\n"
            "        return hub.check_model(*model.split('@'))\n"
            "    except hub.InputError as error:\n"
            "        return str(error)\n"
            "print(json.dumps([said(model) for model in sys.argv[1:]]))"
        )
        ran = subprocess.run(
            [sys.executable, "-c", code, *models],
            env=os.environ
            | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
            | {"HF_HUB_DISABLE_XET": "1"}
            | more,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        return json.loads(ran.stdout)

    return call


def test_a_model_is_looked_up_before_it_is_needed(check, hub):
    address, _ = hub
    found = check(
        address,
        *("own/whole", "own/whole@main", "own/adapter", "own/whole@mane"),
        *("own/hole", "gated/model", "own/empty"),
    )
    assert found[:3] == [None, None, None]
    assert (
        f'model "own/whole" has no revision "mane" on the hub; see {address}/own/whole' in found[3]
    )
    assert 'model "own/hole" is not on the hub, or is private; check its name' in found[4]
    assert f"is gated; accept its terms at {address}/gated/model, and set HF_TOKEN" in found[5]
    assert "is not a model: it has no config.json on the hub" in found[6]


def test_without_a_hub_what_was_downloaded_is_used(check, hub, nowhere, tmp_path):
    fetch = "from huggingface_hub import hf_hub_download\n" + "\n".join(
        f"hf_hub_download('own/whole', '{name}')" for name in WHOLE
    )
    assert check(hub[0], "own/whole", first=fetch) == [None]
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        found, lacking = check(nowhere, "own/whole", "own/adapter", **more)
        assert found is None
        assert 'model "own/adapter": not a folder here, the hub cannot be reached (' in lacking
        assert f"{tmp_path}/hf/hub has no copy of it; name a local folder" in lacking
        assert ("HF_HUB_OFFLINE is set" if more else nowhere) in lacking


def test_a_hub_that_is_down_or_silent_is_given_up_soon(check, hub, silent):
    address, handler = hub
    handler.status = 503
    assert (
        f"cannot be reached ({address} answers with status 503)" in check(address, "own/whole")[0]
    )
    begun = time.monotonic()
    (said,) = check(silent, "own/whole", first="hub.PATIENCE = 1.0")
    assert "cannot be reached" in said and time.monotonic() - begun < 30


def test_a_cache_that_cannot_be_written_is_named(check, hub, tmp_path):
    (tmp_path / "file").touch()
    (said,) = check(hub[0], "own/whole", HF_HOME=str(tmp_path / "file"))
    assert "cannot be saved: " in said and "set HF_HOME to a writable folder" in said


@pytest.mark.skipif(os.name != "posix", reason="Windows always has a home folder")
def test_without_a_home_folder_the_variable_is_named(check, hub, monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    first = "import pwd\ndef unknown(number): raise KeyError(number)\npwd.getpwuid = unknown"
    (said,) = check(hub[0], "own/whole", first=first, HF_HOME="~/.cache/huggingface")
    assert said == "this user has no home folder; set HOME, or set HF_HOME to a folder"


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "m=own/model", "--suite", "harmful=a.jsonl"],
        ["evaluate", "m=a.jsonl", "--suite", "harmful=hub:own/set"],
        ["evaluate", "m=a.jsonl", "--suite", "harmful=hub:own/set/a.jsonl"],
        ["run", "judges=[{judge: qwen3guard, engine: own/guard}]"],
        ["run", "model=own/model"],
        ["run", "judges=[{judge: llm, engine: own/judge}]"],
    ],
    ids=["model", "set", "file of a set", "guard", "trained", "judge"],
)
def test_a_command_says_so_in_one_line_before_any_work(
    command, environment, tmp_path, nowhere, words
):
    (tmp_path / "a.jsonl").write_text('{"prompt": "<a>", "response": "<b>"}\n', encoding="utf-8")
    ran = subprocess.run(
        [*command, *words, "--out", "run"],
        cwd=tmp_path,
        env=environment
        | {"HF_ENDPOINT": nowhere, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert ran.returncode == 2 and ran.stdout == ""
    *unpacking, line = ran.stderr.splitlines()  # the embedded model may be used for the first time
    assert all("smollm2-135m" in one or "converted in" in one for one in unpacking)
    assert "own/" in line and "the hub cannot be reached" in line
    assert not (tmp_path / "run").exists()
