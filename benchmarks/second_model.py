"""Mistake distillation beside SFT and its controls on a second model, which nothing was chosen on.

    python benchmarks/second_model.py --seeds 3 --out runs/second --jobs 4

Makes the base model Gemma-3-270M helpful (recipes/gemma.yaml), runs `setbacks compare
recipes/compare.yaml` on it, or resumes both, and writes results/second_model.json. Needs the data
in ../shared/data.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from compare import ROOT, chosen, command, compared, write

TUNING = ROOT / "recipes" / "gemma.yaml"
METHODS = "mistake_distillation,sft,without_analyses,shuffled_analyses"


def main() -> None:
    """Tune the base model, run the comparison, and write the results."""
    parser = argparse.ArgumentParser(description="Compare methods on Gemma-3-270M.")
    options = chosen(parser, Path("runs/second"))
    folder = options["out"]
    model = (folder / "model").resolve()
    options |= {"out": folder / "compare", "methods": options.get("methods", METHODS)}
    if not model.exists():
        setbacks("run", TUNING, "--out", folder / "tuning")
        setbacks("export", folder / "tuning", "--merge", "--to", model)
    # With a vocabulary of 262,144, the logits of a row take a megabyte.
    run_on = [f"model.model={model}", "model.chat_template=alpaca", "model.batch_size=32"]
    results = compared(options, *run_on)
    results["command"] = command("second_model.py", options)
    write("second_model.json", results)


def setbacks(*words: object) -> None:
    """Run a command of setbacks."""
    subprocess.run([sys.executable, "-m", "setbacks", *map(str, words)], check=True)


if __name__ == "__main__":
    main()
