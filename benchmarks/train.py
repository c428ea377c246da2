"""Training speed compared with TRL's trainer: the same examples, model, adapter and optimizer.

    python benchmarks/train.py --data ../shared/data --examples 48 --seeds 3

Four contenders train one epoch on the same examples, which resemble analyses (a question about an
instruction and its answer, in a chat; loss on the completion only). Each runs in a separate
process, in turns, so that other load affects all alike. No example is long enough to be cut:

- `TRL`: SFTTrainer with its defaults, except for batch size, learning rate and adapter;
- `TRL, tuned`: without activation checkpointing, with TRL's grouping by length, and weights in the
  same number format as ours;
- `TRL, packed`: the same, but with TRL's packing of examples into full rows, and as many tokens per
  step;
- `setbacks`: `setbacks train`, including checkpoints on disk.

Prints tokens per second, peak memory (of the GPU, if any), and the loss on unseen examples, for
each seed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONTENDERS = ("TRL", "TRL, tuned", "TRL, packed", "setbacks")
HELD_OUT = 24
BATCH = 8
RATE = 2e-4
LONGEST = 320


def main() -> None:
    """Run the contenders in turns, print one table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--examples", type=int, default=48)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/train.json"))
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one, arguments.data, arguments.examples, arguments.seed)))
        return
    rows = []
    for seed in range(arguments.seeds):
        for name in CONTENDERS:
            again = [sys.executable, __file__, "--one", name, "--seed", str(seed)]
            again += ["--data", str(arguments.data), "--examples", str(arguments.examples)]
            printed = subprocess.run(again, capture_output=True, text=True)
            if printed.returncode:
                sys.exit(f"{name}: {printed.stderr[-2000:]}")
            rows.append(json.loads(printed.stdout.splitlines()[-1]))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    result = summed_up(rows, arguments.examples)
    print("| trainer | tokens/s | against TRL | peak memory | held-out loss |")
    print("| --- | ---: | ---: | ---: | --- |")
    for row in result["contenders"]:
        losses = ", ".join(f"{loss:.3f}" for loss in row["losses"])
        print(
            f"| {row['name']} | {row['speed']:.0f} | {row['ratio']:.2f}x | "
            f"{row['memory']:.1f} GB | {losses} |"
        )
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def summed_up(rows: list[dict[str, Any]], examples: int) -> dict[str, Any]:
    """The median over seeds of each contender's speed, and of its ratio to TRL in the same turn."""
    by_name = {name: [row for row in rows if row["name"] == name] for name in CONTENDERS}
    base = [row["speed"] for row in by_name["TRL"]]
    return {
        "examples": examples,
        "batch": BATCH,
        "device": rows[0]["device"],
        "threads": rows[0]["threads"],
        "dtype": rows[0]["dtype"],
        "contenders": [
            {
                "name": name,
                "speed": statistics.median(row["speed"] for row in runs),
                "ratio": statistics.median(
                    row["speed"] / other for row, other in zip(runs, base, strict=True)
                ),
                "memory": max(row["memory"] for row in runs),
                "losses": [row["loss"] for row in runs],
            }
            for name, runs in by_name.items()
        ],
    }


def one(name: str, data: Path, number: int, seed: int) -> dict[str, Any]:
    """Train one contender; return its speed, its peak memory and its loss on unseen examples."""
    import torch

    from setbacks.models.hardware import device, dtype
    from setbacks.models.loading import load_tokenizer
    from setbacks.recipe import Recipe
    from setbacks.training.supervised import example_row

    recipe = Recipe.model_validate(
        {
            "seed": seed,
            "train": {
                "method": "helpful",
                "helpful": [
                    {
                        "source": str(data / "alpaca/alpaca_999.json"),
                        "fields": {"text": "instruction", "input": "input", "answer": "output"},
                        "shuffle": 5,
                    }
                ],
                "epochs": 1,
                "batch_size": BATCH,
                "learning_rate": RATE,
                "warmup": 0.0,
                "scheduler": "linear",
                "max_length": LONGEST,
            },
        }
    )
    tokenizer = load_tokenizer(recipe.model)
    # Only what fits whole: of longer ones each contender would learn another part.
    examples = [e for e in as_analyses(recipe) if fits(tokenizer, e, recipe)][: number + HELD_OUT]
    learned, unseen = examples[:number], examples[number:]
    rows = [example_row(tokenizer, example, recipe) for example in learned]
    with tempfile.TemporaryDirectory() as place:
        start = time.perf_counter()
        if name == "setbacks":
            model = ours(recipe, learned, Path(place))
        else:
            mean = sum(len(row["input_ids"]) for row in rows if row) / len(rows)
            model = theirs(recipe, learned, Path(place), name, mean)
        seconds = time.perf_counter() - start
    where = device(recipe.model)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if where.startswith("cuda"):
        memory = torch.cuda.max_memory_allocated() / 2**30
    return {
        "name": name,
        "seed": seed,
        "speed": sum(len(row["input_ids"]) for row in rows if row) / seconds,
        "memory": memory,
        "loss": held_out(model, [example_row(tokenizer, e, recipe) for e in unseen]),
        "device": torch.cuda.get_device_name() if where.startswith("cuda") else where,
        "threads": torch.get_num_threads(),
        "dtype": str(dtype(recipe.model, where)).removeprefix("torch."),
    }


