"""Kill a run at random moments, finish it, and compare its folder byte by byte with a quiet run's.

    python benchmarks/crash.py --recipe recipes/ci.yaml --kills 10
    python benchmarks/crash.py --recipe recipes/ci.yaml --kills 10 --command compare
    python benchmarks/crash.py --recipe recipes/loop.yaml --kills 10 --command loop

Every kill is a SIGKILL to the whole process group. The same command is started again and killed
after about a tenth of its work, until it finishes, so kills hit every phase, including the loading
of libraries. Work is counted in CPU seconds, so that other processes do not matter (Linux only).
The folder is compared with that of a quiet run, and the next attack begins, until --kills kills.
Only times may differ (run.log, costs.jsonl, the lock, and the seconds in pages and their JSON), and
the path of the folder itself.
Exits 1 if anything else differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

VOLATILE = {"run.log", "costs.jsonl", ".lock"}
PER_RUN = 10  # kills, about, on the way to one end
# What the last of a run's stages has left says which stage a kill met.
SIGNS = {
    "report": "report.html",
    "judge": "verdicts",
    "respond": "responses",
    "introspect": "introspection.jsonl",
    "train": "training.jsonl",
    "preflight": "preflight.jsonl",
    "analyze": "analyses.jsonl",
    "induce": "mistakes.jsonl",
}


def main() -> int:
    """Kill, finish and compare; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", default="recipes/ci.yaml")
    parser.add_argument("--command", choices=["run", "compare", "loop"], default="run")
    parser.add_argument("--methods", default="mistake_analysis,sft,dpo", help="of a comparison")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=1e9, help="after which no more are killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="a file of results, to which this one is added")
    arguments = parser.parse_args()
    until = time.monotonic() + 60 * arguments.minutes
    command = [sys.executable, "-m", "setbacks", arguments.command, arguments.recipe, "--quiet"]
    if arguments.command == "compare":
        command += ["--methods", arguments.methods]
    with tempfile.TemporaryDirectory(prefix="setbacks-crash-") as place:
        result = attack(command, Path(place), arguments.kills, until, random.Random(arguments.seed))
    if arguments.json:
        command_line = f"python benchmarks/crash.py --recipe {arguments.recipe}"
        command_line += f" --kills {arguments.kills}"
        if arguments.command == "compare":
            command_line += f" --command compare --methods {arguments.methods}"
        if arguments.minutes < 1e9:
            command_line += f" --minutes {arguments.minutes:g}"
        write(arguments.json, arguments.command, {"command": command_line, **result})
    return 1 if any(end["different"] for end in result["ends"]) else 0


def attack(
    command: list[str], place: Path, number: int, until: float, chance: random.Random
) -> dict[str, Any]:
    """Kill a command so often, or until a time; return the kills, and how each folder ended."""
    quiet, killed = place / "quiet", place / "killed"
    whole, expected = timed(command, quiet), contents(quiet)
    startup = timed(command, quiet)  # libraries are loaded, and there is nothing to do
    share = max(0.0, whole - startup) / min(number, PER_RUN)
    kills: list[dict[str, Any]] = []
    ends: list[dict[str, Any]] = []
    while True:
        more = len(kills) < number and time.monotonic() < until
        after = startup * chance.uniform(0.5, 1) + share * chance.uniform(0, 2)
        process = start(command, killed)
        while (code := process.poll()) is None and not (more and spent(process.pid) >= after):
            time.sleep(0.02)
        if code is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills.append({"after": round(after, 2), "stage": met(killed)})
            print(f"kill {len(kills)}: after {after:.2f} CPU s, {kills[-1]['stage']}", flush=True)
            continue
        if code:
            sys.exit(f"a run that went on after kill {len(kills)} failed")
        actual = contents(killed)
        names = sorted(expected.keys() | actual.keys())
        different = [name for name in names if expected.get(name) != actual.get(name)]
        ends.append({"after_kill": len(kills), "files": len(names), "different": different})
        print(f"end {len(ends)}: {len(names)} files compared, {len(different)} differ", *different)
        if not more:
            return {"cpu_seconds": round(whole), "kills": kills, "ends": ends}
        shutil.rmtree(killed)


def start(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start it in a process group of its own."""
    return subprocess.Popen(
        [*command, "--out", str(folder)], stdout=subprocess.DEVNULL, start_new_session=True
    )


def timed(command: list[str], folder: Path) -> float:
    """Let it come to its end; return the CPU seconds that it took."""
    process = start(command, folder)
    seconds = 0.0
    while (code := process.poll()) is None:
        seconds = spent(process.pid)
        time.sleep(0.02)
    if code:
        sys.exit("an uninterrupted run failed")
    return seconds


def spent(pid: int) -> float:
    """The CPU seconds of a process so far, by /proc/PID/stat (proc(5)): user and system time."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def runs(folder: Path) -> list[Path]:
    """The folders of the runs: of a comparison or a loop, those in it, the youngest last."""
    inner = [*folder.glob("arms/*"), *folder.glob("*/recipe.yaml")]
    parts = {path if path.is_dir() else path.parent for path in inner}
    return sorted(parts, key=lambda path: path.stat().st_ctime) or [folder]


def met(folder: Path) -> str:
    """The stage whose files a kill has left last, and the run in a comparison or a loop."""
    run = runs(folder)[-1]
    stage = next((stage for stage, sign in SIGNS.items() if (run / sign).exists()), "opening")
    return stage if run == folder else f"{run.name} {stage}"


def show(number: int, row: dict[str, Any]) -> None:
    """Print a kill."""
    print(f"kill {number}: after {row['after']} s, {row['stage']}", flush=True)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that must be the same, by name, without what tells the time."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in VOLATILE:
            content = timeless(path).replace(str(folder).encode(), b"FOLDER")
            files[path.relative_to(folder).as_posix()] = content
    return files


def timeless(path: Path) -> bytes:
    """Return a file's bytes without durations."""
    content = path.read_bytes()
    if path.name == "metrics.json":
        data = json.loads(content)
        del data["costs"]
        return json.dumps(data).encode()
    if path.name == "findings.json":
        data = json.loads(content)
        for row in data["data"].get("spent", []):
            del row["seconds"]
            row.pop("money", None)  # of costs.jsonl, as is the number of tokens of a round
            if "round" in row:
                del row["tokens"]
        for table in data["tables"]:
            if table["columns"][-1] in ("seconds", "cost"):
                table["rows"] = [row[:-1] for row in table["rows"]]
        return json.dumps(data).encode()
    if path.name == "report.html":
        content = re.sub(rb'<section id="costs".*?</section>', b"", content, flags=re.DOTALL)
        return re.sub(
            rb"<section>\s*<h2>(What each training spent|Rounds)<.*?</section>",
            b"",
            content,
            flags=re.DOTALL,
        )
    return content


def write(path: Path, command: str, result: dict[str, Any]) -> None:
    """Put a result into a file of results by command."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**kept, command: result}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
