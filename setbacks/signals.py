"""How a process ends on SIGTERM, and how its child processes end with it.

A scheduler, `docker stop` and `kill` send SIGTERM. The command line then stops as on Ctrl-C: the
files on disk are valid at any moment, so no batch has to be finished first.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

GRACE = 7.0  # seconds for an orderly stop; `docker stop` kills after 10
TIED = "SETBACKS_TIED"  # set for a child process that must end when its stdin closes


class Terminated(SystemExit):
    """SIGTERM arrived. Like Ctrl-C it is not an `Exception`, so libraries do not swallow it."""


def handle(last_words: Callable[[], Any]) -> None:
    """Make SIGTERM raise `Terminated`, and ensure that the process then ends.

    Python runs a signal handler between two steps of the main thread. That thread can spend minutes
    inside a library, so a second thread, which the signal wakes, ends the process after `GRACE`.
    Without a handler the first process of a container would ignore the signal.

    Args:
        last_words: called before the second thread ends the process.
    """
    if os.environ.pop(TIED, None):
        _start(_end_with_parent)
    if threading.current_thread() is not threading.main_thread():
        return  # a program that runs the command line in a thread handles its own signals
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return  # ignored on purpose by the parent process, or already handled
    signal.signal(signal.SIGTERM, _raise)
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    if hasattr(os, "register_at_fork"):  # a signal to a forked worker must not wake our thread
        os.register_at_fork(after_in_child=_forget)
    _start(_end_after_signal, (woken, waker), last_words)


@contextmanager
def kept() -> Iterator[None]:
    """Restore our handler, if it was installed, after a library has replaced it."""
    ours = signal.getsignal(signal.SIGTERM) is _raise
    yield
    if ours:
        signal.signal(signal.SIGTERM, _raise)


class Tie:
    """A pipe to child processes: they end when it is cut.

    Pass `stdin` and `environment` to them. The operating system closes a pipe however its owner
    dies, so the children end with this process too, even on SIGKILL, and on every platform. Use it
    as a context manager.
    """

    environment = {TIED: "1"}

    def __init__(self) -> None:
        self.stdin, held = os.pipe()
        self._held: int | None = held

    def cut(self) -> None:
        """Make the children end."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def __enter__(self) -> Tie:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        os.close(self.stdin)


def _raise(number: int, _frame: object) -> None:
    signal.signal(number, lambda *_: os._exit(128 + number))  # a second one ends it immediately
    raise Terminated(128 + number)


def _forget() -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _start(do: Callable[..., None], *args: Any) -> None:
    threading.Thread(target=do, args=args, name=do.__name__, daemon=True).start()


def _end_after_signal(
    sockets: tuple[socket.socket, socket.socket], last_words: Callable[[], Any]
) -> None:
    woken, _waker = sockets  # the second one must stay open while this thread runs
    while signal.SIGTERM not in woken.recv(64):
        pass  # other signals wake it too
    time.sleep(GRACE)
    last_words()
    os._exit(128 + signal.SIGTERM)


def _end_with_parent() -> None:
    while os.read(0, 64):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE / 2)  # a child has to be gone before its parent is
    os._exit(128 + signal.SIGTERM)
