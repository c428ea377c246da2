"""What a session gives back at its end."""

import subprocess
import sys

import pytest

FREED = """
from pathlib import Path
from setbacks.runs.session import return_memory

def resident():
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in x)
    return int(line.split()[1]) / 1024

before = resident()
blocks = [bytearray(b"x" * 60_000) for _ in range(5000)]  # too small for mappings of their own
kept = blocks[::500]  # each keeps what lies below it
del blocks
held = resident()
return_memory()
print(round(held - before), round(resident() - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_memory_goes_back_to_the_system():
    run = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    held, left = map(int, run.stdout.split())
    assert held > 200 and left < 50
