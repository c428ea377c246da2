"""Echo: an engine that repeats the end of its prompt."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from setbacks.engines import Engine, by_length
from setbacks.prompts import Words
from setbacks.recipe import Engine as Model
from setbacks.recipe import Sampling
from setbacks.records import Completion, Request


class Options(Model):
    """Options of the echo engine."""

    echo_words: int | None = Field(
        None, ge=1, description="Number of words to repeat; null: as many as the sampling allows."
    )


class Echo(Engine):
    """Answers with the last words of the prompt."""

    Options = Options

    def __init__(self, spec: Options, words: Words | None = None) -> None:
        self.name = spec.model
        self.spec = spec

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Cut the whole work list into batches of indices."""
        return by_length([len(request.prompt) for request in requests], self.spec.batch_size)

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, adapter: Path | None = None
    ) -> list[Completion]:
        """Answer one planned batch, in order."""
        number = min(self.spec.echo_words or sampling.max_new_tokens, sampling.max_new_tokens)
        completions = []
        for request in requests:
            words = request.prompt.split()
            answer = words[-number:]
            text = " ".join([request.prefill, *answer]).strip()
            completions.append(Completion(text, "stop", len(words), len(answer)))
        return completions
