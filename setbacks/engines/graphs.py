"""Steps of a model on a CUDA GPU, captured once as a graph and replayed for every token.

A step of a small model is hundreds of kernels of a few microseconds each, and the GPU waits while
Python starts one after the other. In a replayed graph they follow at once. A graph reads and
writes fixed addresses, so the cache has its full size from the start, and the number of rows is
rounded up to a power of two (docs.pytorch.org, "CUDA Graphs").
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from setbacks.engines.decoding import Running
from setbacks.engines.reading import goes_by_positions, keeps_all

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

FEWEST_ROWS = 8  # fewer are not faster
ROOM = 128  # tokens: the size of a cache is a multiple of it, so that few graphs serve all batches


class Graphs:
    """The captured steps of one model, by their rows and the size of their cache.

    Args:
        model: its weights must not move.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._steps: dict[tuple[int, int], Step] = {}
        self._storage: list[tuple[torch.Tensor, torch.Tensor]] = []  # each layer's keys and values
        self._held = 0  # tokens that the storage holds
        self._works = True

    def take_over(self, running: Running, more: int) -> Running:
        """Continue rows whose prompts are read, for `more` tokens.

        Returns:
            The same rows, replaying; or unchanged, if this model's steps cannot be captured.

        Raises:
            torch.OutOfMemoryError: the cache does not fit.
        """
        import torch

        room = -(-(running.mask.shape[1] + more) // ROOM) * ROOM
        if not (self._works and keeps_all(self.model, room)):
            return running
        if not goes_by_positions(self.model, running.mask.shape[1] + more):
            return running  # it would take free cache for text
        try:
            return Replaying(self, running, room)
        except torch.OutOfMemoryError:
            self.forget()
            raise
        except Exception as error:  # such as a model that waits for the GPU within a step
            log.info("cannot capture %s as a CUDA graph: %s", type(self.model).__name__, error)
            self.forget()
            self._works = False
            return running

    def forget(self) -> None:
        """Release what the graphs hold."""
        self._steps, self._storage, self._held = {}, [], 0

    def step(self, rows: int, room: int, like: Any) -> Step:
        """Return the step for a number of rows and a cache size; capture it on first use.

        Args:
            rows: a power of two.
            room: tokens of a row's cache.
            like: a cache whose layers have the same heads, width and number format.
        """
        if rows * room > self._held:
            self.forget()  # captured steps write into the smaller storage
            self._storage = [
                (_flat(layer.keys, rows * room), _flat(layer.values, rows * room))
                for layer in like.layers
            ]
            self._held = rows * room
        if (rows, room) not in self._steps:
            layers = [
                (_view(keys, layer.keys, rows, room), _view(values, layer.values, rows, room))
                for (keys, values), layer in zip(self._storage, like.layers, strict=True)
            ]
            self._steps[rows, room] = Step(self.model, rows, room, layers)
        return self._steps[rows, room]


class Replaying(Running):
    """Rows that continue by replay; they are the first `self.rows` rows of a step."""

    def __init__(self, graphs: Graphs, running: Running, room: int) -> None:
        self.graphs = graphs
        self.rows, length = running.mask.shape
        self.now = step = graphs.step(_rounded(self.rows), room, running.cache)
        for layer, kept in zip(running.cache.layers, step.cache.layers, strict=True):
            kept.keys[: self.rows, :, :length] = layer.keys
            kept.values[: self.rows, :, :length] = layer.values
        step.mask.fill_(step.hidden)
        step.mask[: self.rows, 0, 0, :length].masked_fill_(running.mask.bool(), step.seen)
        step.position.zero_()
        step.position[: self.rows] = running.position + 1
        step.at.fill_(length)

    def worth_dropping(self, left: int) -> bool:
        """Return whether few enough are left for a smaller step."""
        return _rounded(left) < self.now.rows

    def select(self, rows: torch.Tensor) -> None:
        """Continue these rows, [indices], in a step of their number."""
        old, self.rows = self.now, len(rows)
        self.now = new = self.graphs.step(_rounded(self.rows), old.room, old.cache)
        for layer, kept in zip(old.cache.layers, new.cache.layers, strict=True):
            kept.keys[: self.rows] = layer.keys[rows]  # a copy first: both lie in one storage
            kept.values[: self.rows] = layer.values[rows]
        new.mask[: self.rows] = old.mask[rows]
        new.position.zero_()  # of the unused rows too: they must not grow forever
        new.position[: self.rows] = old.position[rows]
        new.at.copy_(old.at)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Replay one token more of each row, [rows]; returns logits [rows, vocabulary]."""
        self.now.tokens[: self.rows, 0] = tokens
        self.now.run()
        return self.now.logits[: self.rows]


class Step:
    """One step of so many rows: where it reads and writes, and its graph.

    Args:
        model: a causal language model.
        rows: how many.
        room: tokens of each row's cache.
        layers: keys and values of each layer, [rows, heads, room, width].
    """

    logits: torch.Tensor  # [rows, vocabulary]

    def __init__(
        self, model: Any, rows: int, room: int, layers: list[tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        import torch

        device = model.device
        self.model, self.rows, self.room = model, rows, room
        self.tokens = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.position = torch.zeros(rows, 1, dtype=torch.long, device=device)
        config = model.config.get_text_config()
        # Eager attention adds its mask to the scores; the others take one of booleans.
        eager = config._attn_implementation == "eager"
        kind = model.dtype if eager else torch.bool
        self.seen: float = 0.0 if eager else True
        self.hidden: float = torch.finfo(kind).min if eager else False
        self.mask = torch.full((rows, 1, 1, room), self.hidden, dtype=kind, device=device)
        # Where in the cache the token is written. The run before the capture must write somewhere:
        # the last place is read by nobody before it is written again.
        self.at = torch.full((1,), room - 1, dtype=torch.long, device=device)
        self.first = torch.zeros(1, dtype=torch.long, device=device)
        self.cache = fixed(layers, self.at)
        kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
        # Within its window a sliding layer sees the same as a full one.
        names = (*kinds, "full_attention")
        self.masks: Any = {name: self.mask for name in names} if kinds else self.mask
        self.graph: Any = None
        if device.type == "cuda":
            self._capture()
        else:
            self._forward()  # a model that cannot take such steps fails here as well

    def run(self) -> None:
        """Read `tokens`, set `logits`, and prepare for the next tokens."""
        if self.graph is None:
            self._forward()
        else:
            self.graph.replay()

    def _capture(self) -> None:
        import torch

        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            self._forward()  # libraries allocate on their first call, which no graph may hold
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._forward()
        self.graph = graph

    def _forward(self) -> None:
        self.mask.index_fill_(3, self.at, self.seen)
        self.logits = self.model(
            input_ids=self.tokens,
            attention_mask=self.masks,
            position_ids=self.position,
            past_key_values=self.cache,
            logits_to_keep=self.first,
        ).logits[:, -1]
        self.position += 1
        self.at += 1


def fixed(layers: Sequence[tuple[torch.Tensor, torch.Tensor]], at: torch.Tensor) -> Any:
    """Return a cache whose keys and values do not move.

    Args:
        layers: keys and values of each, [rows, heads, room, width].
        at: where the next token is written, [1].
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class Fixed(DynamicLayer):  # type: ignore[misc]
        """A layer that writes into its storage, and returns all of it."""

        keys: Any
        values: Any

        def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
            super().__init__()
            self.keys, self.values = keys, values
            self.is_initialized = True

        def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
            self.keys.index_copy_(2, at, key_states)
            self.values.index_copy_(2, at, value_states)
            return self.keys, self.values

    cache = DynamicCache()
    cache.layers = [Fixed(keys, values) for keys, values in layers]
    return cache


def _rounded(rows: int) -> int:
    return max(FEWEST_ROWS, 1 << (rows - 1).bit_length())


def _flat(like: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return zeros for the tokens of a layer: unwritten places are masked, but are read."""
    return like.new_zeros(tokens * like.shape[1] * like.shape[3])


def _view(flat: torch.Tensor, like: torch.Tensor, rows: int, room: int) -> torch.Tensor:
    heads, width = like.shape[1], like.shape[3]
    return flat[: rows * heads * room * width].view(rows, heads, room, width)
