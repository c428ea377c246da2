"""Check, before a model is used, that the engine does not change the model's answers.

Batches, padding, caches, our attention and CUDA graphs must not change a model's answers, and no
list of architectures stays complete. So a few texts go through the engine like prompts, and their
logits are compared with those of one plain forward pass over each text. The fastest way that agrees
is used; a model for which none agrees is rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from setbacks.engines.answering import Answering, OneByOne, SideBySide, WithinReach, forward
from setbacks.engines.decoding import as_it_came, pack
from setbacks.engines.reading import reach
from setbacks.errors import InputError
from setbacks.models.attention import attend_by_products
from setbacks.models.chat_template import plain

if TYPE_CHECKING:
    import numpy as np
    import torch

# The allowed distance of logits, in standard deviations of the right ones. Sums in another order
# differ by 1e-5 in float32; in bfloat16 by 0.04 in the median, and by 0.2 if a router picks another
# expert. A wrong mask, position or state differs by 0.3 to 3, and by 0.1 or more in the median.
LOOSEST, TYPICAL = 64, 12  # the maximum and the median, times the precision of the format,
STRICTEST = 0.01  # and not less than this

TEXT = (
    "The river runs past the old mill, where 3 geese sleep under a willow. At noon a baker from "
    "the next village walks by with warm bread, greets the miller and asks what is new."
)
# Prompts of uneven length, each from and to a token of the text, and how many tokens follow them.
PROMPTS, MORE = ((0, 1), (5, 10), (13, 27)), 3
# One batch: which prompt, and how many tokens follow. Rows end at different times, and one prompt
# comes twice. If prompts are answered one by one, the shortest comes last: it overwrites the least
# of what remains of the others.
BATCH = ((1, 1), (2, MORE), (1, 2), (0, MORE))
# Prompts that begin alike and end in different tokens, and options to choose from, one of them of
# two tokens.
ALIKE, ENDINGS, OPTIONS = (30, 38), ((38, 39), (40, 44)), ((45, 46), (46, 48))
LENGTH = 48  # tokens of the text that are used


def _with_graphs(model: Any, pad: int) -> Answering:
    from setbacks.engines.graphs import Graphs

    attend_by_products(model, queries=1)
    return SideBySide(model, pad, Graphs(model))


def _with_products(model: Any, pad: int) -> Answering:
    attend_by_products(model, queries=1)
    pack(model)
    return SideBySide(model, pad)


# Each way for a model to answer, the fastest first: its name, and how the model is prepared.
WAYS: dict[str, Callable[[Any, int], Answering]] = {
    "in batches with CUDA graphs": _with_graphs,
    "in batches with our attention": _with_products,
    "in batches with transformers' attention": SideBySide,
    "one at a time by transformers' generate": OneByOne,
}


def ways(model: Any, graphs: bool) -> list[str]:
    """Return the ways to try on a model's device, the fastest first."""
    with_graphs, with_products, *others = WAYS
    first = {"cuda": [with_graphs] if graphs else [], "cpu": [with_products]}
    return [*first.get(model.device.type, []), *others]


def prepare(model: Any, way: str, pad: int) -> Answering:
    """Prepare a model to answer in one of `WAYS`."""
    as_it_came(model)
    answering = WAYS[way](model, pad)
    limit = reach(model.config)
    return answering if limit is None else WithinReach(answering, OneByOne(model, pad), limit)


class Way(NamedTuple):
    """The way in which a model answers.

    Args:
        name: one of `WAYS`.
        summary: the result of the check, in one line.
        fell_back: whether a faster way is wrong for this model.
    """

    name: str
    summary: str
    fell_back: bool


def find_way(
    model: Any, tokenizer: Any, pad: int, context: int | None, graphs: bool, name: str
) -> tuple[Way, Answering]:
    """Find the fastest way in which a model answers as in plain forward passes.

    Args:
        model: a causal language model, as it was loaded.
        tokenizer: the model's.
        pad: the id of padding.
        context: the most tokens of a text, if that is known.
        graphs: whether CUDA graphs may be used.
        name: of the model, for messages.

    Returns:
        The way, and the model prepared for it.

    Raises:
        InputError: there is none.
    """
    import torch

    bounds = Bounds.of(model.dtype)
    try:
        check = Check(model, _tokens(model, tokenizer), context)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise InputError(f'model "{name}": reading a text fails ({_reason(error)})') from error
    failed: list[str] = []
    for way in ways(model, graphs):
        answering = prepare(model, way, pad)
        try:
            off = check.distances(answering)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the model cannot be run in this way
            failed.append(f"{way} it fails ({_reason(error)})")
            continue
        if bounds.hold(off):
            why = "; ".join(failed) or f"this agrees with plain forward passes ({max(off):.1g})"
            summary = f'model "{name}": answered {way}: {why}'
            return Way(way, summary, bool(failed)), answering
        failed.append(
            f"{way} its logits differ from plain forward passes by {max(off):.1g} standard "
            f"deviations at most and {median(off):.1g} in the median ({bounds.most:.1g} and "
            f"{bounds.typical:.1g} are allowed)"
        )
    raise InputError(
        f'model "{name}": its answers would be wrong: {"; ".join(failed)}; name a causal language '
        "model that this version of transformers runs, or try model.dtype=float32"
    )


