"""Train the adapter and fit the heads of the offline judge that ship with the package.

Only labels under permissive licenses are used; `judge_labels.py` names them, and the files that the
folder of public data must hold. Run it from the root of the repository:

    python research/fit_probe.py --data ../shared/data --states FOLDER

1. The frozen layers below the adapter read every answer once; their states are stored in FOLDER
   (4 GB), source by source, so that an interrupted run resumes.
2. A LoRA adapter on the layers above is trained for two epochs (`EPOCHS`), with a linear head for
   each task. The first is what made version 2. The second adds sources, reads what the first left
   unread, and takes HH-RLHF for what it is: which of two responses is worse. What ships is the
   mean of the adapters after each epoch (Wortsman et al. 2022, arXiv 2203.05482).
3. The head on *harmful* is calibrated on questions that were left out of the training. The other
   two are fitted again on the adapted states, with a regularization chosen by cross-validation.

On one core with AVX512-BF16, each of the steps takes about half an hour. The files that ship were
made by an earlier form of this script with the same settings, which drew the order of the rows in
another way. The script writes
setbacks/judges/probe.safetensors, setbacks/judges/probe_adapter.safetensors and
research/results/fit_probe.json; `judge_agreement.py` then measures the result. A quarter of the
questions of XSTest, HH-RLHF and chatgpt-refusals is held out of all of this, for measuring.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from judge_agreement import held_out
from judge_labels import SETS, Example, examples
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch.nn.functional import binary_cross_entropy_with_logits, softplus
from torch.nn.utils import parametrize

from setbacks.judges import probe
from setbacks.judges.probe import ADAPTER, HEADS, LAYERS, TASKS, VERSION, Head, fit, save
from setbacks.records import digest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "research" / "results" / "fit_probe.json"
SEED = 0
FROM = 10  # layers below stay as they are
RANK, SCALE = 8, 2.0
HEAD_RATE, WARM_UP = 3e-5, 20
BATCH_TOKENS = 2_600
START = 1e-4  # inverse strength of the regularization of the heads that training starts with
STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # to choose from, for the heads fitted again
# Weights of the tasks in the loss, and of sources with weak labels or rough ones.
TASK_WEIGHTS = {"harmful": 1.0, "refused": 0.5, "helpful": 0.5}
SOURCE_WEIGHTS = {
    "safetext": 0.4,
    "square": 0.4,
    "dices": 0.7,
    "rbr": 0.7,
    "hh-rlhf": 0.7,
    "own": 0.5,
    "babble": 0.5,
    "short": 0.5,
}
MOST = 6.0  # times the mean that a row may weigh
PAIRS = ("hh-rlhf", "hh-later")
MISTAKEN = 0.15  # of the pairs, taken to be in the wrong order
PAIR_WEIGHT = 1.4
MEASURED = ("xstest", "hh-rlhf", "hh-later", "refusals", "good")  # on questions held out

GOOD_SHARE = 3  # every third row of "good" fits the helpful head; more made it miss babble
HARMLESS = ("own", "short", "babble")  # by construction


class Epoch(NamedTuple):
    """One pass over the data.

    Args:
        rate: the largest learning rate of the adapter.
        longest: tokens; longer conversations are not read.
        pairs: whether rows of `PAIRS` are compared; otherwise each counts as labeled.
        without: sources that are not read.
        shares: of the rows of a source that are read, if not all.
        again: the same for rows that an earlier epoch has read.
    """

    rate: float
    longest: int
    pairs: bool
    without: Sequence[str]
    shares: Mapping[str, float]
    again: Mapping[str, float]


EPOCHS = (
    Epoch(
        rate=6e-4,
        longest=640,
        pairs=False,
        without=("hh-later", "rbr", "good", "short"),
        shares={"xstest": 0.55, "gptfuzz": 0.66},
        again={},
    ),
    Epoch(
        rate=4e-4,
        longest=560,
        pairs=True,
        without=(),
        shares={},
        again={
            "xstest": 0.05,
            "gptfuzz": 0.05,
            "safetext": 0.5,
            "square": 0.5,
            "quality": 0.5,
            "pyrit": 0.6,
            "babble": 0.6,
            "own": 0.6,
            "dices": 0.7,
        },
    ),
)


class Rows(NamedTuple):
    """Answers, and what the frozen layers hold of them."""

    rows: list[Example]
    texts: list[probe._Text]
    states: list[np.ndarray]  # shape (tokens, hidden size), bfloat16 seen as int16

    def length(self, i: int) -> int:
        """Return the number of tokens of a row."""
        return len(self.texts[i].ids)

    def batch(self, index: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states of some rows, and the shares of their tokens in the two means."""
        width = max(map(self.length, index))
        x = torch.zeros((len(index), width, self.states[0].shape[1]), dtype=torch.int16)
        share = torch.zeros((len(index), 2, width))
        for place, i in enumerate(index):
            x[place, : self.length(i)] = torch.from_numpy(np.array(self.states[i]))
            for half, span in enumerate((self.texts[i].response, self.texts[i].instruction)):
                share[place, half, span] = 1 / max(1, span.stop - span.start)
        return x.view(torch.bfloat16), share

    def batches(self, index: Sequence[int], tokens: int, jitter: float = 0) -> list[list[int]]:
        """Cut rows into batches of similar length; the two of a pair stay together."""
        chance = random.Random(SEED)
        units: list[list[int]] = []
        for i in index:
            together = (
                units
                and units[-1] == [i - 1]
                and self.rows[i].source in PAIRS
                and self.rows[i].question == self.rows[i - 1].question
            )
            if together:
                units[-1].append(i)
            else:
                units.append([i])
        units.sort(key=lambda unit: max(map(self.length, unit)) + jitter * chance.random())
        found: list[list[int]] = [[]]
        for unit in units:
            batch = [*found[-1], *unit]
            if found[-1] and len(batch) * max(map(self.length, batch)) > tokens:
                found.append([])
            found[-1] += unit
        return found


