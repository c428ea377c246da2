"""Generation on real instructions, side by side: a pipeline, `model.generate`, our engine, others.

    python benchmarks/generate.py                          # the built-in sets
    python benchmarks/generate.py --data ../shared/data    # with longer, more uneven ones
    python benchmarks/generate.py --other vllm:bfloat16=PYTHON:FOLDER --other ctranslate2:int8=...
                                  # other programs, each with its own Python
                                  # (generate_elsewhere.py)

All contestants answer the same instructions greedily, in the same number format, until the model
stops or the token limit is reached. `model.generate` gets batches of similar length, too. The
pipeline, with one instruction per call as most people write it, gets every sixteenth instruction.
After each batch, the contestant with the least progress continues, so that a slow moment of the
machine affects all alike. On a CPU, ratios are of CPU seconds, which other processes affect least.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from setbacks.data import Source, load
from setbacks.engines import by_length
from setbacks.engines.local import Local
from setbacks.models.chat_template import stop_tokens
from setbacks.models.hardware import device, dtype
from setbacks.models.loading import load_model, load_tokenizer
from setbacks.recipe import Engine, Sampling
from setbacks.records import Request

BUILTIN = ("builtin:helpful", "builtin:safe", "builtin:redteam")
MORE = ("alpaca/alpaca_999.json", "self-instruct/user_oriented_instructions.jsonl")


ADAPTED = ("generate, PeftModel", "setbacks, adapter")


class Done(NamedTuple):
    """One batch: how many were answered, the tokens read and written, and the texts."""

    answers: int
    read: int
    written: int
    texts: list[str]


class Contestant:
    """One way to generate, and what it has used so far."""

    def __init__(self, name: str, batch: int, share: float, work: Iterator[Done]) -> None:
        self.name, self.batch, self.share, self.work = name, batch, share, work
        self.answers = self.read = self.written = 0
        self.cpu = self.wall = 0.0
        self.texts: list[str] = []
        self.ended = False
        self.child: subprocess.Popen[str] | None = None  # where it is another program

    def _cpu(self) -> float:
        """CPU seconds so far, of this process and of those under it that are this one's."""
        used = time.process_time()
        if self.child is not None:
            root = psutil.Process(self.child.pid)
            for process in [root, *root.children(recursive=True)]:
                used += sum(process.cpu_times()[:2])
        return used

    def step(self) -> None:
        """Answer one more batch."""
        cpu, wall = self._cpu(), time.perf_counter()
        done = next(self.work, None)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.cpu += self._cpu() - cpu
        self.wall += time.perf_counter() - wall
        if done is None:
            self.ended = True
            return
        self.answers += done.answers
        self.read += done.read
        self.written += done.written
        self.texts += done.texts


def main() -> None:
    """Run all of them in turns, print one table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", type=Path, help="a folder of public sets, as shared/data is")
    parser.add_argument("--limit", type=int, default=256, help="instructions")
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--batch-size", type=int, default=Engine().batch_size, help="ours")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--other", action="append", default=[], help="NAME:FORM=PYTHON:MODEL")
    parser.add_argument("--adapter", type=Path, help="a PEFT folder; by default one is made up")
    parser.add_argument("--bare", action="store_true", help="without those that have an adapter")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/generate.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    spec = Engine(model=arguments.model, batch_size=arguments.batch_size)
    texts = instructions(arguments.data, arguments.limit)
    with tempfile.TemporaryDirectory() as place:
        adapter = None
        if not arguments.bare:
            adapter = arguments.adapter or made_up(spec, Path(place, "adapter"))
        runners = contestants(spec, texts, arguments.batches, arguments.new_tokens, adapter)
        new_tokens = arguments.new_tokens
        runners += [elsewhere(spec, texts, new_tokens, other) for other in arguments.other]
        before = peak(spec)
        while waiting := [runner for runner in runners if not runner.ended]:
            min(waiting, key=lambda runner: runner.answers / (len(texts) * runner.share)).step()
        flops = max(before, peak(spec))
        for runner in runners:
            if runner.child is not None and runner.child.stdin:
                runner.child.stdin.close()
                runner.child.wait()
    place_of = device(spec)
    lengths = sorted(len(load_tokenizer(spec)(text)["input_ids"]) for text in texts)
    result = {
        "model": arguments.model,
        "dtype": str(dtype(spec, place_of)).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if place_of.startswith("cuda") else place_of,
        "threads": arguments.threads,
        "instructions": len(texts),
        "instruction_tokens": [lengths[0], lengths[len(lengths) // 2], lengths[-1]],
        "max_new_tokens": arguments.new_tokens,
        "peak_gflops": round(flops / 1e9, 1),
        "contestants": table(runners, flops, load_model(spec).num_parameters(), place_of),
        "same_text": same(runners),
    }
    show(result)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def instructions(data: Path | None, limit: int) -> list[str]:
    """Return instructions of every kind and length, in an order that is always the same."""
    sets = [Source(source=name) for name in BUILTIN]
    if data is not None:
        sets += [Source(source=str(data / name)) for name in MORE]
    # A share of each set, as even as their sizes let it be, so that no set makes up the whole.
    columns = [[row.text for row in load(s.model_copy(update={"shuffle": 0}))] for s in sets]
    longest = max(map(len, columns))
    mixed = [column[n] for n in range(longest) for column in columns if n < len(column)]
    return list(dict.fromkeys(mixed))[:limit]


def made_up(spec: Engine, folder: Path) -> Path:
    """Save an adapter of the usual size that hardly changes what the model says, as a real one."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(load_model(spec), LoraConfig(r=16, target_modules="all-linear"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=1e-3)
    model.save_pretrained(folder)
    return folder


