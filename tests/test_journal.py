"""Journals: whatever happens to a file, what was committed stays and nothing is done twice."""

import json
import os
import resource
import signal
import stat
import subprocess
import sys
import tracemalloc
from typing import NamedTuple

import pytest

from setbacks.errors import InputError, SetbacksError
from setbacks.records import Record
from setbacks.runs.journal import Journal, read, repair


class Work(NamedTuple):
    id: str


class Thing(Record):
    text: str


PLAN = [[Work("a"), Work("b")], [Work("c"), Work("d")], [Work("é"), Work("f")]]


def make(batch):
    return [Thing(id=work.id, text=f"<{work.id}>\n\u2028") for work in batch]


def carry_out(path, plan=PLAN, do=make, log=lambda line: None):
    """Do a whole plan; return the records and the ids of the work that was done this time."""
    done = []

    def counted(batch):
        done.extend(work.id for work in batch)
        return do(batch)

    journal = Journal(path, Thing, log)
    for batch in plan:
        for left in journal.pending([batch]):
            journal.commit(left, counted(left))
    return list(journal.finish()), done


@pytest.fixture
def path(tmp_path):
    return tmp_path / "things.jsonl"


def test_what_is_done_is_not_done_again(path):
    records, done = carry_out(path)
    assert done == ["a", "b", "c", "d", "é", "f"]
    before = path.read_bytes()
    again, done = carry_out(path)
    assert (again, done, path.read_bytes()) == (records, [], before)


def test_only_its_owner_may_read_it(path):
    previous = os.umask(0)
    try:
        carry_out(path)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_crash_at_any_byte_ends_in_the_same_file(path):
    records, _ = carry_out(path)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for length in range(ends[2], len(whole)):
        path.write_bytes(whole[:length])
        said = []
        again, done = carry_out(path, log=said.append)
        kept = sum(end <= length for end in ends) // 2 * 2  # whole batches of two
        assert (again, path.read_bytes()) == (records, whole), length
        assert done == [work.id for batch in PLAN for work in batch][kept:], length
        assert bool(said) == (length != ends[3]), length
        assert all("things.jsonl" in line and "\n" not in line for line in said)


@pytest.mark.parametrize("torn", [b'{"id": "c"', b'{"id": "c"\n', b"\0" * 9, b"\xff\n", b""])
def test_a_reader_leaves_a_torn_line_out_and_a_writer_cuts_it_off(path, torn):
    carry_out(path, PLAN[:1])
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert [thing.id for thing in read(path, Thing)] == ["a", "b"]
    assert path.read_bytes() == whole + torn, "a reader writes nothing"
    lines = []
    assert repair(path, lines.append) == len(whole)
    assert path.read_bytes() == whole
    assert len(lines) == bool(torn) and all("line 3" in line for line in lines)


@pytest.mark.parametrize("broken", [b'{"id": "b", "te', b"{}", b"", b"\xff", b'{"id": 3}'])
def test_a_broken_line_in_the_middle_is_named_and_kept(path, broken):
    carry_out(path)
    lines = path.read_bytes().split(b"\n")
    lines[1] = broken
    damaged = b"\n".join(lines)
    path.write_bytes(damaged)
    with pytest.raises(SetbacksError, match=r"things\.jsonl: line 2 ") as error:
        carry_out(path)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == damaged


def test_records_are_read_from_the_disk_when_they_are_asked_for(path):
    journal = Journal(path, Thing, print)
    first, *rest = journal.pending(PLAN)
    journal.commit(first, make(first))
    assert [record.id for record in journal.records] == ["a", "b"], "those of the batches so far"
    for batch in rest:
        journal.commit(batch, make(batch))
    records, expected = journal.finish(), [thing for batch in PLAN for thing in make(batch)]
    assert records == expected and records[2:5] == expected[2:5] and records[::-2] == expected[::-2]
    assert (records[0], records[-1], len(records)) == (expected[0], expected[-1], 6)
    with pytest.raises(IndexError):
        records[6]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"{}\n", *lines[3:]]))
    assert records[1] == expected[1]
    with pytest.raises(SetbacksError, match="line 3 is not a valid Thing"):
        records[2]


