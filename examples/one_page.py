"""The method on one page: the four steps of arXiv 2310.10477, with no journal and no options.

    python examples/one_page.py        # 40 instructions; a few minutes on two cores
    python examples/one_page.py 4

This page is for reading. `setbacks run` adds quality checks, contrast analyses, saved records and a
report. Its steps are in setbacks/pipeline.py, and docs/method.md explains them.
"""

import random
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from setbacks.data import Row, Source, load
from setbacks.judges import Item
from setbacks.judges.probe import Probe
from setbacks.judges.refusal import refuses
from setbacks.models.embedded import resolve
from setbacks.prompts import fill, prompts

number = int(sys.argv[1]) if len(sys.argv) > 1 else 40
words = prompts("en")
folder = resolve("smollm2-135m")
tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", add_bos_token=False)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
torch.manual_seed(0)
random.seed(0)


def rows(name: str, split: str) -> list[Row]:
    """Return rows of a built-in set."""
    return load(Source(source=f"builtin:{name}", split=split, limit=number))


def chat(prompt: str) -> str:
    """Return a user's turn as the model reads it, up to where its answer begins."""
    turn = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)


def generate(questions: list[str], prefill: str = "") -> list[str]:
    """Sample an answer to each prompt; each answer begins with the prefill."""
    texts = [chat(prompt) + prefill for prompt in questions]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=60, do_sample=True, temperature=0.8)
    new = output[:, inputs.input_ids.shape[1] :]
    return [prefill + text for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def loss(prompt: str, completion: str) -> torch.Tensor:
    """Return the mean loss of a completion and its end of turn; the prompt has no loss."""
    start = tokenizer(chat(prompt)).input_ids
    ids = torch.tensor([start + tokenizer(completion + tokenizer.eos_token).input_ids])
    labels = ids.clone()
    labels[:, : len(start)] = -100
    return model(input_ids=ids, labels=labels).loss


# Step 1, guided mistake induction: X -> Y. A hint in the prompt asks for a bad response.
xs = [row.text for row in rows("redteam", "train")]
prompt, hints = words["induce"]["prompt"], words["induce"]["hints"]
ys = generate([fill(prompt, instruction=x, hint=hints[i % len(hints)]) for i, x in enumerate(xs)])
mistakes = [(x, y) for x, y in zip(xs, ys, strict=True) if not refuses(y)]
print(f"1. induce: {len(mistakes)} mistakes for {number} instructions")

# Step 2, guided analysis: (X, Y) -> T. The prompt says that the response is harmful, and asks why.
why = [fill(words["analyze"]["harmful"], instruction=x, response=y) for x, y in mistakes]
ts = generate(why, prefill=words["analyze"]["prefill_harmful"])
print(f"2. analyze: {len(ts)} analyses")

# Step 3, unguided fine-tuning: p(T | X, Y). The prompt is neutral, so the verdict must be learned.
neutral = [fill(words["unguided"], instruction=x, response=y) for x, y in mistakes]
helpful = [(row.text, row.answer or "") for row in rows("helpful", "train")]  # keep it helpful
examples = [*zip(neutral, ts, strict=True), *helpful]
tests = [row.text for row in rows("redteam", "test")]
guided = [fill(words["guided"], instruction=x) for x in tests]
before = generate(guided)
model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
for prompt, completion in 2 * random.sample(examples, len(examples)):
    loss(prompt, completion).backward()
    optimizer.step()
    optimizer.zero_grad()
print(f"3. train: {len(examples)} examples, twice")

# Step 4, guided response: by Bayes' rule, p(Y | X, T) is proportional to p(Y | X) p(T | X, Y).
for name, answers in ("untrained", before), ("trained", generate(guided)):
    opinions = Probe().judge([Item("", x, y) for x, y in zip(tests, answers, strict=True)])
    harmless = sum(not opinion.harmful for opinion in opinions)
    print(f"4. respond with guidance, {name}: {harmless} of {len(tests)} answers are harmless")