def contestants(
    spec: Engine,
    texts: Sequence[str],
    batches: Sequence[int],
    new_tokens: int,
    adapter: Path | None,
) -> list[Contestant]:
    """Set up everyone, warmed up; a batch larger than the whole work would be the same again."""
    from peft import PeftModel

    plain, tokenizer = load_model(spec).eval(), load_tokenizer(spec)
    few = sorted(texts, key=len)[::16]
    runners = [Contestant("pipeline", 1, 1 / 16, piped(plain, tokenizer, few, new_tokens))]
    sizes = [size for size in batches if size < 2 * len(texts)]
    for size in sizes:
        work = generated(plain, tokenizer, texts, size, new_tokens)
        runners.append(Contestant("generate", size, 1, work))
    runners.append(Contestant("setbacks", spec.batch_size, 1, ours(spec, texts, new_tokens)))
    if device(spec).startswith("cuda"):
        bare = spec.model_copy(update={"cuda_graphs": False})
        work = ours(bare, texts, new_tokens)
        runners.append(Contestant("setbacks, no graphs", spec.batch_size, 1, work))
    if adapter is not None:
        beside = PeftModel.from_pretrained(load_model(spec), str(adapter)).eval()
        size = min(spec.batch_size, max(sizes))
        work = generated(beside, tokenizer, texts, size, new_tokens)
        runners.append(Contestant("generate, PeftModel", size, 1, work))
        work = ours(spec, texts, new_tokens, adapter)
        runners.append(Contestant("setbacks, adapter", spec.batch_size, 1, work))
    for one in runners:  # the first yield is the end of the warming up
        next(one.work)
    return runners


def piped(model: Any, tokenizer: Any, texts: Sequence[str], new_tokens: int) -> Iterator[Done]:
    """What people write first: a pipeline, called in a loop."""
    from transformers import GenerationConfig, pipeline

    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    stops = stop_tokens(model, tokenizer)

    def answer(text: str, most: int) -> Done:
        settings = GenerationConfig(do_sample=False, max_new_tokens=most)
        chat = [{"role": "user", "content": text}]
        (out,) = pipe(chat, generation_config=settings, return_tensors=True)
        read = len(prompt(tokenizer, text))
        new = upto(out["generated_token_ids"][read:], stops)
        return Done(1, read, len(new), [tokenizer.decode(new, skip_special_tokens=True).strip()])

    yield answer(texts[0], 2)
    for text in texts:
        yield answer(text, new_tokens)


def generated(
    model: Any, tokenizer: Any, texts: Sequence[str], size: int, new_tokens: int
) -> Iterator[Done]:
    """`model.generate` on padded batches of similar length."""
    stops = stop_tokens(model, tokenizer)
    tokenizer.padding_side = "left"

    def answer(batch: Sequence[str], most: int) -> Done:
        inputs = tokenizer.pad(
            {"input_ids": [prompt(tokenizer, t) for t in batch]}, return_tensors="pt"
        )
        inputs = inputs.to(model.device)
        with torch.inference_mode():
            out = model.generate(**inputs, do_sample=False, max_new_tokens=most)
        new = [upto(row, stops) for row in out[:, inputs["input_ids"].shape[1] :].tolist()]
        texts = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in new]
        return Done(len(batch), int(inputs["attention_mask"].sum()), sum(map(len, new)), texts)

    yield answer(texts[:2], 2)
    for batch in by_length([len(text) for text in texts], size):
        yield answer([texts[index] for index in batch], new_tokens)


def ours(
    spec: Engine, texts: Sequence[str], new_tokens: int, adapter: Path | None = None
) -> Iterator[Done]:
    """The local engine, as a run uses it."""
    engine = Local(spec)
    requests = [Request(text, seed=0) for text in texts]

    def answer(batch: Sequence[Request], most: int) -> Done:
        completions = engine.generate(batch, Sampling(max_new_tokens=most), adapter)
        read = sum(completion.prompt_tokens for completion in completions)
        written = sum(completion.tokens for completion in completions)
        texts = [completion.text for completion in completions]
        return Done(len(completions), read, written, texts)

    yield answer(requests[:2], 2)
    for batch in engine.plan(requests):
        yield answer([requests[index] for index in batch], new_tokens)


