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
import ctypes, os, signal, sys, time
from setbacks import signals
signals.GRACE = 30
signals.handle(lambda: print("last words", flush=True))
print("ready", flush=True)
"""
SLEEP = "time.sleep(60)"
# A lock that its own thread holds: no signal interrupts the wait for it.
STUCK = """
signals.GRACE = 0.5
mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
lock(mutex)
lock(mutex)
"""
SLOW_TO_STOP = f"""
try:
    {SLEEP}
finally:
    print("stopping", flush=True)
    signals.GRACE = 60
    {SLEEP}
"""


@pytest.fixture
def start():
    """Start Python code that handles SIGTERM; return it once it is ready."""
    started = []

    def make(code, *, before=(), **options):
        command = [*before, sys.executable, "-c", BEGIN + code]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
        started.append(child)
        assert child.stdout.readline() == "ready\n"
        return child

    yield make
    for child in started:
        child.kill()
        child.communicate()


def ends(child, code, within):
    """Check how a process ends, and how soon; return what it printed."""
    begun = time.monotonic()
    out, _ = child.communicate(timeout=30)
    assert child.returncode == code
    assert time.monotonic() - begun < within
    return out


def test_it_unwinds_at_once(start):
    child = start(f"try:\n    {SLEEP}\nfinally:\n    print('unwound')")
    child.terminate()
    assert ends(child, 143, 5) == "unwound\n"


@on_linux
def test_inside_a_librarys_call_it_ends_after_a_while(start):
    child = start(STUCK)
    child.terminate()
    assert ends(child, 143, 10) == "last words\n"


def test_a_second_signal_does_not_wait(start):
    child = start(SLOW_TO_STOP)
    child.terminate()
    assert child.stdout.readline() == "stopping\n"
    child.terminate()
    assert ends(child, 143, 5) == ""


def test_a_signal_that_is_ignored_on_purpose_stays_so(start):
    child = start(
        "os.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.8)\nprint('alive')",
        before=["sh", "-c", "trap '' TERM; exec \"$@\"", "sh"],
    )
    assert ends(child, 0, 10) == "alive\n"


def test_a_library_that_puts_its_own_handler_there_does_not_keep_it(start):
    child = start(f"with signals.kept():\n    signal.signal(signal.SIGTERM, print)\n{SLEEP}")
    child.terminate()
    assert ends(child, 143, 5) == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_signal_to_a_forked_worker_is_the_workers_alone(start):
    child = start(
        "worker = os.fork()\n"
        f"worker or {SLEEP}\n"
        "time.sleep(0.2)\n"
        "os.kill(worker, signal.SIGTERM)\n"
        "ended = os.WTERMSIG(os.waitpid(worker, 0)[1])\n"
        "time.sleep(0.8)\n"
        "print('alive', ended)"
    )
    assert ends(child, 0, 10) == f"alive {signal.SIGTERM.value}\n"


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no namespaces")
def test_the_first_process_of_a_container_ends_too(start):
    inside = ["unshare", "--pid", "--fork", "--kill-child", "--map-root-user"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces for this user")
    child = start(f"print(os.getpid(), flush=True)\n{SLEEP}", before=inside)
    assert child.stdout.readline() == "1\n"
    (inner,) = subprocess.check_output(["pgrep", "-P", str(child.pid)], text=True).split()
    os.kill(int(inner), signal.SIGTERM)
    assert ends(child, 143, 5) == ""


# Children --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code", [SLEEP, pytest.param(STUCK, marks=on_linux)], ids=["asleep", "stuck"]
)
def test_a_tied_child_ends_when_it_is_cut_loose(start, code):
    with Tie() as tie:
        child = start(code, stdin=tie.stdin, env=os.environ | tie.environment)
        time.sleep(0.2)
        assert child.poll() is None
        tie.cut()
        ends(child, 143, 10)


PARENT = """
import subprocess, sys, time
from setbacks.signals import Tie
tie = Tie()
child = subprocess.Popen(
    [sys.executable, "-c", sys.argv[1]], stdin=tie.stdin, env=os.environ | tie.environment
)
time.sleep(60)
"""


def test_a_tied_child_outlives_no_parent_that_is_killed(start):
    told = f"import sys\nsys.argv = ['', {BEGIN + SLEEP!r}]\n"
    parent = start(told + PARENT)
    assert parent.stdout.readline() == "ready\n"  # the child's
    parent.kill()
    # The pipe is the child's stdout, too: it ends once both are gone.
    ends(parent, -signal.SIGKILL, 10)
