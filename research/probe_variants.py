"""Alternatives to version 3 of the offline judge: two heads for harm; the second embedded model.

Heads on *harmful* are fitted on permissively licensed labels, on a sample of the larger sources
(`MOST`), and compared: first on questions of these sources that version 3's adapter was never
trained on, then on four sets that are only measured. Run it from the root of the repository, with
the folder of public data that `judge_agreement.py` and `judge_labels.py` read:

    python research/probe_variants.py --data ../shared/data --states FOLDER

1. *Two heads*: one learns from verdicts on what an answer says (`CONTENT`), the other from verdicts
   on whether it gives what an unsafe request asks for (`HELP`). Both see the harmless answers of
   this project.
2. *The second embedded model*: the states of Gemma-3-270M, a base model whose terms the user must
   accept, read as a dialog in plain text, alone, together with those of SmolLM2-135M-Instruct, and
   as a second opinion beside version 3. SmolLM2's states without the adapter are what to compare
   Gemma's with: the same rows, lengths and fit.

Each model's features are stored in FOLDER, set by set; each takes a core about a quarter of an
hour. The script writes research/results/probe_variants.json. For the figures there, most features
were read by an earlier form of it, of the same answers at the same lengths, in other batches.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from fit_probe import left_out
from judge_agreement import SEED, SOURCES, held_out
from judge_labels import Example, examples
from probe_candidates import Answers, Rows, answers, auc, chosen, line, platt, rotated
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from setbacks.engines import by_length
from setbacks.judges import probe
from setbacks.messages import Prompt, turns_of
from setbacks.records import digest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "research" / "results" / "probe_variants.json"
CONTENT = ("dices", "hh-rlhf", "pyrit", "realharm", "safetext", "square")
HELP = ("gptfuzz", "purseclab", "xstest")
MOST = {"hh-rlhf": 1_000, "safetext": 1_000, "xstest": 1_400}
MOST_OF_A_QUESTION = {"gptfuzz": 12}
MEASURED = {"pku-saferlhf": 1_000, "beavertails": 1_000, "do-not-answer": 1_200, "xstest": None}
FEWER = {"do-not-answer": 300}  # harmless answers: harm is rare there, and AUC ignores how rare
GEMMA_LAYERS = (6, 8, 10, 12, 14)  # of 18
BATCH_SIZE = 16
PART = 512  # answers whose features are stored at a time

Pair = tuple[Prompt, str]
_load_reader = probe._reader.__wrapped__  # before `smollm2` replaces it for a moment


# The answers -----------------------------------------------------------------------------------


def fitted(data: Path) -> dict[str, list[Example]]:
    """Return the answers to fit on, and those of the same sources to choose by."""
    by_source: dict[str, list[Example]] = {name: [] for name in (*CONTENT, *HELP, "own")}
    for row in examples(data):
        held = row.source == "xstest" and held_out(row.question)  # these are measured
        if row.source in by_source and row.harmful is not None and not held:
            by_source[row.source].append(row)
    for name, rows in by_source.items():
        if name != "hh-rlhf":  # its pairs stay together
            random.Random(0).shuffle(rows)
        seen: Counter[str] = Counter()
        kept = []
        for row in rows:
            seen[row.question] += 1
            if seen[row.question] <= MOST_OF_A_QUESTION.get(name, len(rows)):
                kept.append(row)
        by_source[name] = kept[: MOST.get(name)]
    return by_source


def measured(data: Path) -> dict[str, list[Example]]:
    """Return the answers that are only measured."""
    by_source = {}
    for name, most in MEASURED.items():
        rows = SOURCES[name].read(data / name)
        if most is not None:
            rows = random.Random(SEED).sample(rows, most)
        labeled = [
            Example(name, row.question, row.instruction, row.response, row.harmful)
            for row in rows
            if row.harmful is not None and (most or held_out(row.question))
        ]
        harmless = [row for row in labeled if not row.harmful][: FEWER.get(name)]
        by_source[name] = [row for row in labeled if row.harmful] + harmless
    return by_source


# What a model holds of them ----------------------------------------------------------------------


def version_3(pairs: Sequence[Pair]) -> np.ndarray:
    """Return the judge's features."""
    return probe.features(pairs)


def smollm2(pairs: Sequence[Pair]) -> np.ndarray:
    """Return the same of the embedded model without the adapter."""
    with mock.patch.object(probe, "_reader", _plain_reader):
        return probe.features(pairs)


@cache
def _plain_reader() -> Any:
    with mock.patch.object(probe, "_adapt"):
        return _load_reader()


def gemma(pairs: Sequence[Pair]) -> np.ndarray:
    """Return the means of Gemma's hidden states over response and instruction, layer by layer."""
    import torch

    model, tokenizer = _gemma_reader()
    texts = [dialog(tokenizer, *pair) for pair in pairs]
    width = max(len(text.ids) for text in texts)
    ids = torch.zeros((len(texts), width), dtype=torch.long)
    share = torch.zeros((len(texts), 2, width))
    for row, text in enumerate(texts):
        ids[row, : len(text.ids)] = torch.tensor(text.ids)
        for half, span in enumerate((text.response, text.instruction)):
            share[row, half, span] = 1 / max(1, span.stop - span.start)
    # Attention is causal and padding comes last, so that nothing read has seen padding.
    with torch.inference_mode():
        states = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        means = torch.stack([share @ states[layer].float() for layer in GEMMA_LAYERS], dim=2)
    features: np.ndarray = means.flatten(1).numpy()
    return features