class Check:
    """A few texts, and the logits of one plain forward pass over each of them.

    Args:
        model: a causal language model.
        ids: the tokens of the texts.
        context: the most tokens of a text, if that is known.

    Raises:
        ValueError: the model's logits are not numbers.
    """

    def __init__(self, model: Any, ids: list[int], context: int | None) -> None:
        room = None if context is None else max(1, context - MORE)
        self.prompts = [ids[start:end][:room] for start, end in PROMPTS]
        self.following = [ids[end : end + MORE] for _, end in PROMPTS]
        self.logits = [
            forward(model, prompt + following[:-1], MORE)
            for prompt, following in zip(self.prompts, self.following, strict=True)
        ]
        self.alike = [(ids[slice(*ALIKE)] + ids[start:end])[:room] for start, end in ENDINGS]
        self.options = [ids[start:end] for start, end in OPTIONS]
        (single,), (two, three) = self.options
        self.chosen = [forward(model, [*prompt, two], 2) for prompt in self.alike]
        if any(logits.isnan().any() for logits in (*self.logits, *self.chosen)):
            raise ValueError(
                f"its logits are not numbers in {model.dtype}; set model.dtype=float32"
            )
        logs = [logits.log_softmax(dim=-1) for logits in self.chosen]
        self.shares = [[float(a[single]), float(a[two] + b[three])] for a, b in logs]

    def distances(self, answering: Answering) -> list[float]:
        """Return the distances of a model's logits from the right ones, in one way of answering."""
        import torch

        off: list[float] = []

        def follow(logits: torch.Tensor, rows: np.ndarray, step: int) -> torch.Tensor:
            """Note the distance of each row's logits, and continue with the text."""
            answered = [BATCH[row] for row in rows]
            for ours, (prompt, most) in zip(logits.cpu(), answered, strict=True):
                if step < most:
                    off.append(distance(ours, self.logits[prompt][step]))
            tokens = [self.following[prompt][step] for prompt, _ in answered]
            return torch.tensor(tokens, device=logits.device)

        prompts, most = [self.prompts[prompt] for prompt, _ in BATCH], [more for _, more in BATCH]
        answers = answering.answer(prompts, most, (), follow)
        if answers != [(self.following[prompt][:more], False) for prompt, more in BATCH]:
            raise ValueError("tokens are lost")
        shares = answering.log_probabilities(self.alike, [self.options] * len(self.alike)).tolist()
        for ours, right, logits in zip(shares, self.shares, self.chosen, strict=True):
            off += [abs(a - b) / float(_spread(logits)) for a, b in zip(ours, right, strict=True)]
        return [x if x == x else float("inf") for x in off]  # not a number


class Bounds(NamedTuple):
    """The allowed distances of logits: the maximum, and the median."""

    most: float
    typical: float

    @classmethod
    def of(cls, precision: torch.dtype) -> Bounds:
        """Return the bounds of a number format."""
        import torch

        eps = torch.finfo(precision).eps
        return cls(*(max(STRICTEST, times * eps) for times in (LOOSEST, TYPICAL)))

    def hold(self, off: Sequence[float]) -> bool:
        """Return whether distances are within the bounds; what is not a number is not."""
        return all(x <= self.most for x in off) and median(off) <= self.typical


def distance(ours: torch.Tensor, right: torch.Tensor) -> float:
    """Return the distance of logits: root mean square, in standard deviations of the right ones."""
    import torch

    apart = torch.where(ours == right, 0.0, ours - right)  # both may be minus infinity
    return float(apart.square().mean().sqrt() / _spread(right))


def _spread(logits: torch.Tensor) -> torch.Tensor:
    return logits[logits.isfinite()].std().clamp(min=1e-6)


def _tokens(model: Any, tokenizer: Any) -> list[int]:
    """Return the text's tokens that the model has an embedding of, repeated up to `LENGTH`."""
    size = model.get_input_embeddings().weight.shape[0]
    ids = [token for token in plain(tokenizer, TEXT) if token < size] or [0]
    return (ids * LENGTH)[:LENGTH]


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
