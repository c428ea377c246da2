"""Fingerprints of weights on this machine, which tell whether a path still holds the same ones.

A fingerprint depends on names in a folder and on content, never on the path, the time or the
machine: a copy has the same one, and a model that was trained again has another. Adapters and small
files are read whole. Of large weights only a little is read: the list of tensors, and two blocks of
each, since training changes almost every number of what it trains.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import BinaryIO

from setbacks.errors import InputError
from setbacks.files import expanded
from setbacks.models.adapters import named_base
from setbacks.models.embedded import MODELS
from setbacks.recipe import Engine
from setbacks.records import digest

LARGE = 1 << 26  # bytes; weights above are sampled
BLOCK = 1 << 12  # bytes
SLICES = 1 << 8  # of a large file without a list of tensors
LONGEST_LIST = 100_000_000  # bytes of a list of tensors, the limit of safetensors
READ_WHOLE = {"adapter_model.safetensors"}
# Pages for people, and pickles, which are never loaded, such as the state of an optimizer.
IGNORED = {".md", ".bin", ".pt", ".pth"}


def weights_of(spec: Engine, adapter: Path | None = None) -> dict[str, Path]:
    """Return the folders here that a model is loaded from, by what they hold.

    Embedded models, and models of a hub or a server, have none.

    Args:
        spec: the model; if its folder holds an adapter, its base model's folder counts as well.
        adapter: a PEFT folder for it, if any.
    """
    found: dict[str, Path] = {}
    if spec.on_disk and spec.model not in MODELS and (folder := expanded(spec.model)).is_dir():
        found["model"] = folder
        base = named_base(folder / "adapter_config.json")
        if base and Path(base).is_dir():
            found["base model"] = Path(base)
    return found if adapter is None else found | {"adapter": adapter}


def fingerprints(used: Mapping[str, Path]) -> dict[str, str]:
    """Return the fingerprints of files and folders by what they hold; what is missing has none.

    Raises:
        InputError: one cannot be read.
    """
    return {what: now for what, path in used.items() if (now := fingerprint(path)) is not None}


def fingerprint(path: Path) -> str | None:
    """Return the fingerprint of a file, or of the files in a folder; None if there is nothing.

    Raises:
        InputError: it cannot be read.
    """
    try:
        if path.is_file():
            return _of_file(path)
        if not path.is_dir():
            return None
        files = [
            file
            for file in sorted(path.iterdir())
            if file.is_file() and file.suffix not in IGNORED and not file.name.startswith(".")
        ]
        return digest(*(part for file in files for part in (file.name, _of_file(file))))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its rights") from None


def _of_file(path: Path) -> str:
    path = path.resolve()
    state = path.stat()
    return _read(path, state.st_size, state.st_mtime_ns, state.st_ino)


@cache
def _read(path: Path, size: int, *_: int) -> str:
    """Read a file once per process while its size, time and number stay.

    The variants of a comparison share their models.
    """
    with open(path, "rb") as file:
        if size <= LARGE or path.name in READ_WHOLE:
            return digest(hashlib.file_digest(file, "sha256").hexdigest())
        content = hashlib.sha256(str(size).encode())
        for part in _sampled(file, size):
            content.update(part)
    return digest(content.hexdigest())


def _sampled(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield parts of a large file: its list of tensors, and two blocks of each tensor."""
    begin = file.read(8)  # the length of the list, in safetensors
    length = int.from_bytes(begin, "little")
    listed = file.read(length if length <= LONGEST_LIST else 0)
    yield begin + listed
    for start, end in _tensors(listed, size) or _slices(size):
        for place in ((start + end) // 2, max(start, end - BLOCK)):
            file.seek(place)
            yield file.read(BLOCK)


def _tensors(listed: bytes, size: int) -> list[tuple[int, int]]:
    """Return the span of bytes of each tensor in a safetensors file; empty for other files."""
    try:
        tensors = json.loads(listed)
        offsets = [tensors[name]["data_offsets"] for name in tensors if name != "__metadata__"]
        begin = 8 + len(listed)
        spans = sorted((begin + int(start), begin + int(end)) for start, end in offsets)
    except (ValueError, TypeError, KeyError, RecursionError):
        return []
    return [(start, end) for start, end in spans if 0 <= start <= end <= size]


def _slices(size: int) -> list[tuple[int, int]]:
    """Cut a file of another form into equal slices."""
    return [(size * part // SLICES, size * (part + 1) // SLICES) for part in range(SLICES)]