@pytest.mark.parametrize("resumed", [False, True])
def test_a_long_journal_takes_little_memory(path, resumed):
    plan = [[Work(str(i)) for i in range(start, start + 500)] for start in range(0, 10_000, 500)]

    def long(batch):
        return [Thing(id=work.id, text="<long>" * 200) for work in batch]

    if resumed:
        carry_out(path, plan, long)
    tracemalloc.start()
    try:
        journal = Journal(path, Thing, print)
        for batch in journal.pending(plan):
            journal.commit(batch, long(batch))
        assert sum(len(record.text) for record in journal.finish()) == 12_000_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000, "a third of what the texts alone take; a batch is what is held"


def test_a_part_of_a_batch_is_cut_off_and_made_again(path):
    carry_out(path)
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    said = []
    _, done = carry_out(path, log=said.append)
    assert done == ["c", "d", "é", "f"]
    assert path.read_bytes() == whole
    assert len(said) == 1


@pytest.mark.parametrize(
    "plan",
    [
        [[Work("a"), Work("x")], *PLAN[1:]],
        [[Work("b"), Work("a")], *PLAN[1:]],
        [*PLAN[:2], [Work("f"), Work("é")]],
        PLAN[:2],
        PLAN[:1],
        [],
    ],
    ids=["other", "order", "order at the end", "fewer", "fewer still", "none"],
)
def test_other_work_than_before_is_refused(path, plan):
    carry_out(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="things.jsonl"):
        carry_out(path, plan)
    assert path.read_bytes() == before


def test_a_longer_plan_goes_on(path):
    carry_out(path)
    _, done = carry_out(path, [*PLAN, [Work("g")]])
    assert done == ["g"]


def test_what_fails_while_it_is_made_leaves_the_batches_before(path):
    def fail(batch):
        if batch == PLAN[1]:
            raise RuntimeError("the engine fell over")
        return make(batch)

    with pytest.raises(RuntimeError):
        carry_out(path, do=fail)
    assert len(path.read_bytes().splitlines()) == 2
    _, done = carry_out(path)
    assert done == ["c", "d", "é", "f"]


def test_a_long_file_is_read_and_nothing_in_it_made_again(path):
    plan = [[Work(str(i)) for i in range(start, start + 500)] for start in range(0, 10_000, 500)]
    carry_out(path, plan)
    records, done = carry_out(path, plan)
    assert (len(records), done) == (10_000, [])


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_what_was_committed(small_disk, path):
    def bulky(batch):
        return [Thing(id=work.id, text="<long>" * 1500) for work in batch]

    plan = [[Work(f"{n}a"), Work(f"{n}b")] for n in range(6)]
    full = small_disk / "things.jsonl"
    with pytest.raises(SetbacksError, match="the disk is full") as error:
        carry_out(full, plan, bulky)
    assert "\n" not in str(error.value) and error.value.exit_code == 1
    assert full.read_bytes().endswith(b"\n")
    kept = len(full.read_bytes().splitlines())
    assert kept and kept % 2 == 0, "whole batches, and at least one"
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    _, done = carry_out(full, plan, bulky)
    assert len(done) == 12 - kept
    carry_out(path, plan, bulky)
    assert full.read_bytes() == path.read_bytes()


LIMITED = """
import json, resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_journal import PLAN, carry_out
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    carry_out(Path(sys.argv[2]))
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limit on the size of a file here")
def test_a_write_that_is_cut_short_keeps_what_was_committed(path):
    """The system writes a part of the batch and then refuses: that part must go."""
    assert resource.RLIMIT_FSIZE is not None
    carry_out(path)
    whole = path.read_bytes()
    batch = b"".join(whole.splitlines(keepends=True)[:2])
    path.unlink()
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, os.path.dirname(__file__), path, str(len(batch) + 40)],
        capture_output=True,
        text=True,
    )
    kind, message = json.loads(ran.stdout)
    assert kind == "SetbacksError" and "cannot be written" in message and "\n" not in message
    assert path.read_bytes() == batch
    carry_out(path)
    assert path.read_bytes() == whole
