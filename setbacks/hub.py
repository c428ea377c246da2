"""The hub of models and data sets: a check within seconds whether it can be reached.

The hub's library tries every file six times, for half a minute, before it gives up.
"""

from __future__ import annotations

import os
import sys
import threading
from functools import cache
from pathlib import Path

from setbacks.errors import InputError
from setbacks.files import NoHome

PATIENCE = 10.0  # seconds for an answer
DOWN = (500, 502, 503, 504)  # what a server answers that cannot serve now, or a proxy before it
CONFIGS = ("config.json", "adapter_config.json")  # a model has the first, a PEFT adapter the second


@cache
def connect() -> str:
    """Find out, once in a process, whether the hub answers.

    If it does not, libraries use what they downloaded earlier, as they do with HF_HUB_OFFLINE=1.

    Returns:
        Why the hub cannot be reached; empty if it can.

    Raises:
        NoHome: there is no folder for what the hub gives.
    """
    from huggingface_hub import constants

    if constants.HF_HOME.startswith("~"):  # the library would make a folder of that name
        raise NoHome("this user has no home folder; set HOME, or set HF_HOME to a folder")
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    reasons: list[str] = []
    # In a thread: the time limit of a request does not cover the look-up of the hub's address.
    asking = threading.Thread(target=lambda: reasons.append(_ask()), daemon=True)
    asking.start()
    asking.join(PATIENCE)
    reason = reasons[0] if reasons else f"no answer within {PATIENCE:.0f} seconds"
    if reason:
        os.environ["HF_HUB_OFFLINE"] = "1"  # for libraries that are loaded later, and children
        constants.HF_HUB_OFFLINE = True
        if "datasets.config" in sys.modules:
            sys.modules["datasets.config"].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    return reason


def _ask() -> str:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        status = get_session().head(constants.ENDPOINT, timeout=PATIENCE).status_code
    except Exception as error:  # the library raises many kinds
        return f"{constants.ENDPOINT}: {_line(error)}"
    return f"{constants.ENDPOINT} answers with status {status}" if status in DOWN else ""


@cache
def check_model(model: str, revision: str | None = None) -> None:
    """Look up a model on the hub, or in the hub's cache, before it is needed.

    Args:
        model: OWNER/NAME.
        revision: a branch, tag or commit.

    Raises:
        InputError: the model does not exist, access is denied, or the hub cannot be reached and
            the model was not downloaded earlier.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    reason = connect()
    if _is_cached(model, revision):
        return
    if not reason:
        try:
            return _fetch_config(model, revision)
        except LocalEntryNotFoundError as error:  # the connection broke
            reason = _line(error.__cause__ or error)
        except (OSError, ValueError) as error:
            raise InputError(f'model "{model}" {_refusal(error, model, revision)}') from error
    raise InputError(
        f'model "{model}": not a folder here, the hub cannot be reached ({reason}), and '
        f"{constants.HF_HUB_CACHE} has no copy of it; name a local folder, or connect to a network"
    )


def _fetch_config(model: str, revision: str | None) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        hf_hub_download(model, CONFIGS[0], revision=revision)
    except RemoteEntryNotFoundError:
        hf_hub_download(model, CONFIGS[1], revision=revision)


def _refusal(error: Exception, model: str, revision: str | None) -> str:
    """Return what the hub's answer means, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    page = f"{constants.ENDPOINT}/{model}"
    if isinstance(error, hub.GatedRepoError):
        return f"is gated; accept its terms at {page}, and set HF_TOKEN"
    if isinstance(error, hub.RepositoryNotFoundError):
        return "is not on the hub, or is private; check its name, or set HF_TOKEN"
    if isinstance(error, hub.RevisionNotFoundError):
        return f'has no revision "{revision}" on the hub; see {page}/tree/main'
    if isinstance(error, hub.RemoteEntryNotFoundError):
        return f"is not a model: it has no config.json on the hub; see {page}/tree/main"
    if isinstance(error, OSError) and error.errno:  # an error of the disk, not of the hub
        return f"cannot be saved: {_line(error)}; set HF_HOME to a writable folder"
    return f"cannot be downloaded from the hub: {_line(error)}"


def _is_cached(model: str, revision: str | None) -> bool:
    """Return whether a model with weights was downloaded earlier."""
    from huggingface_hub import try_to_load_from_cache

    paths = [try_to_load_from_cache(model, name, revision=revision) for name in CONFIGS]
    folders = [Path(path).parent for path in paths if isinstance(path, str)]
    return any(any(folder.glob("*.safetensors")) for folder in folders)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