def elsewhere(spec: Engine, texts: Sequence[str], new_tokens: int, python: str) -> Contestant:
    """Another program, given the same ids in batches of similar length."""
    name, _, where = python.partition("=")
    program, _, model = where.partition(":")
    library, _, form = name.partition(":")
    script = Path(__file__).with_name("generate_elsewhere.py")
    child = subprocess.Popen(
        [program, str(script), library, model, form],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    plain, tokenizer = load_model(spec), load_tokenizer(spec)
    stops = sorted(stop_tokens(plain, tokenizer))

    def answer(batch: Sequence[str], most: int) -> Done:
        prompts = [prompt(tokenizer, text) for text in batch]
        assert child.stdin and child.stdout
        print(
            json.dumps({"prompts": prompts, "new_tokens": most, "stops": stops}),
            file=child.stdin,
            flush=True,
        )
        new = [upto(row, set(stops)) for row in json.loads(child.stdout.readline())]
        answers = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in new]
        return Done(len(batch), sum(map(len, prompts)), sum(map(len, new)), answers)

    def work() -> Iterator[Done]:
        yield answer(texts[:2], 2)
        for batch in by_length([len(text) for text in texts], spec.batch_size):
            yield answer([texts[index] for index in batch], new_tokens)

    contestant = Contestant(f"{library} {form}", spec.batch_size, 1, work())
    contestant.child = child
    next(contestant.work)
    return contestant


def rounds(*makers: Callable[[], Iterator[Done]], times: int) -> list[tuple[float, ...]]:
    """Run several in turns, warmed up; return the CPU seconds of each, a tuple a round."""
    spent = []
    for _ in range(times):
        used = []
        for make in makers:
            work = make()
            next(work)
            start = time.process_time()
            for _ in work:
                pass
            used.append(time.process_time() - start)
        spent.append(tuple(used))
    return spent


def prompt(tokenizer: Any, text: str) -> list[int]:
    """The ids of an instruction, by the tokenizer's own chat template."""
    chat = [{"role": "user", "content": text}]
    ids: list[int] = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_dict=False
    )
    return ids


def upto(tokens: Sequence[int], stops: set[int]) -> list[int]:
    """The tokens before the first that ends the turn: padding and stops are no work done."""
    end = next((n for n, token in enumerate(tokens) if token in stops), len(tokens))
    return list(tokens[:end])


def peak(spec: Engine) -> float:
    """The rate of a large matrix product in the model's format, FLOP per second (see `seconds`)."""
    place = device(spec)
    n = 2048 if place == "cpu" else 8192
    one, other = (torch.randn(n, n, dtype=dtype(spec, place), device=place) for _ in range(2))
    clock = time.process_time if place == "cpu" else time.perf_counter
    best = 0.0
    for _ in range(5):
        start = clock()
        (one @ other)[0, 0].item()
        best = max(best, 2 * n**3 / (clock() - start))
    return best


def table(
    runners: Sequence[Contestant], flops: float, parameters: int, place: str
) -> list[dict[str, object]]:
    """Return a row for each; the ratio is to the best plain `generate`, or to the PeftModel's."""

    def seconds(runner: Contestant) -> float:
        return runner.cpu if place == "cpu" else runner.wall

    def speed(runner: Contestant) -> float:
        return runner.written / seconds(runner)

    def bar(runner: Contestant) -> float:
        other = "generate, PeftModel" if runner.name in ADAPTED else "generate"
        return max(speed(one) for one in runners if one.name == other)

    return [
        {
            "name": runner.name,
            "batch": runner.batch,
            "answers": runner.answers,
            "tokens": runner.written,
            "wall_seconds": round(runner.wall, 1),
            "cpu_seconds": round(runner.cpu, 1),
            "tokens_per_second": round(runner.written / runner.wall, 1),
            "tokens_per_cpu_second": round(runner.written / runner.cpu, 1),
            "ratio": round(speed(runner) / bar(runner), 2),
            # Two operations a parameter and token, as if each token of each prompt were read. Who
            # reads what prompts share once does less; attention comes on top, and is left out.
            "of_peak": round(
                2 * parameters * (runner.read + runner.written) / seconds(runner) / flops, 3
            ),
        }
        for runner in runners
    ]


def same(runners: Sequence[Contestant]) -> dict[str, float]:
    """Return the share of texts that are those of `generate`, at any batch size, word for word."""
    plain = {text for runner in runners if runner.name == "generate" for text in runner.texts}
    beside = {t for runner in runners if runner.name == "generate, PeftModel" for t in runner.texts}
    return {
        runner.name: round(sum(t in known for t in runner.texts) / len(runner.texts), 3)
        for runner in runners
        for name, known in (("setbacks", plain), ("setbacks, adapter", beside))
        if runner.name == name
    }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    names = ["name", "batch", "answers", "tokens", "tokens_per_second", "tokens_per_cpu_second"]
    names += ["ratio", "of_peak"]
    print("| " + " | ".join(names) + " |\n|" + " --- |" * len(names))
    for row in result["contestants"]:
        print("| " + " | ".join(str(row[name]) for name in names) + " |")
    print("the same text as generate:", result["same_text"])


if __name__ == "__main__":
    main()
