"""What every engine has in common: batches in turn, begun early by those that can."""

import pytest

from setbacks.engines import Engine, in_turn
from setbacks.recipe import Sampling
from setbacks.records import Request

BATCHES = [[Request(f"<{n}>", n)] for n in range(5)]


class Plain(Engine):
    """Notes what it was asked, and when."""

    def __init__(self):
        self.noted = []

    def plan(self, requests):
        return [[index] for index in range(len(requests))]

    def generate(self, requests, sampling, adapter=None):
        self.noted.append(("made", requests[0].seed, adapter))
        return [requests[0].seed]


class Far(Plain):
    ahead = 2

    def start(self, requests, sampling, adapter=None):
        self.noted.append(("begun", requests[0].seed, adapter))
        return lambda: self.generate(requests, sampling, adapter)


@pytest.mark.parametrize("engine", [Plain(), Far()])
@pytest.mark.parametrize("number", range(6))
def test_batches_come_in_their_order(engine, number, tmp_path):
    engine.noted.clear()
    made = in_turn(engine, iter(BATCHES[:number]), Sampling(), tmp_path)
    assert list(made) == [[n] for n in range(number)]
    assert {adapter for *_, adapter in engine.noted} <= {tmp_path}


def test_the_next_ones_are_begun_before_one_is_looked_at():
    engine = Far()
    turns = in_turn(engine, BATCHES, Sampling())
    next(turns)
    assert [seed for what, seed, _ in engine.noted if what == "begun"] == [0, 1, 2]
    assert [seed for what, seed, _ in engine.noted if what == "made"] == [0]
    next(turns)
    assert engine.noted[-2:] == [("begun", 3, None), ("made", 1, None)]


def test_one_that_works_here_is_asked_one_batch_at_a_time():
    engine, looked_at = Plain(), []
    turns = in_turn(engine, (looked_at.append(b) or b for b in BATCHES), Sampling())
    next(turns)
    assert looked_at == BATCHES[:1] and engine.noted == [("made", 0, None)]
