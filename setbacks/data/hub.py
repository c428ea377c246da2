"""Read sets of the hub and folders on disk with the libraries that wrote them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from setbacks.data.classes import by_name
from setbacks.data.formats import KINDS, ending, read
from setbacks.data.source import Record, Source, bad, choose_split
from setbacks.errors import InputError
from setbacks.notices import notice


def from_datasets(place: str, where: str | Path, source: Source) -> list[Record]:
    """Read a set of the hub, or a folder on disk.

    Args:
        place: of the set, for messages.
        where: its name on the hub, or the folder.
        source: the recipe's section.

    Raises:
        InputError: it does not exist or cannot be read.
    """
    import datasets

    try:
        if _is_saved(where):
            data = datasets.load_from_disk(str(where))
            if source.split is not None and not isinstance(data, datasets.DatasetDict):
                choose_split(place, [str(data.split)] if data.split else [], source.split)
        else:
            builder = _builder(str(where), source)
            if isinstance(where, Path):
                _count_unread(place, where, builder, source)
                if files := _own_files(place, builder, source):
                    return _read_files(place, where, files, source)
            builder.download_and_prepare()
            data = builder.as_dataset(source.split)
        if isinstance(data, datasets.DatasetDict):
            data = data[_split(place, list(data), source.split)]
        records = [Record(f"row {number}", dict(row)) for number, row in enumerate(data, start=1)]
        return by_name(records, data.features.to_dict())
    except InputError:
        raise
    except Exception as error:  # the library raises many kinds
        raise _hub_trouble(place, error) from None


def _is_saved(where: str | Path) -> bool:
    """Return whether a folder was written by `save_to_disk`."""
    names = ("state.json", "dataset_dict.json")
    return isinstance(where, Path) and any((where / name).exists() for name in names)


def _builder(where: str, source: Source) -> Any:
    """Return the builder of a set; in CSV files only an empty cell is missing, and "NA" is text."""
    import datasets

    build = partial(datasets.load_dataset_builder, where, source.config, revision=source.revision)
    try:
        return build(keep_default_na=False, na_values=[""])
    except ValueError as error:
        # Not a CSV file, or offline with a copy that was stored without these options.
        if "keep_default_na" not in str(error) and "find cache" not in str(error):
            raise
        return build()


def _count_unread(place: str, folder: Path, builder: Any, source: Source) -> None:
    """Report the files of a folder that `datasets` does not read."""
    files = (Path(file) for of in (builder.config.data_files or {}).values() for file in of)
    used = {file.resolve() for file in files}
    left_out = [
        str(name)
        for file in sorted(folder.rglob("*"))
        if ending(file.name) in KINDS and file.is_file() and file.resolve() not in used
        if not (name := file.relative_to(folder)).name.startswith("dataset_info")
        if not any(part.startswith(".") for part in name.parts)
    ]
    if left_out and source.config is None:
        names = ", ".join(left_out[:3]) + (", ..." if left_out[3:] else "")
        notice(
            f"{place}: left out {len(left_out)} of its files ({names}); to read one, name the file"
        )


def _own_files(place: str, builder: Any, source: Source) -> list[Path]:
    """Return the files of a folder that can be read like any other file.

    The readers of `datasets` guess types, and drop values that look like missing ones. They are
    needed for other kinds of files, for a part of a split, and if the folder's card declares types.
    """
    splits = {str(name): files for name, files in (builder.config.data_files or {}).items()}
    if not splits or builder.info.features or source.split not in (None, *splits):
        return []
    files = [Path(file) for file in splits[_split(place, list(splits), source.split)]]
    return files if all(ending(file.name) in KINDS for file in files) else []


def _read_files(place: str, folder: Path, files: Sequence[Path], source: Source) -> list[Record]:
    whole = source.model_copy(update={"split": None})
    names = [str(f.relative_to(folder)) if f.is_relative_to(folder) else f.name for f in files]
    return [
        Record(f"{name}, {at}", value)
        for name, file in zip(names, files, strict=True)
        for at, value in read(f"{place}, {name}", file, whole)
    ]


def _split(place: str, splits: list[str], wanted: str | None) -> str:
    """Return the split to use; among several, the one named "train"."""
    return choose_split(place, splits, "train" if not wanted and "train" in splits else wanted)


def download(place: str, repo: str, file: str, revision: str | None) -> Path:
    """Download one file of a set on the hub, to read it like any other file."""
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.hf_hub_download(repo, file, repo_type="dataset", revision=revision)
        )
    except Exception as error:  # the library raises many kinds
        raise _hub_trouble(place, error) from None


def _hub_trouble(place: str, error: Exception) -> InputError:
    """Return an error that says what a library's error means, and what to do."""
    message, kind = str(error).strip(), type(error).__name__
    page = "https://huggingface.co/datasets/" + "/".join(place.removeprefix("hub:").split("/")[:2])
    copy = "or download it elsewhere and name the file (source: FILE, or preset: with path: FILE)"
    first = message.splitlines()[0] if message else kind
    if not place.startswith("hub:"):
        return bad(f"{place} cannot be read as a dataset: {first}")
    if kind == "GatedRepoError" or "is a gated dataset" in message:
        return bad(f"{place} is gated: accept its terms at {page}, log in (hf auth login), {copy}")
    if isinstance(error, ConnectionError | TimeoutError) or kind in (
        "LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectTimeout",
    ):  # fmt: skip
        return bad(f"{place}: the hub cannot be reached; try again with a network, {copy}")
    if kind in ("DatasetNotFoundError", "RepositoryNotFoundError", "DataFilesNotFoundError"):
        return bad(f"{place} is not on the hub, or is private: check {page}, {copy}")
    if kind.endswith("EntryNotFoundError"):
        return bad(f"{place}: file not found; {page}/tree/main lists the files")
    if "scripts are no longer supported" in message:
        return bad(
            f"{place} comes with a loading script, which is not supported: name one of its data "
            f"files ({page}/tree/main) as hub:OWNER/NAME/FILE"
        )
    if isinstance(error, ValueError):  # an unknown split or configuration; the message lists all
        return bad(f"{place}: {first}")
    return bad(f"{place} cannot be read: {first}; {copy}")