def read_all(rows: list[Example], folder: Path) -> Rows:
    """Read all answers with the frozen layers, source by source."""
    from setbacks.models.loading import load_model, load_tokenizer
    from setbacks.recipe import Engine

    folder.mkdir(parents=True, exist_ok=True)
    spec = Engine()
    model, tokenizer = load_model(spec).base_model.eval(), load_tokenizer(spec)
    model.layers, model.norm = model.layers[:FROM], torch.nn.Identity()
    texts = [probe._encode(tokenizer, row.prompt, row.response) for row in rows]
    states: list[Any] = [None] * len(rows)
    for name in sorted({row.source for row in rows}):
        index = [i for i, row in enumerate(rows) if row.source == name]
        ends = np.cumsum([len(texts[i].ids) for i in index])
        file = folder / f"{name}-{digest(FROM, *(digest(texts[i].ids) for i in index))}.npy"
        if not file.exists():
            start = time.monotonic()
            width = model.config.hidden_size
            part = file.with_suffix(".part")
            held = np.lib.format.open_memmap(part, "w+", np.int16, (int(ends[-1]), width))
            for place, i in enumerate(index):
                with torch.inference_mode():
                    read = model(input_ids=torch.tensor([texts[i].ids]), use_cache=False)[0][0]
                begin = ends[place] - len(texts[i].ids)
                held[begin : ends[place]] = read.to(torch.bfloat16).view(torch.int16).numpy()
            held.flush()
            part.rename(file)
            print(f"{name}: {len(index)} answers, {time.monotonic() - start:.0f} s", flush=True)
        held = np.load(file, mmap_mode="r")
        for i, end in zip(index, ends, strict=True):
            states[i] = held[end - len(texts[i].ids) : end]
    return Rows(rows, texts, states)


# The adapter -------------------------------------------------------------------------------------


class Lora(torch.nn.Module):
    """Adds a matrix of low rank to a weight (Hu et al. 2021, arXiv 2106.09685)."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.a = torch.nn.Parameter(torch.empty(RANK, columns))
        self.b = torch.nn.Parameter(torch.zeros(rows, RANK))
        torch.nn.init.kaiming_uniform_(self.a, a=5**0.5)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight that the layer uses."""
        return torch.addmm(weight, self.b.to(weight.dtype), self.a.to(weight.dtype), alpha=SCALE)


