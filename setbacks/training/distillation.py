"""Per-token distillation: the student learns the teacher's next-token distributions.

The teacher is the untrained model: the same weights without what is trained. It reads the same
completion after its own prompt, which may contain more. The student is to give each next token the
same probability without that prompt. The divergence is the forward KL or the generalized
Jensen-Shannon divergence of GKD (arXiv 2306.13649). Both are computed on the teacher's `top_k`
tokens and one more event, "any other token". So the probabilities of each model sum to one, the
divergence is zero only where these probabilities are equal, and with all tokens it is the
divergence of the whole distributions.

Not every token of a completion is the teacher's choice. The opening of a correction is given to it,
because it would rarely begin like that; and a correction that was cut ends where the teacher would
go on. These tokens are learned as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from setbacks.models.adapters import attach_frozen
from setbacks.models.chat_template import ending
from setbacks.recipe import Recipe
from setbacks.records import Example
from setbacks.training import padded, prompt_ids, tokenize, tokens_of_opening
from setbacks.training.predictions import predictions

FROZEN = "teacher"  # name of a second adapter, in checkpoints
# A model's other tokens have at least this probability: what is left of 1 has no more digits.
LEAST = 1e-6


class Divergence(NamedTuple):
    """How far the student is from the teacher.

    Args:
        beta: 0 for the forward KL divergence; between 0 and 1 for the generalized JSD, as the
            weight of the teacher in the mixture.
        top_k: number of the teacher's most probable tokens to compare; None for all.
    """

    beta: float
    top_k: int | None


class Targets(NamedTuple):
    """What the teacher says about each token that is learned from it.

    Args:
        tokens: [tokens, top_k], the ids of its most probable tokens.
        log_probs: as `log_probabilities` returns them.
        beta: of the divergence.
    """

    tokens: Any
    log_probs: Any
    beta: float

    def divergence(self, logits: Any) -> Any:
        """Return the student's divergence from the teacher at each token, in nats.

        Args:
            logits: [tokens, vocabulary], of the student.
        """
        return jsd(log_probabilities(logits, self.tokens), self.log_probs, self.beta)


def log_probabilities(logits: Any, tokens: Any) -> Any:
    """Return the log-probabilities of some tokens, and last that of all others together.

    Args:
        logits: [rows, vocabulary].
        tokens: [rows, number], different ids; if they are the vocabulary, there are no others.
    """
    import torch

    chosen = logits.gather(1, tokens) - logits.logsumexp(dim=1, keepdim=True)
    if tokens.shape[1] == logits.shape[1]:
        return chosen
    together = chosen.logsumexp(dim=1, keepdim=True).clamp(max=-LEAST)
    return torch.cat([chosen, torch.log(-torch.expm1(together))], dim=1)


def jsd(student: Any, teacher: Any, beta: float) -> Any:
    """Return the generalized Jensen-Shannon divergence of each row, in nats.

    With P the teacher, Q the student and M = beta P + (1 - beta) Q, it is beta KL(P || M) +
    (1 - beta) KL(Q || M); with `beta` 0, the forward KL divergence KL(P || Q). TRL has the same
    function in its experimental part, which may change between versions.

    Args:
        student: log-probabilities, [rows, events].
        teacher: likewise.
        beta: from 0, less than 1.
    """
    import math

    import torch

    kl = partial(torch.nn.functional.kl_div, reduction="none", log_target=True)  # (Q, P): KL(P||Q)
    if beta == 0:
        return kl(student, teacher).sum(dim=1)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return (beta * kl(mixture, teacher) + (1 - beta) * kl(mixture, student)).sum(dim=1)


def teacher_row(
    tokenizer: Any, example: Example, row: Mapping[str, Any], recipe: Recipe
) -> dict[str, Any]:
    """Return what a row of `example_row` needs besides to be learned from a teacher.

    Args:
        tokenizer: a transformers tokenizer.
        example: the example, with or without a teacher.
        row: of the example.
        recipe: sets the template.

    Returns:
        `taught`, true at the tokens that are learned from the teacher; `teacher_ids`, its prompt
        and the completion; and `teacher_taught`, the same tokens in it. The last two are empty if
        the teacher has nothing to say.
    """
    ids, teacher = row["input_ids"], example.teacher
    alone = {"taught": [False] * len(ids), "teacher_ids": [], "teacher_taught": []}
    if teacher is None:
        return alone
    prompt, whole = tokenize(tokenizer, example.prompt, example.completion, recipe)
    first = tokens_of_opening(tokenizer, example.prompt, teacher.opening, recipe, whole)
    last = len(whole)
    if teacher.cut:
        last -= len(ending(tokenizer, recipe.model.chat_template))
    completion = ids[len(prompt) :]
    taught = [first <= i < last for i in range(len(completion))]
    if not any(taught):
        return alone
    asked = prompt_ids(tokenizer, teacher.prompt, recipe)
    return {
        "taught": [False] * len(prompt) + taught,
        "teacher_ids": asked + completion,
        "teacher_taught": [False] * len(asked) + taught,
    }


def teacher_batch(rows: Sequence[Mapping[str, Any]], pad: int) -> dict[str, Any]:
    """Return what a batch needs besides: `taught`, and the `teacher`'s own inputs if it has any.

    Args:
        rows: with the columns of `teacher_row`.
        pad: the id of a token to pad with.
    """
    asked = [row for row in rows if row["teacher_ids"]]
    batch: dict[str, Any] = {"taught": padded([row["taught"] for row in rows], False)}
    if asked:
        batch["teacher"] = {
            "input_ids": padded([row["teacher_ids"] for row in asked], pad),
            "attention_mask": padded([[1] * len(row["teacher_ids"]) for row in asked], 0),
            "taught": padded([row["teacher_taught"] for row in asked], False),
        }
    return batch


class Teacher:
    """The untrained model of a run, in the model that is trained.

    Args:
        model: the PEFT model to train. If the recipe aligns a model with an adapter, it gets a
            second, frozen copy of that adapter.
        recipe: names that adapter.
        divergence: how its distributions are compared.
    """

    def __init__(self, model: Any, recipe: Recipe, divergence: Divergence) -> None:
        self._adapter = None if recipe.current is None else FROZEN
        self._divergence = divergence
        if recipe.current is not None:
            attach_frozen(model, recipe.current, FROZEN)

    def targets(self, model: Any, input_ids: Any, attention_mask: Any, taught: Any) -> Targets:
        """Return the teacher's distributions of the tokens that are learned from it.

        Args:
            model: the PEFT model, not wrapped: not every process has a token to learn.
            input_ids: [batch, length], the teacher's prompts and the completions.
            attention_mask: [batch, length].
            taught: [batch, length], true at the tokens that are learned.
        """
        import torch
        from trl.trainer.utils import use_adapter

        training = model.training
        model.eval()  # the teacher has no dropout
        try:
            with torch.no_grad(), use_adapter(model, self._adapter):
                logits = predictions(model, input_ids, attention_mask, taught)
        finally:
            model.train(training)
        top_k = min(self._divergence.top_k or logits.shape[1], logits.shape[1])
        tokens = logits.topk(top_k, dim=1).indices
        return Targets(tokens, log_probabilities(logits, tokens), self._divergence.beta)