def fits(tokenizer: Any, example: Any, recipe: Any) -> bool:
    """Whether an example is learned to its end."""
    from setbacks.training import tokenize

    return sum(map(len, tokenize(tokenizer, example.prompt, example.completion, recipe))) <= LONGEST


def as_analyses(recipe: Any) -> list[Any]:
    """Make examples of the shape that training has: a neutral question, and what follows it."""
    from setbacks.engines.own_verdict import question
    from setbacks.methods import answers, example

    return [
        example(
            "analysis",
            question(recipe.words_for("en"), answer.prompt[0].content, answer.completion).text,
            f"The response is harmless because it answers what was asked. {answer.completion}",
            [],
        )
        for answer in answers("helpful", recipe.train.helpful)
    ]


def ours(recipe: Any, examples: list[Any], place: Path) -> Any:
    """Train as `setbacks train` does; return the model with its adapter."""
    from peft import PeftModel

    from setbacks.models.loading import load_model
    from setbacks.runs.folder import RunFolder
    from setbacks.runs.session import Session
    from setbacks.training import supervised

    with RunFolder(place / "run", recipe) as folder, Session(folder) as run:
        supervised.fit(run, examples, run.path / "adapter")
        return PeftModel.from_pretrained(load_model(recipe.model), str(run.path / "adapter"))


def theirs(recipe: Any, examples: list[Any], place: Path, name: str, mean: float) -> Any:
    """Train with TRL's SFTTrainer, as it comes or as one who knows it would set it.

    Args:
        recipe: as `one` makes it.
        examples: to learn.
        place: a folder.
        name: of the contender.
        mean: tokens of an example.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from setbacks.models.embedded import resolve
    from setbacks.models.hardware import device, dtype
    from setbacks.training import adapter_config

    where = device(recipe.model)
    settings: dict[str, Any] = {"per_device_train_batch_size": BATCH}
    if name != "TRL":
        settings |= {
            "activation_checkpointing": False,
            "model_init_kwargs": {"dtype": dtype(recipe.model, where)},
        }
    if name == "TRL, tuned":
        settings["train_sampling_strategy"] = "group_by_length"
    if name == "TRL, packed":
        full = max(1, round(BATCH * mean / LONGEST))
        settings |= {"packing": True, "per_device_train_batch_size": full}
    trainer = SFTTrainer(
        model=resolve(recipe.model.model),
        args=SFTConfig(
            output_dir=str(place),
            num_train_epochs=1,
            learning_rate=RATE,
            max_length=LONGEST,
            seed=recipe.seed,
            use_cpu=where == "cpu",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=Dataset.from_list(
            [
                {
                    "prompt": [{"role": "user", "content": e.prompt[0].content}],
                    "completion": [{"role": "assistant", "content": e.completion}],
                }
                for e in examples
            ]
        ),
        peft_config=adapter_config(recipe),
    )
    trainer.train()
    return trainer.model


def held_out(model: Any, rows: list[Any]) -> float:
    """Return the mean loss per completion token on unseen examples."""
    import torch

    from setbacks.training.supervised import collate, completion_loss

    model.eval()
    total = counted = 0.0
    place = next(model.parameters()).device
    with torch.no_grad():
        for row in filter(None, rows):
            batch = collate([row], 0)
            batch.pop("kinds")
            batch = {key: tensor.to(place) for key, tensor in batch.items()}
            loss = completion_loss(model, **batch)
            total += float(loss.sums.sum())
            counted += float(loss.counts.sum())
    return total / counted


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    main()