@cache
def _gemma_reader() -> tuple[Any, Any]:
    import torch

    from setbacks.models.loading import load_model, load_tokenizer
    from setbacks.recipe import Engine

    spec = Engine(model="gemma3-270m")
    model = load_model(spec).base_model.eval()
    model.layers = model.layers[: max(GEMMA_LAYERS)]
    model.config.num_hidden_layers = max(GEMMA_LAYERS)
    model.norm = torch.nn.Identity()
    return model, load_tokenizer(spec)


def dialog(tokenizer: Any, prompt: Prompt, response: str) -> probe._Text:
    """Tokenize a pair as a base model reads a dialog, at the judge's lengths."""

    def ids_of(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    *earlier, last = turns_of(prompt)
    context: list[int] = []
    for turn in earlier:
        context += ids_of(f"{turn.role.capitalize()}: {turn.content}\n\n")
    question = ids_of(last.content)
    if len(question) > probe.INSTRUCTION_TOKENS:
        half = probe.INSTRUCTION_TOKENS // 2
        question = question[:half] + question[-half:]
    answer = ids_of(f" {response}")[: probe.RESPONSE_TOKENS] + ids_of("\n\n")
    opening = [tokenizer.bos_token_id, *context[-probe.CONTEXT_TOKENS :], *ids_of("User:")]
    before = opening + question + ids_of("\n\nAssistant:")
    return probe._Text(
        before + answer,
        slice(len(opening), len(opening) + len(question)),
        slice(len(before), len(before) + len(answer)),
    )


def stored(
    read: Callable[[Sequence[Pair]], np.ndarray], rows: Sequence[Example], folder: Path
) -> np.ndarray:
    """Return what a model holds of answers, from the folder where it was read before."""
    pairs = [(row.prompt, row.response) for row in rows]
    start = time.monotonic()
    found: list[Any] = [None] * len(pairs)
    plan = by_length([len(str(pair)) for pair in pairs], PART)
    for index in plan:
        some = [pairs[i] for i in index]
        file = file_of(read, some, folder)
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            batches = [some[at : at + BATCH_SIZE] for at in range(0, len(some), BATCH_SIZE)]
            np.save(file, np.concatenate([read(batch) for batch in batches]).astype(np.float32))
            print(f"{file.name}: {time.monotonic() - start:.0f} s", flush=True)
        for i, x in zip(index, np.load(file), strict=True):
            found[i] = x
    return np.array(found)


def file_of(read: Callable[..., Any], pairs: Sequence[Pair], folder: Path) -> Path:
    """Return where the features of some pairs are stored."""
    return folder / f"{read.__name__}-{digest(*(digest(*pair) for pair in pairs))}.npy"


# Fitting ---------------------------------------------------------------------------------------


class Part(NamedTuple):
    """Answers of one use, with the features of each model."""

    rows: Sequence[Example]
    x: Mapping[str, np.ndarray]

    def at(self, index: np.ndarray) -> Part:
        """Return some of the answers."""
        x = {name: values[index] for name, values in self.x.items()}
        return Part([self.rows[i] for i in index], x)


Odds = Callable[[Part], np.ndarray]  # log odds that answers are harmful


def head(part: Part, features: Callable[[Part], np.ndarray], sources: Sequence[str]) -> Odds:
    """Fit a head on the answers of some sources, with the regularization that does best there."""
    index = np.flatnonzero([row.source in sources for row in part.rows])
    some = part.at(index)
    x = features(some)
    turn = rotated(x)
    rows = Rows(
        turn(x),
        np.array([bool(row.harmful) for row in some.rows]),
        np.array([f"{row.source} {row.question}" for row in some.rows]),
        # Our own answers are all harmless; they are one source of verdicts with those on help.
        np.array([{"own": HELP[-1]}.get(row.source, row.source) for row in some.rows]),
    )
    strength, _, scores = chosen("logistic", rows)
    score, odds = line("logistic", strength, rows), platt(rows, scores)
    return lambda given: odds(score(turn(features(given))))


def shipped(part: Part) -> np.ndarray:
    """Return the log odds of the judge that ships."""
    one = probe.load()["harmful"]
    odds: np.ndarray = part.x["version_3"] @ one.weight + one.bias
    return odds


def mean(*odds: Odds) -> Odds:
    """Return the mean of log odds."""
    return lambda part: np.mean([one(part) for one in odds], axis=0)


def most(*odds: Odds) -> Odds:
    """Return the greatest log odds: harm of either kind is harm."""
    return lambda part: np.max([one(part) for one in odds], axis=0)


def either(*odds: Odds) -> Odds:
    """Return the log odds of harm of at least one kind, as if the kinds were independent."""

    def of(part: Part) -> np.ndarray:
        none = np.prod([1 - expit(one(part)) for one in odds], axis=0)
        result: np.ndarray = logit(np.clip(1 - none, 1e-9, 1 - 1e-9))
        return result

    return of


def variants(part: Part) -> Iterator[tuple[str, Odds]]:
    """Yield the candidates, fitted; the first is what the others are compared with."""
    every = (*CONTENT, *HELP, "own")

    def of(*names: str) -> Callable[[Part], np.ndarray]:
        return lambda some: np.concatenate([some.x[name] for name in names], axis=1)

    yield "version 3, as it ships", shipped
    one = {name: head(part, of(name), every) for name in ("smollm2", "version_3", "gemma")}
    for name in ("smollm2", "version_3"):
        heads = [head(part, of(name), (*kind, "own")) for kind in (CONTENT, HELP)]
        yield f"{name}: one head", one[name]
        yield f"{name}: content alone", heads[0]
        yield f"{name}: help alone", heads[1]
        for combine in (mean, most, either):
            yield f"{name}: two heads, {combine.__name__}", combine(*heads)
    for low, high in pairwise((0, 2, 5)):
        some = layers(low, high)
        names = ", ".join(map(str, GEMMA_LAYERS[low:high]))
        yield f"gemma: layers {names}", head(part, some, every)
    yield "gemma: all five layers", one["gemma"]
    yield "smollm2 and gemma, concatenated", head(part, of("smollm2", "gemma"), every)
    yield "smollm2 and gemma, mean", mean(one["smollm2"], one["gemma"])
    yield "version 3 and smollm2, mean", mean(shipped, one["smollm2"])
    yield "version 3 and gemma, mean", mean(shipped, one["gemma"])
    yield "version_3 and gemma, concatenated", head(part, of("version_3", "gemma"), every)


def layers(low: int, high: int) -> Callable[[Part], np.ndarray]:
    """Return what takes some of Gemma's layers."""

    def of(part: Part) -> np.ndarray:
        x = part.x["gemma"]
        by_layer = x.reshape(len(x), 2, len(GEMMA_LAYERS), -1)
        chosen_layers: np.ndarray = by_layer[:, :, low:high].reshape(len(x), -1)
        return chosen_layers

    return of


# The comparison --------------------------------------------------------------------------------


def ranked(part: Part, odds: np.ndarray) -> dict[str, float]:
    """Return the AUC of each source with answers of both kinds."""
    source = np.array([row.source for row in part.rows])
    harmful = np.array([bool(row.harmful) for row in part.rows])
    found = {}
    for name in np.unique(source):
        there = source == name
        if there.sum() > 20 and len(set(harmful[there])) > 1:
            found[str(name)] = round(float(roc_auc_score(harmful[there], odds[there])), 3)
    return found


def compared(people: Answers, odds: np.ndarray, base: np.ndarray) -> dict[str, Any]:
    """Return the AUC on a set, and how much more that is than another's, with intervals."""
    area, other = auc(people, odds), auc(people, base)
    value, before = (roc_auc_score(people.harmful, score) for score in (odds, base))

    def triple(value: float, draws: np.ndarray) -> list[float]:
        return [round(float(x), 3) for x in (value, *np.percentile(draws, [2.5, 97.5]))]

    return {"auc": triple(value, area), "more": triple(value - before, area - other)}


def main() -> None:
    """Read, fit and measure; print the figures and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--states", type=Path, required=True, help="where features are stored")
    arguments = parser.parse_args()

    def part(rows: Sequence[Example]) -> Part:
        readers = (version_3, smollm2, gemma)
        return Part(rows, {read.__name__: stored(read, rows, arguments.states) for read in readers})

    everything = part([row for rows in fitted(arguments.data).values() for row in rows])
    off = np.array([left_out(row) for row in everything.rows])
    on, rest = everything.at(np.flatnonzero(~off)), everything.at(np.flatnonzero(off))
    sets = {name: part(rows) for name, rows in measured(arguments.data).items()}
    # All of them are measured on, so that the name is none of a source that is fitted on.
    people = {name: answers("", some.rows) for name, some in sets.items()}
    entries = []
    for name, odds in variants(on):
        inside = ranked(rest, odds(rest))
        scores = {key: odds(some) for key, some in sets.items()}
        if not entries:
            base = scores
        entry = {
            "variant": name,
            "left_out": inside,
            "mean": round(float(np.mean([*inside.values()])), 4),
            "sets": {key: compared(people[key], scores[key], base[key]) for key in sets},
        }
        entries.append(entry)
        cells = [f"{one['auc'][0]:.3f}" for one in entry["sets"].values()]
        print(f"{name}: {entry['mean']:.3f} | {' '.join(cells)}", flush=True)
    result = {
        "command": "python research/probe_variants.py",
        "fitted_on": Counter(row.source for row in on.rows),
        "left_out": len(rest.rows),
        "measured_on": {name: len(some.rows) for name, some in sets.items()},
        "variants": entries,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
