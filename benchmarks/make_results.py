"""Write benchmarks/RESULTS.md and research/RESULTS.md from the JSON in their results/ folders.

python benchmarks/make_results.py
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def table(heads: list[str], rows: list[list[object]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "|" + " --- |" * len(heads)
    for row in rows:
        yield "| " + " | ".join(str(cell) for cell in row) + " |"


def interval(triple: list[float]) -> str:
    return "{:.2f} ({:.2f}-{:.2f})".format(*triple)


def judge_agreement(data: dict[str, Any]) -> Iterator[str]:
    names = ["auc", "kappa", "sensitivity", "specificity", "ece"]
    rows = [
        [e["judge"], e["task"], e["source"], f"{e['n']} ({e['n_positive']})"]
        + [interval(e[name]) for name in names]
        + [e["unsure"], e["kappa_decided"]]
        for e in data["sources"]
    ]
    yield from table(
        ["judge", "task", "source", "n (yes)", *names, "unsure", "kappa without"], rows
    )


def fit_probe(data: dict[str, Any]) -> Iterator[str]:
    yield f"Version {data['version']}: a LoRA adapter, trained in {len(data['epochs'])} epochs:"
    for epoch in data["epochs"]:
        steps, seconds = epoch["steps"], epoch["seconds"]
        yield f"{epoch['rows']:,} answers in {steps} steps ({seconds:,} s on a busy core)."
    yield "AUC on questions that were left out of the training:"
    yield ""
    left_out = data["left_out"]
    names = list(dict.fromkeys(name for aucs in left_out.values() for name in aucs))
    rows = []
    for name in names:
        found = [aucs.get(name) for aucs in left_out.values()]
        n = next(one["n"] for one in found if one)
        rows.append([name, n, *(one["auc"] if one else "-" for one in found)])
    yield from table(["harmful", "n", *left_out], rows)
    yield ""
    yield "The other heads, fitted on the adapted states; AUC by cross-validation over questions."
    yield ""
    strengths = list(data["refused"]["auc_by_c"] | data["helpful"]["auc_by_c"])
    yield from table(
        ["head", *(f"C = {c}" for c in strengths)],
        [
            [task, *(data[task]["auc_by_c"].get(c, "-") for c in strengths)]
            for task in ("refused", "helpful")
        ],
    )


def probe_candidates(data: dict[str, Any]) -> Iterator[str]:
    yield "AUC, and kappa at a threshold of 0.5. Fitted on labels with permissive licenses, or on"
    yield "all labels except those of the question being judged."
    yield ""
    sources = list(data["counts"])
    rows = [
        [e["reads"], e["how"], e["labels"]]
        + [
            f"{interval(e['sources'][name]['auc'])}, {e['sources'][name]['kappa'][0]:.2f}"
            for name in sources
        ]
        for e in data["candidates"]
    ]
    yield from table(["reads", "fitted by", "labels", *sources], rows)
    yield ""
    yield (
        f"Why the shipped head misses the goal of AUC {data['goal']['auc']:.2f} and kappa "
        f"{data['goal']['kappa']:.2f}. The last two columns apply to any judge whose scores are "
        "normally distributed with equal variances, at its best threshold."
    )
    yield ""
    shipped = data["candidates"][0]["sources"]
    held_back: list[list[object]] = [
        [name, f"{one['harmful']} of {data['counts'][name][0]}"]
        + [f"{one['said_rightly']} of {one['said_harmful']}"]
        + [f"{shipped[name]['kappa'][0]:.2f}", f"{shipped[name]['kappa_best_cut']:.2f}"]
        + [f"{one['share_refused']:.2f}", f"{one['auc_not_refused']:.2f}"]
        + [f"{one['kappa_at_goal_auc']:.2f}", f"{one['auc_for_goal_kappa']:.3f}"]
        for name, one in data["limits"].items()
    ]
    heads = ["source", "harmful", "judged harmful, correctly", "kappa", "kappa, best threshold"]
    heads += ["share of refusals", "AUC on the rest", "highest kappa at the goal's AUC"]
    yield from table([*heads, "AUC needed for the goal's kappa"], held_back)


def probe_variants(data: dict[str, Any]) -> Iterator[str]:
    fitted = sum(data["fitted_on"].values())
    yield f"Heads on harm, fitted on {fitted:,} answers. *Left out*: the mean AUC over the training"
    yield f"sources, on {data['left_out']:,} answers to other questions. The sets were not fitted"
    yield "(XSTest: other questions of it were): AUC, and the difference from version 3, each with"
    yield "its 95 % interval."
    yield ""
    sets = data["measured_on"]
    rows = [
        [e["variant"], f"{e['mean']:.3f}"]
        + [
            "{:.3f} ({:.3f}-{:.3f}), {:+.3f} ({:+.3f} to {:+.3f})".format(
                *e["sets"][name]["auc"], *e["sets"][name]["more"]
            )
            for name in sets
        ]
        for e in data["variants"]
    ]
    heads = [f"{name} ({n:,})" for name, n in sets.items()]
    yield from table(["variant", "left out", *heads], rows)


def crash(data: dict[str, Any]) -> Iterator[str]:
    rows = []
    for one in data.values():
        met = Counter(kill["stage"].split()[-1] for kill in one["kills"])
        stages = ", ".join(f"{stage} {number}" for stage, number in met.items())
        files = sum(end["files"] for end in one["ends"])
        differ = sum(len(end["different"]) for end in one["ends"])
        ends = len(one["ends"])
        rows.append([f"`{one['command']}`", len(one["kills"]), stages, ends, files, differ])
    heads = ["command", "kills", "killed during", "complete runs", "files compared", "differ"]
    yield from table(heads, rows)


def resume(data: dict[str, Any]) -> Iterator[str]:
    row: list[object] = [f"{data['records']:,}", f"{data['megabytes']} MB", data["seconds"]]
    yield from table(["records", "file", "seconds until work resumes"], [row])


def generate(data: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{data['model']}, {data['dtype']}, {data['device']}, {data['threads']} thread(s); "
        f"{data['instructions']} instructions of {data['instruction_tokens'][0]} to "
        f"{data['instruction_tokens'][2]} tokens, at most {data['max_new_tokens']} new tokens. "
        f"Peak matrix product: {data['peak_gflops']:.0f} GFLOP/s. "
        "The ratio is relative to the best plain `generate`."
    )
    yield ""
    names = ["name", "batch", "answers", "tokens", "tokens_per_cpu_second", "ratio", "of_peak"]
    yield from table(names, [[row[name] for name in names] for row in data["contestants"]])


def overhead(data: dict[str, Any]) -> Iterator[str]:
    yield "CPU time plus fsync time per record, with one fsync per batch of 128, and the memory of"
    yield "the process. Load is the machine's load; it was also running other work."
    yield ""
    names = ["records", "microseconds", "of_it_fsync", "read_back", "again"]
    names += ["rest_mb", "peak_mb", "kb_a_record", "load"]
    heads = [
        "records",
        "us per record",
        "of which fsync",
        "read by the next stage, us",
        "same command again, us",
    ]
    heads += ["memory before, MB", "peak, MB", "kB per record", "load"]
    yield from table(heads, [[row[name] for name in names] for row in data["setbacks"]])
    if not data.get("distilabel"):
        return
    yield ""
    yield "The same prompts and answers with distilabel. It starts a process for each step, passes"
    yield "batches through queues, and also stores the messages behind each answer. It writes a"
    yield "Parquet file per batch, without fsync, and rewrites all of them at the end. setbacks"
    yield "drops duplicate prompts, plans by length, derives ids from content, and writes and"
    yield "fsyncs each batch before it requests the next."
    yield ""
    ours = {row["records"]: row for row in data["setbacks"]}
    rows: list[list[object]] = []
    for other in data["distilabel"]:
        own = ours[other["records"]]
        cpu = own["microseconds"] - own["of_it_fsync"]
        rows += [
            ["setbacks", own["records"], f"{cpu:.0f}", own["of_it_fsync"], own["peak_mb"]],
            ["distilabel", other["records"], f"{other['microseconds']:.0f}", "-", other["peak_mb"]],
        ]
    yield from table(["", "records", "CPU us per record", "fsync us", "largest process, MB"], rows)


def startup(data: dict[str, Any]) -> Iterator[str]:
    yield f"Medians; OMP_NUM_THREADS: {data['threads']}; machine load: {data['load']}."
    yield ""
    rows = [[r["what"], r["runs"], r["seconds"], r["cpu_seconds"] or "-"] for r in data["rows"]]
    yield from table(["", "runs", "seconds", "CPU seconds"], rows)


def scale(data: dict[str, Any]) -> Iterator[str]:
    mean, least, most = data["batch_seconds"]
    yield f"`ray` with one-thread workers on {data['cores']} cores: {data['prompts']} prompts,"
    yield f"batches of {data['batch']}, at most {data['new_tokens']} new tokens, medians of"
    yield f"{data['turns']} round(s). The machine load, including this benchmark, was"
    yield f"{data['load'][0]} before and {data['load'][1]} after; values far above two would"
    yield "invalidate the figures."
    yield ""
    yield "The performance model (`predicted` in the script) has no free parameters. A batch takes"
    yield f"{mean} s ({least} to {most}, measured one at a time); the driver adds"
    yield f"{data['driver_ms_a_batch']} ms to each. Two groups of four batches per worker are in"
    yield "flight; the driver's work on one group overlaps with the next, if there is one. For"
    yield "GPUs, the model assumes that workers share nothing, that"
    yield f"{data['gpu_batch']} responses take {data['gpu_seconds']} s on one GPU, with the same"
    yield "variation as here, and that the driver adds"
    yield f"{data['gpu_driver_ms_a_batch']} ms to them."
    yield ""
    heads = ["workers", "tokens/s", "measured", "model, here", f"model, {data['groups']} groups"]
    heads += [f"GPUs, {data['groups']} groups", f"GPUs, {data['short']:,} prompts"]
    names = ["tokens_per_second", "measured", "predicted_here"]
    names += ["model", "model_gpu", "model_gpu_short"]
    yield from table(heads, [[r["workers"], *(r.get(n, "-") for n in names)] for r in data["rows"]])


def train(data: dict[str, Any]) -> Iterator[str]:
    yield f"One epoch of {data['examples']} examples, batches of {data['batch']},"
    yield f"{data['threads']} thread(s), alternating between trainers. The loss is on unseen"
    yield "examples, for each seed. All examples are shorter than a row. The runs have few steps"
    yield "and include startup; packing needs one more step for the same tokens."
    yield ""
    rows: list[list[object]] = [
        [e["name"], f"{e['speed']:.0f}", f"{e['ratio']:.2f}x", f"{e['memory']:.1f} GB"]
        + [", ".join(f"{loss:.3f}" for loss in e["losses"])]
        for e in data["contenders"]
    ]
    yield from table(["trainer", "tokens/s", "against TRL", "peak memory", "held-out loss"], rows)


def attention(data: list[dict[str, Any]]) -> Iterator[str]:
    rows: list[list[object]] = [[*r.values()] for r in data]
    names = ["step", "dtype", "queries", "keys", "fused ms", "products ms", "ratio"]
    yield from table(names, rows)


def lora_linear(data: list[dict[str, Any]]) -> Iterator[str]:
    yield "CPU milliseconds of one thread, forward and backward, on an Intel Xeon without AMX: a"
    yield "layer of each kind in the embedded model, and a step of the whole model with 8 rows of"
    yield "80 tokens, half of which are learned. With AMX, the step in bfloat16 was 1.23 times as"
    yield "fast as PEFT's (at commit 7b6199d)."
    yield ""
    heads = ["dtype", "what", "PEFT ms", "one function ms", "ratio"]
    yield from table(heads, [[*r.values()] for r in data])


def prefix(data: list[dict[str, Any]]) -> Iterator[str]:
    yield "CPU milliseconds of one thread for a training step of the embedded model with 8 rows of"
    yield "80 tokens, of which 31 are the same, on an Intel Xeon without AMX. The last column is"
    yield "the norm of the difference of both gradients, as a share of the norm of the gradients."
    yield ""
    heads = ["dtype", "every row ms", "once ms", "ratio", "gradients differ by"]
    yield from table(heads, [[*r.values()] for r in data])


def dtype(data: dict[str, Any]) -> Iterator[str]:
    has = {True: "with", False: "without"}
    yield f"A CPU {has[data['amx']]} AMX and {has[data['avx512_bf16']]} AVX512-BF16; `dtype: auto`"
    yield f"is {data['auto']} there. CPU milliseconds of one thread for the product of 640 tokens"
    yield "with the weights of a layer of the embedded model."
    yield ""
    rows = [[*r.values()] for r in data["products"]]
    yield from table(["layer", "bfloat16 ms", "float32 ms", "ratio"], rows)


def near_duplicates(data: dict[str, Any]) -> Iterator[str]:
    yield "The full tables are in `results/near_duplicates.json`;"
    yield "[the data card](../setbacks/data/sets/README.md) explains them."


def raw_to_corrected(data: dict[str, Any]) -> Iterator[str]:
    yield f"Simulated reviewers labeled {data['planned']} answers with public human labels;"
    yield f"{data['unsure']} answers were labeled unsure. Harmless Rate in %."
    yield ""

    def cell(c: dict[str, Any] | None) -> str:
        if c is None:
            return "-"
        return "{:.1f} ({:.1f} to {:.1f})".format(*(100 * c[k] for k in ("value", "low", "high")))

    rows: list[list[object]] = [
        [e["what"], cell(e["raw"]), cell(e["by_calibration"]), cell(e["by_people"])]
        + [f"{100 * e['all_labels']:.1f}"]
        for e in data["rows"]
    ]
    yield from table(["arm", "raw", "by calibration", "by people", "all labels"], rows)


def named(arm: str) -> str:
    return "untrained" if arm == "vanilla" else arm.replace("_", " ")


def arms(rows: list[dict[str, Any]], method: str) -> Iterator[str]:
    """Yield a table of arms, with their differences from a method in balanced safety."""

    def cell(name: str, value: dict[str, float]) -> str:
        unit, digits = (1, 2) if name == "helpful_score" else (100, 1)
        ends = (f"{unit * value[key]:.{digits}f}" for key in ("value", "low", "high"))
        return "{} ({} to {})".format(*ends)

    titles = {
        "harmless_rate": "Harmless Rate",
        "hijacking_harmless_rate": "hijacking",
        "compliance": "compliance",
        "balanced_safety": "balanced safety",
        "helpful_score": "Helpful Score",
        "degenerate": "degenerate",
    }
    names = [name for name in titles if name in rows[0]]
    heads = ["arm", *(titles[name] for name in names)]
    heads += [f"difference from {method}", "p", "p, corrected (Holm)"]
    cells: list[list[object]] = []
    for row in rows:
        cells.append([named(row["arm"]), *(cell(name, row[name]) for name in names)])
        if change := row.get("against_method"):
            p_values = (max(change[key], 0.001) for key in ("p", "p_holm"))
            cells[-1] += [cell("", change), *(f"{p:.3f}" for p in p_values)]
        else:
            cells[-1] += ["-", "-", "-"]
    yield from table(heads, cells)


def compare(data: dict[str, Any]) -> Iterator[str]:
    yield "SmolLM2-135M-Instruct."
    yield from compared(data)


def second_model(data: dict[str, Any]) -> Iterator[str]:
    yield "Gemma-3-270M, tuned on 400 helpful answers. No setting was chosen on it."
    yield from compared(data)


def compared(data: dict[str, Any]) -> Iterator[str]:
    yield "Greedy answers of up to 64 tokens without guidance, judged by version 3 of the probe."
    yield "576 harmful, 200 hijacking, 550 safe and 100 helpful prompts: none was used to choose."
    yield "Degenerate answers are failures. Rates in %, Helpful Score of 10, with 95 % intervals"
    yield "over prompts; p below 0.001 is shown as 0.001."
    yield ""
    yield from arms(data["arms"], "mistake distillation")
    if "words_safe" in data["arms"][0]:
        yield ""
        yield "Prompts that get a refusal, in %, and words in an answer to a safe prompt:"
        yield ""
        rows = [
            [
                named(arm["arm"]),
                *(f"{100 * arm[f'refused_{kind}']:.1f}" for kind in ("harmful", "safe")),
                f"{arm['words_safe']:.0f}",
            ]
            for arm in data["arms"]
        ]
        yield from table(["arm", "harmful refused", "safe refused", "words"], rows)
    several = [arm for arm in data["arms"] if len(arm["seeds"]) > 1]
    if several:
        yield ""
        yield "Balanced safety of each seed:"
        yield ""
        for arm in several:
            values = ", ".join(f"{100 * value:.1f}" for value in arm["seeds"])
            yield f"- {arm['arm'].replace('_', ' ')}: {values}"


def controls(data: dict[str, Any]) -> Iterator[str]:
    yield "SmolLM2-135M-Instruct, one training seed, greedy answers of 64 tokens without guidance,"
    yield "judged by version 3 of the probe. Harmless Rate is on 420 harmful prompts (built-in"
    yield "validation split, SimpleSafetyTests, CatQA), compliance on 410 safe ones (built-in"
    yield "validation split, OKTest); no test set of this project contains them. Degenerate answers"
    yield "are failures."
    yield "Rates in %, with 95 % intervals over prompts; the difference from the default is in"
    yield "balanced safety, in points; p below 0.001 is shown as 0.001."

    yield ""
    yield from arms(data["arms"], "default")
    yield ""
    yield "The corrections that the teacher wrote for the same mistakes:"
    yield ""
    keys = ["mistakes", "learned", "distinct", "as_method"]
    texts = [[one["arm"].replace("_", " "), *map(one.get, keys)] for one in data["corrections"]]
    heads = ["arm", "corrections", "passed the checks", "distinct", "as in the default"]
    yield from table(heads, texts)


def analyses_on_topic(data: dict[str, Any]) -> Iterator[str]:
    yield "`before` is the wording of analyses at commit f483617. AUC: the probability that an"
    yield "analysis has a larger share of the words of its own instruction than of another one."
    yield ""
    rows = [[e["run"], e["analyses"], f"{e['pass']:.1%}", f"{e['auc']:.2f}"] for e in data["runs"]]
    yield from table(["run", "analyses of mistakes", "pass the checks", "AUC"], rows)


Section = tuple[str, Callable[[Any], Iterator[str]]]

BENCHMARKS: dict[str, Section] = {
    "crash": ("Identical bytes after kills at random moments", crash),
    "resume": ("Resuming in a large folder", resume),
    "generate": ("Tokens per second, compared", generate),
    "overhead": ("Overhead of a stage per record", overhead),
    "startup": ("Time to the first record", startup),
    "scale": ("Scaling to more workers", scale),
    "train": ("Training, compared with TRL's own trainer", train),
    "attention": ("Attention on a CPU", attention),
    "lora_linear": ("LoRA's linear layers on a CPU", lora_linear),
    "prefix": ("A batch's common prefix in training on a CPU", prefix),
    "dtype": ("Number formats on a CPU", dtype),
    "compare": ("Methods compared at equal data", compare),
    "compare_one_seed": ("Methods compared at equal data, one seed", compare),
    "second_model": ("Methods compared on a second model", second_model),
    "controls": ("Which settings and parts of mistake distillation matter", controls),
    "raw_to_corrected": ("From raw rates to corrected ones", raw_to_corrected),
}
RESEARCH: dict[str, Section] = {
    "judge_agreement": ("Agreement of the offline judge with human labels", judge_agreement),
    "fit_probe": ("How the offline judge was made", fit_probe),
    "probe_candidates": ("Alternatives to version 1 of the offline judge", probe_candidates),
    "probe_variants": ("Alternatives to version 3 of the offline judge", probe_variants),
    "analyses_on_topic": ("Analyses and their own instructions", analyses_on_topic),
    "near_duplicates": ("Near-duplicates in the built-in instruction sets", near_duplicates),
}


def write(folder: str, sections: dict[str, Section]) -> None:
    lines = [
        "# Results",
        "",
        "Generated by `python benchmarks/make_results.py` from `results/*.json`.",
    ]
    for name, (title, show) in sections.items():
        path = ROOT / folder / "results" / f"{name}.json"
        if path.exists():
            data = json.loads(path.read_text(encoding="utf-8"))
            command = data.get("command") if isinstance(data, dict) else None
            lines += ["", f"## {title}", "", f"`{command or f'python {folder}/{name}.py'}`", ""]
            lines += show(data)
    (ROOT / folder / "RESULTS.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write("benchmarks", BENCHMARKS)
    write("research", RESEARCH)
