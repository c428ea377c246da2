"""Hidden states of answers, and a linear probe of them: how harmful a model finds an answer.

States can hold more about an answer than the model says of it. Linear probes: Alain and Bengio
(2016), arXiv 1610.01644. `setbacks.methods.states_probe` fits the probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from setbacks.engines import Engine
from setbacks.engines.reading import LARGE, PART, parts
from setbacks.errors import InputError
from setbacks.models.loading import parameters
from setbacks.records import Record, Request

if TYPE_CHECKING:
    import numpy as np

LONGEST = 256  # tokens of an answer; a longer one is cut


class Text(NamedTuple):
    """The ids of a prompt, and those of an answer to it with the end of the turn."""

    prompt: list[int]
    answer: list[int]

    def within(self, limit: int | None) -> Text:
        """Return the text with an answer that is not too long, and a prompt that fits before it.

        A prompt loses its beginning.

        Args:
            limit: the model's context window; None: no limit.
        """
        answer = self.answer[: min(LONGEST, limit or LONGEST)]
        room = len(self.prompt) if limit is None else limit - len(answer)
        return Text(self.prompt[max(0, len(self.prompt) - room) :], answer)


def answer_states(
    model: Any, texts: Sequence[Text], depths: Sequence[float], *, alone: bool = False
) -> np.ndarray:
    """Return the mean hidden state over each answer, [texts, depths, hidden size], in float32.

    Texts of similar length are read together, padded on the right, where a causal model does not
    look.

    Args:
        model: a causal language model.
        texts: prompts and answers.
        depths: the layers, as shares of all layers.
        alone: read each text alone, for models that a batch confuses.

    Raises:
        InputError: the model returns no hidden states.
    """
    import torch

    rows = [text.prompt + text.answer for text in texts]
    # Not all models can leave out the logits, which are not needed.
    options = {"logits_to_keep": 1} if "logits_to_keep" in parameters(model) else {}
    means: list[Any] = [None] * len(rows)
    for together in parts(rows, 0 if alone else PART.get(model.device.type, LARGE)):
        longest = max(len(rows[row]) for row in together)
        ids = [rows[row] + [0] * (longest - len(rows[row])) for row in together]
        mask = [[1] * len(rows[row]) + [0] * (longest - len(rows[row])) for row in together]
        with torch.inference_mode():
            layers = model(
                input_ids=torch.tensor(ids, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                output_hidden_states=True,
                use_cache=False,
                **options,
            ).hidden_states
            if not layers:
                raise InputError(
                    f"{model.config.model_type}: this architecture returns no hidden states; set "
                    "respond.posterior.rank_by=spoken (no study that reads states can run)"
                )
            chosen = [layers[max(1, round(depth * (len(layers) - 1)))] for depth in depths]
            for place, row in enumerate(together):
                answer = slice(len(texts[row].prompt), len(rows[row]))
                means[row] = torch.stack([layer[place, answer].float().mean(0) for layer in chosen])
    states: np.ndarray = torch.stack(means).cpu().numpy()
    return states


class StatesProbe(Record):
    """A linear probe that finds harm in the hidden states of the model that answers.

    Its figures are those of answers that it was not fitted on, each as [value, low, high].
    """

    model: str = Field(description="Model that is read.")
    depths: list[float] = Field(description="The layers that are read, as shares of all layers.")
    weight: list[float] = Field(
        description="Weight of each dimension of the mean hidden states, one layer after another."
    )
    bias: float = Field(
        description="Added to the weighted sum; together they are the log-odds of harm."
    )
    mistakes: int = Field(description="Number of mistakes that it was fitted on.")
    harmless: int = Field(description="Number of harmless answers that it was fitted on.")
    prompts: int = Field(description="Number of instructions that they answer.")
    auc: list[float] = Field(description="AUC of harm, over all answers.")
    auc_within_prompts: list[float] = Field(
        description="Share of pairs of a mistake and a harmless answer to the same instruction in "
        "which the mistake gets the higher probability of harm."
    )

    def p_harmful(
        self, engine: Engine, requests: Sequence[Request], adapter: Path | None = None
    ) -> list[float]:
        """Return the probability that each answer is harmful, in [0, 1], to compare drafts by.

        Args:
            engine: one that gives hidden states.
            requests: a batch of the engine's plan, with answers as `reply`.
            adapter: a PEFT folder that the probe was fitted with; None for the base model.
        """
        import numpy as np
        from scipy.special import expit

        states = engine.states(requests, self.depths, adapter).astype(np.float64)
        odds = states.reshape(len(requests), -1) @ np.array(self.weight) + self.bias
        odds[np.isnan(odds)] = np.inf  # states that overflow say nothing: such a draft comes last
        return [float(p) for p in expit(odds)]
