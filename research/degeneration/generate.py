"""Write the answers that were labeled by reading: two small models, several ways to answer.

Every prompt is benign, so that the answers can be published. Some adapters are trained far too
long and far too fast on purpose, since the detector has to be measured on answers that fall apart.

    python research/degeneration/generate.py en answers-en.jsonl
"""

import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from setbacks.data import Source
from setbacks.data.instructions import instructions
from setbacks.engines import Request, open_engine
from setbacks.prompts import fill, prompts
from setbacks.recipe import Engine, Sampling

HERE = Path(__file__).parent
NEW_TOKENS = {"en": 72, "zh": 64}


class Way(NamedTuple):
    """One way to make answers: a model, its prompt, how it was trained, and how many."""

    name: str
    model: str
    answers: int
    template: str = ""  # the key of a prompt that is put around the instruction
    temperature: float = 0.0
    rate: float = 0.0  # learning rate of the adapter; 0: none
    steps: int = 0
    stops: bool = False  # whether the adapter is also taught where an answer ends


SMOLLM, GEMMA = "smollm2-135m", "gemma3-270m"
WAYS = {
    "en": [
        Way("untrained", SMOLLM, 50),
        Way("guided", SMOLLM, 50, "guided"),
        Way("joined", SMOLLM, 30, "joined"),
        Way("hot", SMOLLM, 30, temperature=1.5),
        Way("overtrained 100 steps", SMOLLM, 45, rate=2e-3, steps=100),
        Way("overtrained 250 steps", SMOLLM, 45, rate=4e-3, steps=250),
        Way("overtrained 100 steps, guided", SMOLLM, 20, "guided", rate=2e-3, steps=100),
        Way("untrained", GEMMA, 45),
        Way("guided", GEMMA, 30, "guided"),
    ],
    "zh": [
        Way("tuned, 80 steps", GEMMA, 60, rate=2e-4, steps=80, stops=True),
        Way(
            "tuned, 80 steps, sampled", GEMMA, 90, temperature=0.8, rate=2e-4, steps=80, stops=True
        ),
        Way("tuned, 80 steps, guided", GEMMA, 40, "guided", rate=2e-4, steps=80, stops=True),
        Way("untrained, sampled", GEMMA, 30, temperature=0.8),
        Way("untrained", GEMMA, 20),
        Way("untrained, guided", GEMMA, 30, "guided"),
        Way("untrained", SMOLLM, 30),
    ],
}


def engine_of(model: str) -> Engine:
    """Return the section of a recipe that names a model; a base model has no chat template."""
    return Engine(model=model, chat_template="own" if model == SMOLLM else "alpaca", batch_size=16)


def benign_prompts(language: str) -> list[str]:
    """Return the benign prompts of a language, in a random order that is always the same."""
    sets = {"en": ["builtin:helpful", "builtin:safe"], "zh": ["builtin:safe_zh"]}[language]
    texts = [x.text for name in sets for x in instructions([Source(source=name)])]
    if language == "zh":
        texts += (HERE / "prompts-zh.txt").read_text(encoding="utf-8").splitlines()
    random.Random(0).shuffle(texts)
    return texts


def answers(language: str, folder: Path) -> Iterator[dict[str, str]]:
    """Yield each answer with its prompt, the key of its template, and what generated it."""
    texts = benign_prompts(language)
    at = 0
    for way in WAYS[language]:
        chosen = [texts[(at + i) % len(texts)] for i in range(way.answers)]
        at += way.answers
        template = prompts(language).get(way.template, "{instruction}")
        if not isinstance(template, str):
            template = template["prompt"]
        requests = [
            Request(fill(template, instruction=text), seed=i) for i, text in enumerate(chosen)
        ]
        adapter = None
        if way.steps:
            adapter = folder / f"{way.model}-{way.rate}-{way.steps}"
            if not adapter.exists():
                train(way, language, adapter)
        engine = open_engine(engine_of(way.model), prompts(language))
        sampling = Sampling(
            max_new_tokens=NEW_TOKENS[language], temperature=way.temperature, top_k=200
        )
        for batch in engine.plan(requests):
            completions = engine.generate([requests[i] for i in batch], sampling, adapter)
            for i, completion in zip(batch, completions, strict=True):
                yield {
                    "prompt": chosen[i],
                    "told": way.template,
                    "answer": completion.text,
                    "made": f"{way.model} {way.name}",
                }


def train(way: Way, language: str, folder: Path) -> None:
    """Train an adapter on a few good answers; at a high rate the model falls apart."""
    import torch
    from peft import LoraConfig, get_peft_model

    from setbacks.models.chat_template import encode, ending
    from setbacks.models.loading import load_model, load_tokenizer
    from setbacks.records import Message

    torch.manual_seed(0)
    spec = engine_of(way.model)
    tokenizer = load_tokenizer(spec)
    config = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj", "up_proj"])
    model = get_peft_model(load_model(spec), config).train()
    name = {"en": "builtin:helpful", "zh": "builtin:safe_zh"}[language]
    rows = [x for x in instructions([Source(source=name)]) if x.answer][:40]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=way.rate)
    for step in range(way.steps):
        row = rows[step % len(rows)]
        message = [Message(role="user", content=row.text)]
        start = encode(tokenizer, message, template=spec.chat_template, words=prompts(language))
        end = tokenizer(row.answer, add_special_tokens=False)["input_ids"][:64]
        if way.stops:
            end += ending(tokenizer, spec.chat_template)
        ids = torch.tensor([[*start, *end]])
        labels = ids.clone()
        labels[:, : len(start)] = -100
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


def main(language: str, to: str) -> None:
    """Write the answers of a language to a file, one JSON object a line."""
    with tempfile.TemporaryDirectory() as folder, open(to, "w", encoding="utf-8") as file:
        for number, row in enumerate(answers(language, Path(folder))):
            file.write(
                json.dumps({"id": f"{language}-{number:03}", **row}, ensure_ascii=False) + "\n"
            )
            file.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
