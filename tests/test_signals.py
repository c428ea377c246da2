"""SIGTERM, and the end of a parent: the process ends, whatever it is busy with."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from setbacks.signals import Tie

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's mutex")

BEGIN = """
import ctypes, os, signal, sys, threading, time
from setbacks import signals
signals.GRACE = float(sys.argv[1])
signals.handle(lambda: print("last words", flush=True))
print("ready", flush=True)
"""
SLEEP = "time.sleep(60)"
# A lock that its own thread holds: no signal interrupts the wait for it.
STUCK = """
mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
threading.Timer(0.5, print, ["stuck"], {"flush": True}).start()
lock(mutex)
lock(mutex)
"""
AT_WORK = f"""
try:
    print("at work", flush=True)
    {SLEEP}
finally:
    print("stopping", flush=True)
"""


@pytest.fixture
def start():
    """Start Python code that handles SIGTERM; return it once it is ready."""
    started = []

    def make(code, *, grace=600, before=(), **options):
        command = [*before, sys.executable, "-c", BEGIN + code, str(grace)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
        started.append(child)
        assert child.stdout.readline() == "ready\n"
        return child

    yield make
    for child in started:
        child.kill()
        child.communicate()


def ends(child, code):
    """Check how a process ends, within half a minute; return what it printed."""
    out, _ = child.communicate(timeout=30)
    assert child.returncode == code
    return out


def test_it_unwinds_at_once(start):
    child = start(AT_WORK)
    assert child.stdout.readline() == "at work\n"
    child.terminate()
    assert ends(child, 143) == "stopping\n"


@on_linux
def test_inside_a_librarys_call_it_ends_after_a_while(start):
    child = start(STUCK, grace=0.5)
    assert child.stdout.readline() == "stuck\n"
    child.terminate()
    assert ends(child, 143) == "last words\n"


def test_a_second_signal_does_not_wait(start):
    child = start(AT_WORK + f"    {SLEEP}")
    assert child.stdout.readline() == "at work\n"
    child.terminate()
    assert child.stdout.readline() == "stopping\n"
    child.terminate()
    assert ends(child, 143) == ""


def test_a_signal_that_is_ignored_on_purpose_stays_so(start):
    child = start(
        "os.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.5)\nprint('alive')",
        grace=0.1,
        before=["sh", "-c", "trap '' TERM; exec \"$@\"", "sh"],
    )
    assert ends(child, 0) == "alive\n"


def test_a_library_that_puts_its_own_handler_there_does_not_keep_it(start):
    child = start(f"with signals.kept():\n    signal.signal(signal.SIGTERM, print)\n{SLEEP}")
    child.terminate()
    assert ends(child, 143) == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_signal_to_a_forked_worker_is_the_workers_alone(start):
    child = start(
        "worker = os.fork()\n"
        f"worker or {SLEEP}\n"
        "time.sleep(0.2)\n"
        "os.kill(worker, signal.SIGTERM)\n"
        "ended = os.WTERMSIG(os.waitpid(worker, 0)[1])\n"
        "time.sleep(0.5)\n"
        "print('alive', ended)",
        grace=0.1,
    )
    assert ends(child, 0) == f"alive {signal.SIGTERM.value}\n"


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no namespaces")
def test_the_first_process_of_a_container_ends_too(start):
    inside = ["unshare", "--pid", "--fork", "--kill-child", "--map-root-user"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces for this user")
    child = start(f"print(os.getpid(), flush=True)\n{SLEEP}", before=inside)
    assert child.stdout.readline() == "1\n"
    (inner,) = subprocess.check_output(["pgrep", "-P", str(child.pid)], text=True).split()
    os.kill(int(inner), signal.SIGTERM)
    assert ends(child, 143) == ""


# Children --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code", [SLEEP, pytest.param(STUCK, marks=on_linux)], ids=["asleep", "stuck"]
)
def test_a_tied_child_ends_when_it_is_cut_loose(start, code):
    with Tie() as tie:
        child = start(code, grace=0.5, stdin=tie.stdin, env=os.environ | tie.environment)
        time.sleep(0.2)
        assert child.poll() is None
        tie.cut()
        ends(child, 143)


PARENT = """
import subprocess, sys, time
from setbacks.signals import Tie
tie = Tie()
child = subprocess.Popen(
    [sys.executable, "-c", code, "600"], stdin=tie.stdin, env=os.environ | tie.environment
)
time.sleep(60)
"""


def test_a_tied_child_outlives_no_parent_that_is_killed(start):
    parent = start(f"code = {BEGIN + SLEEP!r}" + PARENT)
    assert parent.stdout.readline() == "ready\n"  # the child's
    parent.kill()
    # The pipe is the child's stdout, too: it ends once both are gone.
    ends(parent, -signal.SIGKILL)
