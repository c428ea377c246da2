"""Could a LoRA adapter make the offline judge better? The shipped head, trained with an adapter.

The embedded model gets an adapter, and the shipped head on *harmful* reads its layers as before. At
first the adapter changes nothing, so training starts at the judge that ships. It is trained for one
epoch on the labels of that head (see `fit_probe.py`: only permissive ones, with a quarter of the
questions held out). It then judges unseen answers, as does the shipped head. All settings were
written down before the first run. A smoke test of 15 steps and a run that was stopped at step 125
came before the one that is shown; neither was measured. Run it from the root of the repository:

    python research/probe_adapter.py --data ../shared/data --adapter FOLDER

It prints a table and writes research/results/probe_adapter.json; the adapter (PEFT) goes into
FOLDER, from which a second run reads it.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from judge_agreement import SEED, Labeled, held_out
from peft import LoraConfig, PeftModel, get_peft_model
from probe_candidates import (
    FITTED,
    MEASURED,
    ROOT,
    TOKENS,
    answers,
    encode,
    in_batches,
    measured,
    pairs_right,
    read,
)
from torch.nn.functional import binary_cross_entropy_with_logits

from setbacks.judges import probe
from setbacks.models.chat_template import ending

RESULTS = ROOT / "research" / "results" / "probe_adapter.json"
SAMPLE = 600  # answers of a source, questions drawn whole: half of what the candidates are given
RANK, ALPHA = 8, 16
FROM = 8  # layers below are left alone, which spares their backward pass
RATE, BATCH_SIZE, WARM_UP = 3e-4, 8, 20
LONGEST = 320  # tokens; longer pairs are not trained on


class Judge:
    """The embedded model under the shipped head."""

    def __init__(self) -> None:
        self.model, self.tokenizer = probe._reader()
        self.end = ending(self.tokenizer)
        head = probe.load()["harmful"]
        self.weight, self.bias = torch.tensor(head.weight), head.bias

    def odds(self, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
        """Return the log odds of harm, shape (n,)."""
        texts = [encode(self.tokenizer, pair, self.end) for pair in pairs]
        width = max(len(text.ids) for text in texts)
        ids = torch.full((len(texts), width), self.tokenizer.pad_token_id)
        share = torch.zeros((len(texts), 2, width))
        for row, text in enumerate(texts):
            ids[row, : len(text.ids)] = torch.tensor(text.ids)
            for half, span in enumerate((text.response, text.instruction)):
                share[row, half, span] = 1 / max(1, span.stop - span.start)
        # Attention is causal and padding comes last, so that nothing read has seen padding.
        hidden = self.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        means = torch.stack([share @ hidden[layer].float() for layer in probe.LAYERS], dim=2)
        return means.flatten(1) @ self.weight + self.bias

    def length(self, row: Labeled) -> int:
        """Return how many tokens are read of an answer."""
        return len(encode(self.tokenizer, (row.instruction, row.response), self.end).ids)


def train(judge: Judge, rows: dict[str, list[Labeled]], folder: Path) -> dict[str, Any]:
    """Train the adapter for one epoch, save it, and return notes."""
    labeled = [
        (name, row)
        for name in FITTED
        for row in rows[name]
        if (name == "own" or not held_out(row.question)) and judge.length(row) <= LONGEST
    ]
    labels = np.array([bool(row.harmful) for _, row in labeled])
    kinds = np.array(["preferences" if name == "hh-rlhf" else "verdicts" for name, _ in labeled])
    weight = torch.tensor(probe._balanced(labels.astype(int), kinds), dtype=torch.float32)
    target = torch.tensor(labels, dtype=torch.float32)
    steps = list(laid_out([judge.length(row) for _, row in labeled]))

    torch.manual_seed(SEED)
    layers = "|".join(map(str, range(FROM, max(probe.LAYERS))))
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=rf"layers\.({layers})\..*_proj")
    judge.model = get_peft_model(judge.model, config)
    trained = [part for part in judge.model.parameters() if part.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / WARM_UP, (len(steps) - n) / (len(steps) - WARM_UP))
    )
    start, losses = time.monotonic(), []
    for number, step in enumerate(steps, 1):
        odds = judge.odds([(labeled[i][1].instruction, labeled[i][1].response) for i in step])
        loss = binary_cross_entropy_with_logits(odds, target[step], weight[step])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if number % 25 == 0:
            spent = time.monotonic() - start
            print(
                f"step {number} of {len(steps)}, loss {np.mean(losses[-25:]):.3f}, {spent:.0f} s",
                flush=True,
            )
    judge.model.save_pretrained(folder)
    part = max(1, len(losses) // 5)
    return {
        "rows": len(labeled),
        "steps": len(steps),
        "seconds": round(time.monotonic() - start),
        "parameters": sum(one.numel() for one in trained),
        "loss_first_fifth": round(float(np.mean(losses[:part])), 3),
        "loss_last_fifth": round(float(np.mean(losses[-part:])), 3),
    }


def laid_out(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield one epoch's batches, of similar length and in a random order."""
    chance = random.Random(SEED)
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], chance.random()))
    batches = [order[i : i + BATCH_SIZE] for i in range(0, len(order), BATCH_SIZE)]
    yield from chance.sample(batches, len(batches))


def main() -> None:
    """Train, measure, print the table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--adapter", type=Path, required=True, help="where the adapter rests")
    arguments = parser.parse_args()
    rows = read(arguments.data)
    judge = Judge()
    notes = arguments.adapter / "notes.json"
    if notes.exists():
        judge.model = PeftModel.from_pretrained(judge.model, arguments.adapter)
    else:
        report = train(judge, rows, arguments.adapter)
        notes.write_text(json.dumps(report) + "\n", encoding="utf-8")
    judge.model.eval()

    for name in MEASURED:
        rows[name] = [row for row in rows[name] if name not in FITTED or held_out(row.question)]
        rows[name] = rows[name][:SAMPLE]
    rows["hh-rlhf"] = [row for row in rows["hh-rlhf"] if held_out(row.question)]
    sources: dict[str, Any] = {}
    for name in (*MEASURED, "hh-rlhf"):
        pairs = [(row.instruction, row.response) for row in rows[name]]
        score = {}
        for how in ("the shipped head", "with the adapter"):
            off = judge.model.disable_adapter() if how == "the shipped head" else nullcontext()
            with torch.inference_mode(), off:
                score[how] = in_batches(pairs, lambda some: judge.odds(some).numpy())
        if name == "hh-rlhf":
            sources[name] = {how: pairs_right(rows[name], one) for how, one in score.items()}
        else:
            people = answers(name, rows[name])
            sources[name] = {"n": len(pairs), "n_positive": int(people.harmful.sum())} | {
                how: measured(people, one, None, score["the shipped head"])
                for how, one in score.items()
            }
        print(name, json.dumps(sources[name]), flush=True)
    settings = {"rank": RANK, "alpha": ALPHA, "from_layer": FROM, "rate": RATE, "tokens": TOKENS}
    training = json.loads(notes.read_text(encoding="utf-8"))
    result = {"settings": settings, "training": training, "sources": sources}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