class Reader(torch.nn.Module):
    """The layers above the frozen ones, with the adapter, and a linear head for each task."""

    def __init__(self) -> None:
        super().__init__()
        from setbacks.models.loading import load_model
        from setbacks.recipe import Engine

        model = load_model(Engine()).base_model.requires_grad_(False)
        self.rotary = model.rotary_emb
        self.layers = model.layers[FROM : max(LAYERS)]
        self.names: dict[str, Lora] = {}
        for name, part in [*self.layers.named_modules()]:
            if isinstance(part, torch.nn.Linear):
                lora = Lora(part.weight)
                parametrize.register_parametrization(part, "weight", lora)
                number, _, rest = name.partition(".")
                self.names[f"layers.{int(number) + FROM}.{rest}"] = lora
        width = 2 * len(LAYERS) * model.config.hidden_size
        self.mean, self.scale = torch.zeros(width), torch.ones(width)
        self.head = torch.nn.Linear(width, len(TASKS))

    def features(self, x: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        """Return what the judge calls features, from the states below."""
        places = self.rotary(x, torch.arange(x.shape[1])[None])
        means = []
        for number, layer in enumerate(self.layers, FROM + 1):
            # Attention is causal and padding comes last, so that nothing read has seen padding.
            x = layer(x, position_embeddings=places, attention_mask=None)
            if number in LAYERS:
                means.append(share @ x.float())
        return torch.stack(means, 2).flatten(1)

    def forward(self, x: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
        """Return the log odds of each task."""
        scores: torch.Tensor = self.head((self.features(x, share) - self.mean) / self.scale)
        return scores

    def state(self) -> dict[str, torch.Tensor]:
        """Return a copy of the adapter and the heads."""
        state = {"head.weight": self.head.weight, "head.bias": self.head.bias}
        for name, lora in self.names.items():
            state |= {f"{name}.a": lora.a, f"{name}.b": lora.b}
        return {name: value.detach().clone() for name, value in state.items()}

    def take_mean(self, states: Sequence[Mapping[str, torch.Tensor]]) -> None:
        """Become the mean of several states: of the matrices that adapters add, and of heads."""
        for name, lora in self.names.items():
            lora.a = torch.nn.Parameter(torch.cat([state[f"{name}.a"] for state in states]))
            b = torch.cat([state[f"{name}.b"] for state in states], dim=1)
            lora.b = torch.nn.Parameter(b / len(states))
        with torch.no_grad():
            for name in ("weight", "bias"):
                parts = torch.stack([state[f"head.{name}"] for state in states])
                getattr(self.head, name).copy_(parts.mean(dim=0))

    def start(self, x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> None:
        """Start with heads that are fitted on the features without an adapter."""
        self.mean, self.scale = (
            torch.tensor(part, dtype=torch.float32) for part in (x.mean(0), x.std(0) + 1e-6)
        )
        z = (x - x.mean(0)) / (x.std(0) + 1e-6)
        with torch.no_grad():
            for task in range(len(TASKS)):
                on = weight[:, task] > 0
                model = LogisticRegression(C=START, max_iter=200, tol=1e-3)
                model.fit(z[on], y[on, task], sample_weight=weight[on, task])
                self.head.weight[task] = torch.tensor(model.coef_[0])
                self.head.bias[task] = float(model.intercept_[0])


def all_features(reader: Reader, rows: Rows, index: Sequence[int]) -> np.ndarray:
    """Return the features of some rows, shape (n, d)."""
    place = {i: number for number, i in enumerate(index)}
    found: list[Any] = [None] * len(index)
    for batch in rows.batches(index, 2 * BATCH_TOKENS):
        with torch.no_grad():
            for i, x in zip(batch, reader.features(*rows.batch(batch)).numpy(), strict=True):
                found[place[i]] = x
    return np.array(found)


def left_out(row: Example) -> bool:
    """Return whether a row is left out of the training, to be measured or to calibrate on."""
    if row.source in MEASURED:
        return held_out(row.question)
    return _byte(row.question) % 8 == 0


def _byte(question: str) -> int:
    """Return a number from 0 to 255 for a question, always the same."""
    return hashlib.blake2b(question.encode(), digest_size=1).digest()[0]


def labels(rows: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of each task, -1 where there is none, and the rows' weights in the loss.

    Within each source both labels weigh the same.
    """
    y = np.full((len(rows), len(TASKS)), -1.0, np.float32)
    weight = np.zeros_like(y)
    source = np.array([row.source for row in rows])
    free = np.array([not left_out(row) for row in rows])
    for task, name in enumerate(TASKS):
        for i, row in enumerate(rows):
            if (label := getattr(row, name)) is not None:
                y[i, task] = float(label)
        on = np.flatnonzero(free & (y[:, task] >= 0))
        weight[on, task] = probe.balanced(y[on, task].astype(int), source[on])
        weight[on, task] *= [SOURCE_WEIGHTS.get(name, 1.0) for name in source[on]]
        weight[on, task] = np.minimum(weight[on, task] / weight[on, task].mean(), MOST)
        weight[:, task] *= TASK_WEIGHTS[name]
    return y, weight


def pairs_in(rows: Sequence[Example], index: Sequence[int]) -> list[tuple[int, int]]:
    """Return the places of pairs in a batch: the better response, then the worse one."""
    return [
        (place, place + 1)
        for place, (i, j) in enumerate(zip(index, index[1:], strict=False))
        if rows[i].source in PAIRS
        and j == i + 1
        and rows[i].question == rows[j].question
        and not rows[i].harmful
    ]


def train(
    reader: Reader, rows: Rows, y: np.ndarray, weight: np.ndarray, epoch: Epoch, read: set[int]
) -> dict[str, Any]:
    """Train the adapter for an epoch; return notes, and add the rows to those that were read."""
    chance = random.Random(SEED)

    def drawn(i: int) -> bool:
        source = rows.rows[i].source
        share = (epoch.again if i in read else epoch.shares).get(source, 1)
        return (
            weight[i].sum() > 0
            and source not in epoch.without
            and rows.length(i) <= epoch.longest
            and chance.random() < share
        )

    index = [i for i in range(len(rows.rows)) if drawn(i)]
    if epoch.pairs:
        weight = weight.copy()
        weight[[i for i, row in enumerate(rows.rows) if row.source in PAIRS], 0] = 0
    plan = rows.batches(index, BATCH_TOKENS, jitter=24)
    chance.shuffle(plan)
    loras = [part for lora in reader.names.values() for part in lora.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": loras, "lr": epoch.rate},
            {"params": reader.head.parameters(), "lr": HEAD_RATE},
        ],
        weight_decay=0.01,
    )
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda n: min((n + 1) / WARM_UP, max(0.01, (len(plan) - n) / (len(plan) - WARM_UP))),
    )
    start, losses = time.monotonic(), []
    targets, weights = torch.tensor(y), torch.tensor(weight)
    for number, batch in enumerate(plan, 1):
        scores = reader(*rows.batch(batch))
        loss = binary_cross_entropy_with_logits(
            scores, targets[batch].clamp(0, 1), weights[batch], reduction="sum"
        )
        if epoch.pairs and (pairs := pairs_in(rows.rows, batch)):
            better, worse = zip(*pairs, strict=True)
            gap = scores[list(worse), 0] - scores[list(better), 0]
            wrong = (1 - MISTAKEN) * softplus(-gap) + MISTAKEN * softplus(gap)
            loss = loss + PAIR_WEIGHT * wrong.sum()
        loss = loss / len(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(loras, 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if number % 20 == 0:
            spent = time.monotonic() - start
            print(f"step {number} of {len(plan)}, loss {np.mean(losses[-20:]):.3f}, {spent:.0f} s")
    read.update(index)
    return {"rows": len(index), "steps": len(plan), "seconds": round(time.monotonic() - start)}


# The heads ---------------------------------------------------------------------------------------


def calibrated(reader: Reader, x: np.ndarray, y: np.ndarray, sources: Sequence[str]) -> Head:
    """Return the trained head on *harmful* with Platt scaling on questions left out of training."""
    weight = (reader.head.weight[0] / reader.scale).detach().numpy()
    bias = float(reader.head.bias[0]) - float(weight @ reader.mean.numpy())
    balanced = probe.balanced(y.astype(int), np.array(sources))
    platt = LogisticRegression(C=1e6)
    platt.fit((x @ weight + bias)[:, None], y, sample_weight=balanced)
    stretch, shift = float(platt.coef_[0, 0]), float(platt.intercept_[0])
    return Head((stretch * weight).astype(np.float32), stretch * bias + shift)


def chosen(x: np.ndarray, y: np.ndarray, rows: Sequence[Example]) -> tuple[Head, dict[str, Any]]:
    """Return a head with the regularization that ranks the questions of other folds best."""
    from sklearn.model_selection import StratifiedGroupKFold

    questions = [row.question for row in rows]
    # The sets of good and bad answers are one source: the same good answers belong to both.
    sources = [{"quality": "own", "babble": "own"}.get(row.source, row.source) for row in rows]
    folds = StratifiedGroupKFold(probe.FOLDS, shuffle=True, random_state=0)
    aucs = {}
    for c in STRENGTHS:
        score = np.zeros(len(y))
        for on, off in folds.split(x, y, questions):
            head = fit(x[on], y[on], [questions[i] for i in on], [sources[i] for i in on], c)
            score[off] = x[off] @ head.weight
        aucs[c] = round(float(roc_auc_score(y, score)), 4)
    best = max(aucs, key=lambda c: aucs[c])
    return fit(x, y, questions, sources, best), {"c": best, "auc_by_c": aucs}


def ranked(score: np.ndarray, y: np.ndarray, rows: Sequence[Example]) -> Iterator[tuple[str, Any]]:
    """Yield each source with its n and its AUC."""
    for source in sorted({row.source for row in rows}):
        there = np.array([row.source == source for row in rows])
        if there.sum() > 20 and len(set(y[there])) > 1:
            auc = round(float(roc_auc_score(y[there], score[there])), 3)
            yield source, {"n": int(there.sum()), "auc": auc}


def main() -> None:
    """Train, fit and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--states", type=Path, required=True, help="where states are stored")
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    rows = read_all(
        [
            row
            for row in examples(arguments.data)
            if (row.harmful, row.refused, row.helpful) != (None, None, None)
        ],
        arguments.states,
    )
    y, weight = labels(rows.rows)
    reader = Reader()
    trained = np.flatnonzero(weight.sum(1) > 0)
    reader.start(all_features(reader, rows, trained.tolist()), y[trained], weight[trained])

    off = [i for i, row in enumerate(rows.rows) if left_out(row) and y[i, 0] >= 0]
    held = [rows.rows[i] for i in off]

    def on_rows_left_out() -> dict[str, Any]:
        z = (all_features(reader, rows, off) - reader.mean.numpy()) / reader.scale.numpy()
        return dict(ranked(z @ reader.head.weight[0].detach().numpy(), y[off, 0], held))

    result: dict[str, Any] = {"version": VERSION, "epochs": []}
    result["left_out"] = {"no adapter": on_rows_left_out()}
    read: set[int] = set()
    states = []
    for number, epoch in enumerate(EPOCHS, 1):
        result["epochs"].append(train(reader, rows, y, weight, epoch, read))
        result["left_out"][f"epoch {number}"] = on_rows_left_out()
        states.append(reader.state())
    reader.take_mean(states)
    result["left_out"]["mean of both"] = on_rows_left_out()
    x = all_features(reader, rows, off)
    verdicts = [n for n, row in enumerate(held) if row.source not in (*MEASURED, *HARMLESS)]
    heads = {
        "harmful": calibrated(
            reader, x[verdicts], y[off, 0][verdicts], [held[n].source for n in verdicts]
        )
    }
    for task, name in [*enumerate(TASKS)][1:]:
        on = [
            i
            for i, row in enumerate(rows.rows)
            if y[i, task] >= 0
            and not (row.source in MEASURED and left_out(row))
            and (row.source != "good" or _byte(row.question) % GOOD_SHARE == 1)
        ]
        heads[name], result[name] = chosen(
            all_features(reader, rows, on), y[on, task] > 0, [rows.rows[i] for i in on]
        )
    write(reader, heads, result)


def write(reader: Reader, heads: dict[str, Head], result: dict[str, Any]) -> None:
    """Write the adapter, the heads and the figures."""
    adapter = {}
    for name, lora in reader.names.items():
        adapter[f"{name}.A"] = lora.a.detach().to(torch.bfloat16)
        adapter[f"{name}.B"] = (SCALE * lora.b.detach()).to(torch.bfloat16)
    notes = {"version": str(VERSION), "command": "python research/fit_probe.py"}
    save_file(adapter, ADAPTER, metadata=notes)
    licenses = ", ".join(f"{name} ({one.license})" for name, one in SETS.items())
    save(
        HEADS,
        heads,
        notes
        | {
            "harmful": f"XSTest (CC BY 4.0), HH-RLHF (MIT), {licenses}, own answers (Apache-2.0)",
            "refused": "XSTest (CC BY 4.0), chatgpt-refusals (MIT), own answers (Apache-2.0)",
            "helpful": "setbacks' own answers (Apache-2.0), and worse ones made of them",
        },
    )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
