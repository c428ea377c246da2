"""`setbacks review RUN`: open a run for its reviewers, or take labels in and out of it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

from setbacks.errors import InputError, SetbacksError
from setbacks.review import formats
from setbacks.review.access import token_of
from setbacks.review.answers import collect
from setbacks.review.publish import Publisher, publish
from setbacks.review.store import Store
from setbacks.runfolder import RunFolder, write_atomic

LOOPBACK = ("127.0.0.1", "localhost")


def open_store(folder: Path, database: str | None = None, share: float | None = None) -> Store:
    """Open the labels of a run.

    Args:
        folder: the run's.
        database: a postgresql:// URL; by default review/labels.db in the folder.
        share: of the answers that every reviewer is to label, in [0, 1].

    Raises:
        InputError: the folder is no run, has no responses, or is in use; or see `Store`.
    """
    with RunFolder(folder) as run:
        batch = collect(run)
        (run.path / "review").mkdir(mode=0o700, exist_ok=True)
        return Store(database or run.path / "review" / "labels.db", batch, share=share)


def serve(
    folder: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8340,
    database: str | None = None,
    share: float | None = None,
    say: Callable[[str], None] = partial(print, flush=True),
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        folder: the run's.
        host: the address to listen on; all but the machine's own are open to others.
        port: 0 takes a free one.
        database: as in `open_store`.
        share: as in `open_store`.
        say: told where the page is.

    Raises:
        InputError: the port is in use, or the address is none of this machine's; or see
            `open_store` and `publish`.
    """
    import uvicorn

    from setbacks.review.app import make

    store = open_store(folder, database, share)
    publish(folder, store)
    listener = _listen(host, port)
    token = token_of(folder / "review")
    publisher = Publisher(folder, store)
    app = make(
        store,
        token,
        title=folder.resolve().name,
        hosts=LOOPBACK if host in LOOPBACK else None,
        publisher=publisher,
    )
    name = socket.gethostname() if host in ("0.0.0.0", "::", "") else host
    said = f"[{name}]" if ":" in name else name
    if store.left_out:
        say(f"{store.left_out} labels are of answers that are no longer in this run; kept aside")
    if host not in LOOPBACK:
        say("open to other machines, and not encrypted: whoever has the link can read and label")
    say(f"labels: {store.where}")
    say(f"review page: http://{said}:{listener.getsockname()[1]}/?token={token}  (Ctrl-C ends it)")
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,  # the first address holds the token
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=5,
        )
    )
    try:
        server.run(sockets=[listener])
    finally:
        store.close()
        if publisher.problem:
            say(f"verdicts/ is behind the labels ({publisher.problem}); the next review mends it")


def take_in(folder: Path, file: Path, reviewer: str | None, store: Store) -> int:
    """Add a file's labels, all or none, and write the people's verdicts; return how many are new.

    Args:
        folder: the run's.
        file: what was exported, a label file, or people's verdicts.
        reviewer: whose labels these are, where the file does not say.
        store: where they go.

    Raises:
        InputError: the file cannot be read, or see `formats.read` and `Store.add`.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputError(f"{file}: cannot be read ({reason})") from None
    added = store.add(formats.read(text, file.name, store.batch, reviewer))
    publish(folder, store)
    return added


def give_out(folder: Path, file: Path, format: str | None, store: Store) -> list[Path]:
    """Write the labels to a file, and the people's verdicts; return what was written.

    Args:
        folder: the run's.
        file: that is written, readable by its owner alone.
        format: one of `formats.FORMATS`; by default csv for .csv, and jsonl for .jsonl.
        store: the labels.

    Raises:
        InputError: the format is not known, or there are no labels.
    """
    chosen = format or {".csv": "csv", ".jsonl": "jsonl"}.get(file.suffix.lower())
    if chosen is None:
        raise InputError(f"{file}: say which format: --format {' | '.join(formats.FORMATS)}")
    labels = store.labels()
    text = formats.export(chosen, store.batch, labels)
    if not labels:
        raise InputError(f"{folder}: there are no labels yet; nothing was written")
    if not file.parent.is_dir():
        raise InputError(f"{file.parent}: no such folder")
    publish(folder, store)
    write_atomic(file, text.encode("utf-8", "replace"))
    if chosen != "label-studio":
        return [file]
    interface = file.with_suffix(".xml")
    write_atomic(interface, formats.LABEL_STUDIO.encode())
    return [file, interface]


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        # A server that was killed a moment ago must not keep its successor out.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except (OSError, OverflowError, UnicodeError) as error:
        number = getattr(error, "errno", None)
        if number == errno.EADDRINUSE:
            raise InputError(f"port {port} is in use; choose another with --port") from None
        if number in (errno.EACCES, errno.EPERM):
            raise InputError(f"port {port} needs more rights; choose one above 1023") from None
        if isinstance(error, OSError) and number not in (errno.EADDRNOTAVAIL, socket.EAI_NONAME):
            raise SetbacksError(f"{host}:{port}: cannot listen there ({error})") from None
        raise InputError(f"{host}:{port}: no address of this machine") from None
    return listener
