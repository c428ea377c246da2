"""Echo: an engine that repeats what it is told."""

from collections.abc import Sequence
from pathlib import Path

from setbacks.engines import Completion, Request, by_length
from setbacks.recipe import Engine, Sampling


class Echo:
    """Answers with the last words of the prompt."""

    def __init__(self, spec: Engine, language: str = "en") -> None:
        self.name = spec.model
        self.batch_size = spec.batch_size

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Cut the whole work list into batches of indices."""
        return by_length([len(request.prompt) for request in requests], self.batch_size)

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, adapter: Path | None = None
    ) -> list[Completion]:
        """Answer one planned batch, in order."""
        made = []
        for request in requests:
            words = request.prompt.split()
            said = words[-sampling.max_new_tokens :]
            text = " ".join([request.prefill, *said]).strip()
            made.append(Completion(text, "stop", prompt_tokens=len(words), tokens=len(said)))
        return made
