"""`setbacks review`: serve a run to its reviewers, and import or export labels."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from setbacks.errors import InputError, SetbacksError
from setbacks.files import write_atomic
from setbacks.review import formats, reading
from setbacks.review.access import token_of
from setbacks.review.answers import Batch, collect
from setbacks.review.labels import Label, contradiction
from setbacks.review.publish import Publisher, check, publish, write
from setbacks.review.store import Store
from setbacks.runs.folder import Run, RunFolder

LOOPBACK = ("127.0.0.1", "localhost", "::1")
DATABASE = Path("review", "labels.db")


def open_store(folder: Path, database: str | None = None, share: float | None = None) -> Store:
    """Open the labels of a run.

    Args:
        folder: the run's.
        database: a postgresql:// URL; by default review/labels.db in the folder.
        share: of the answers that every reviewer labels, in [0, 1].

    Raises:
        InputError: the folder is not a run, has no responses, or is in use; or see `Store` and
            `check`.
    """
    with RunFolder(folder) as run:
        batch = collect(run)
        _before_any(run, batch, database, ())
        (run.path / "review").mkdir(mode=0o700, exist_ok=True)
        return Store(database or run.path / DATABASE, batch, share=share)


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
        host: the address to bind; other machines can connect unless it is a loopback address.
        port: to bind; 0 chooses a free one.
        database: as in `open_store`.
        share: as in `open_store`.
        say: shows a line to the user.

    Raises:
        InputError: the port is in use, or the address does not belong to this machine; or see
            `open_store` and `publish`.
    """
    import uvicorn

    from setbacks.review.app import make

    with _listen(host, port) as listener, closing(open_store(folder, database, share)) as store:
        publish(folder, store)
        token = token_of(folder / "review")
        publisher = Publisher(folder, store)
        alone = _loopback(listener.getsockname()[0])
        app = make(
            store,
            token,
            title=folder.resolve().name,
            hosts=(*LOOPBACK, host) if alone else None,
            publisher=publisher,
        )
        name = socket.gethostname() if host in ("0.0.0.0", "::", "") else host
        at = f"{f'[{name}]' if ':' in name else name}:{listener.getsockname()[1]}"
        if store.left_out:
            say(
                f"{store.left_out} labels belong to answers that are no longer in this run; "
                "they are kept, but not used"
            )
        if not alone:
            say("open to other machines and not encrypted: anyone with the link can read and label")
        say(f"labels: {store.where}")
        say(f"review page: http://{at}/?token={token}  (press Ctrl-C to stop)")
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
            if wrong := publisher.problem:
                say(f"verdicts/ is out of date ({wrong}); the next review updates it")


def take_in(
    folder: Path, file: Path, reviewer: str | None = None, database: str | None = None
) -> int:
    """Import a file's labels, all or none, and write the verdicts; return how many are new.

    Args:
        folder: the run's.
        file: an exported file, a label file, or people's verdicts.
        reviewer: the name for labels without one.
        database: as in `open_store`.

    Raises:
        InputError: the file cannot be read, or see `reading.read`, `Store.add` and `check`; nothing
            was changed.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputError(f"{file}: cannot be read ({reason})") from None
    with RunFolder(folder) as run:
        batch = collect(run)
        labels = reading.read(text, file.name, batch, reviewer)
        if wrong := contradiction(labels, {}):
            raise InputError(f"{file}: {wrong}; nothing was changed")
        _before_any(run, batch, database, labels)
        with closing(Store(database or run.path / DATABASE, batch)) as store:
            check(run, batch, [*store.labels(), *labels])
            try:
                added = store.add(labels)
            except InputError as error:
                raise InputError(f"{file}: {error}") from None
            write(run, batch, store.labels())
    return added


def give_out(
    folder: Path, file: Path, format: str | None = None, database: str | None = None
) -> list[Path]:
    """Export the labels, or before the first one the answers; return the files.

    Args:
        folder: the run's.
        file: to write, readable only by its owner. It must not exist: people may have filled it in.
        format: one of `formats.FORMATS`; by default csv for .csv, and jsonl for .jsonl.
        database: as in `open_store`.

    Raises:
        InputError: the format is unknown, the folder does not exist, the file does, or there are no
            labels and the format needs them.
    """
    chosen = format or {".csv": "csv", ".jsonl": "jsonl"}.get(file.suffix.lower())
    if chosen is None:
        raise InputError(f"{file}: choose a format: --format {' | '.join(formats.FORMATS)}")
    formats.check_format(chosen)
    if not file.parent.is_dir():
        raise InputError(f"{file.parent}: folder not found; nothing was written")
    interface = [file.with_suffix(".xml")] if chosen == "label-studio" else []
    for path in [file, *interface]:
        if os.path.lexists(path):
            raise InputError(
                f"{path}: already exists, and nothing is overwritten; name another file"
            )
    run = Run(folder)
    batch = collect(run)
    labels = []
    if database or (run.path / DATABASE).exists():
        with closing(Store(database or run.path / DATABASE, batch)) as store:
            labels = store.labels()
    text = formats.export(chosen, batch, labels) if labels else formats.to_label(chosen, batch)
    write_atomic(file, text.encode("utf-8", "replace"))
    for path in interface:
        write_atomic(path, formats.labeling_interface(batch).encode())
    return [file, *interface]


def _before_any(run: Run, batch: Batch, database: str | None, labels: Sequence[Label]) -> None:
    """Check the run's files before its database is created, so that an error creates none."""
    if database is None and not (run.path / DATABASE).exists():
        check(run, batch, labels)


def _loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        # A server that was just killed must not block its successor.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except (OSError, OverflowError, UnicodeError) as error:
        number = getattr(error, "errno", None)
        if number == errno.EADDRINUSE:
            raise InputError(f"port {port} is in use; choose another with --port") from None
        if number in (errno.EACCES, errno.EPERM):
            raise InputError(f"port {port} needs more privileges; choose one above 1023") from None
        if isinstance(error, OSError) and number not in (errno.EADDRNOTAVAIL, socket.EAI_NONAME):
            raise SetbacksError(f"{host}:{port}: cannot bind this address ({error})") from None
        raise InputError(f"{host}:{port}: not an address of this machine") from None
    return listener
