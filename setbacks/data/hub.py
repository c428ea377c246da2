"""Sets of the hub and folders on disk, read with the libraries that made them."""

from __future__ import annotations

from pathlib import Path

from setbacks.data.source import Record, Source, bad
from setbacks.errors import InputError, nearest


def from_datasets(place: str, where: str | Path, source: Source) -> list[Record]:
    """Read a set of the hub, or a folder on disk, with the `datasets` library."""
    import datasets

    saved = isinstance(where, Path) and any(
        (where / name).exists() for name in ("state.json", "dataset_dict.json")
    )
    try:
        if saved:
            data = datasets.load_from_disk(str(where))
        else:
            data = datasets.load_dataset(
                str(where), source.config, split=source.split, revision=source.revision
            )
        if isinstance(data, datasets.DatasetDict):
            data = data[_split(place, list(data), source.split)]
        return [Record(f"row {number}", dict(row)) for number, row in enumerate(data, start=1)]
    except InputError:
        raise
    except Exception as error:  # the boundary to a library that raises many kinds
        raise _hub_trouble(place, error) from None


def _split(place: str, splits: list[str], wanted: str | None) -> str:
    if wanted in splits:
        return str(wanted)
    if wanted is None and (len(splits) == 1 or "train" in splits):
        return "train" if "train" in splits else splits[0]
    hint = nearest(wanted or "", splits)
    raise bad(f"{place}: say which split to use, as split: NAME.{hint} It has {', '.join(splits)}")


def download(place: str, repo: str, file: str, revision: str | None) -> Path:
    """Fetch one file of a set on the hub, to be read as any other file."""
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.hf_hub_download(repo, file, repo_type="dataset", revision=revision)
        )
    except Exception as error:  # the boundary to a library that raises many kinds
        raise _hub_trouble(place, error) from None


def _hub_trouble(place: str, error: Exception) -> InputError:
    """Say what a library's error means here, and what to do."""
    said, kind = str(error).strip(), type(error).__name__
    page = "https://huggingface.co/datasets/" + "/".join(place.removeprefix("hub:").split("/")[:2])
    copy = "or download it elsewhere and give the file (source: FILE, or preset: with path: FILE)"
    first = said.splitlines()[0] if said else kind
    if not place.startswith("hub:"):
        return bad(f"{place} cannot be read as a dataset: {first}")
    if kind == "GatedRepoError" or "is a gated dataset" in said:
        return bad(f"{place} is gated: accept its terms at {page}, log in (hf auth login), {copy}")
    if isinstance(error, ConnectionError | TimeoutError) or kind in (
        "LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectTimeout",
    ):  # fmt: skip
        return bad(f"{place}: the hub cannot be reached; try again with a network, {copy}")
    if kind in ("DatasetNotFoundError", "RepositoryNotFoundError", "DataFilesNotFoundError"):
        return bad(f"{place} is not on the hub, or is private: look at {page}, {copy}")
    if kind.endswith("EntryNotFoundError"):
        return bad(f"{place}: no such file there; {page}/tree/main lists them")
    if "scripts are no longer supported" in said:
        return bad(
            f"{place} comes with a loading script, which is not run: name one of its data files "
            f"({page}/tree/main) as hub:OWNER/NAME/FILE"
        )
    if isinstance(error, ValueError):  # an unknown split or configuration, with those there are
        return bad(f"{place}: {first}")
    return bad(f"{place} cannot be read: {first}; {copy}")
