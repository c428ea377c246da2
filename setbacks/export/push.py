"""Uploads of exported folders to the hub."""

from __future__ import annotations

import os
from pathlib import Path

from setbacks.errors import InputError, SetbacksError


def token() -> str:
    """Return the hub's token from the environment.

    Raises:
        InputError: there is none.
    """
    value = os.environ.get("HF_TOKEN", "").strip()
    if not value:
        raise InputError(
            "--push needs a token with write access to the hub: set HF_TOKEN in the "
            "environment (https://huggingface.co/settings/tokens)"
        )
    return value


def push(exported: Path, repo: str, *, public: bool = False) -> str:
    """Create a repository on the hub, and upload an exported folder to it.

    Args:
        exported: the folder that `export` made.
        repo: OWNER/NAME; it must not exist yet, since it may be public.
        public: whether everyone can read it.

    Returns:
        The repository's address.

    Raises:
        InputError: there is no token.
        SetbacksError: the hub refuses, or cannot be reached; the exported folder is kept.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub = HfApi(token=token(), library_name="setbacks")
    try:
        url = str(hub.create_repo(repo, private=not public))
        hub.upload_folder(repo_id=repo, folder_path=exported, commit_message="Exported by setbacks")
    except (HfHubHTTPError, OSError, ValueError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = {
            401: "the token is not accepted",
            403: "the token may not write there",
            409: "a repository of that name already exists; name another",
        }.get(status or 0, " ".join(str(error).split())[:200])
        raise SetbacksError(f"{repo}: not pushed ({reason}); {exported} is kept") from None
    return url
