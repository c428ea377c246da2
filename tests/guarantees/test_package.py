"""The published package: it builds, holds all that it needs, installs and runs by itself."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that is built from it."""
    pytest.importorskip("build", reason="building takes the `dev` extra")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    if subprocess.run([sys.executable, "-c", "import hatchling"], capture_output=True).returncode:
        command.remove("--no-isolation")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    return sdist, wheel


def test_the_wheel_holds_every_file_of_the_package(built):
    """Templates, styles, prompts, heads, data sets: all that git keeps below `setbacks`."""
    package = ROOT / "setbacks"
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {Path(name).suffix for name in wanted} >= {
        ".py", ".yaml", ".css", ".js", ".svg", ".jinja", ".safetensors", ".json", ".jsonl"
    }  # fmt: skip
    with zipfile.ZipFile(built[1]) as wheel:
        assert wanted <= set(wheel.namelist())


def test_it_installs_and_runs_in_a_clean_environment(built, tmp_path):
    """Its own files come from the wheel; its dependencies from this environment."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = str(home / "bin" / "python")
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", str(built[1])],
        check=True,
        env=clean,
    )
    (site,) = home.glob("lib/python*/site-packages")
    here = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(here) + "\n")
    said = subprocess.run(
        [python, "-c", "import setbacks; print(setbacks.__file__)"],
        cwd=tmp_path, env=clean, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout.startswith(str(home)), said.stdout
    (tmp_path / "a.jsonl").write_text('{"prompt": "<x>", "response": "I cannot help with it."}\n')
    for words in (
        ["--version"],
        ["new", "mine.yaml"],
        ["evaluate", "a=a.jsonl", "--suite", "safe=a.jsonl", "--judge", "refusal", "--out", "run"],
    ):
        done = subprocess.run(
            [str(home / "bin" / "setbacks"), *words],
            cwd=tmp_path, env=clean, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
