"""Differences between results of any tool: matched by prompt, tested in pairs."""

import json

import pytest
from scipy.stats import ttest_rel
from statsmodels.stats.contingency_tables import mcnemar

from setbacks.errors import InputError
from setbacks.loop.diff import as_json, diff, write_items
from setbacks.loop.results import read

PROMPTS = [f"Question {n}?" for n in range(20)]


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def garak_report(path, hits, prompts=PROMPTS):
    """A report as garak 0.11 writes it: a line on the set-up, then attempts in two states."""
    rows = [{"entry_type": "start_run setup", "_config.version": "0.11.0"}]
    for prompt, hit in zip(prompts, hits, strict=True):
        attempt = {
            "entry_type": "attempt",
            "uuid": prompt,
            "probe_classname": "dan.Ablation",
            "prompt": {"turns": [{"role": "user", "content": {"text": prompt, "lang": "en"}}]},
            "outputs": [{"text": "PLACEHOLDER", "lang": "en"}] * len(hit),
        }
        rows.append({**attempt, "status": 1, "detector_results": {}})
        rows.append({**attempt, "status": 2, "detector_results": {"mitigation.Bypass": hit}})
    return lines(path, rows)


def lm_eval_samples(path, values, metric="acc"):
    rows = [
        {
            "doc_id": n,
            "doc": {"question": prompt},
            "target": "yes",
            "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": {"until": ["\n"]}}},
            "resps": [["PLACEHOLDER"]],
            "filtered_resps": ["PLACEHOLDER"],
            "filter": "none",
            "metrics": [metric],
            metric: value,
        }
        for n, (prompt, value) in enumerate(zip(PROMPTS, values, strict=True))
    ]
    return lines(path, rows)


def promptfoo_file(path, by_provider):
    results = [
        {
            "prompt": {"raw": prompt, "label": prompt},
            "provider": {"id": provider, "label": ""},
            "response": {"output": "PLACEHOLDER"},
            "success": passed,
            "score": float(passed),
            "namedScores": {"polite": 0.5},
        }
        for provider, values in by_provider.items()
        for prompt, passed in zip(PROMPTS, values, strict=True)
    ]
    path.write_text(json.dumps({"evalId": "e", "results": {"version": 3, "results": results}}))
    return str(path)


def test_lm_eval_gets_the_paired_t_test(tmp_path):
    old = [0.0, 1.0, 0.5, 1.0] * 5
    new = [1.0, 1.0, 0.5, 0.0, *old[4:12], *[1.0] * 8]
    a = lm_eval_samples(tmp_path / "samples_a.jsonl", old)
    b = lm_eval_samples(tmp_path / "samples_b.jsonl", new)
    (one,) = diff(read(a), read(b)).metrics
    assert one.change.p == pytest.approx(ttest_rel(new, old).pvalue)
    assert one.change.value == pytest.approx((sum(new) - sum(old)) / 20)
    assert one.change.low < one.change.value < one.change.high
    assert len(one.higher) == sum(y > x for x, y in zip(old, new, strict=True))
    assert [key[0] for key in one.lower] == ["Question 3?"]


def test_garak_gets_the_share_of_safe_outputs(tmp_path):
    a = garak_report(tmp_path / "a.report.jsonl", [[1.0, 0.0]] * 20)
    b = garak_report(tmp_path / "b.report.jsonl", [[0.0, 0.0]] * 15 + [[1.0, 1.0]] * 5)
    (one,) = diff(read(a), read(b)).metrics
    assert one.metric == "dan.Ablation mitigation.Bypass safe"
    assert (one.a, one.b, one.change.n) == (0.5, 0.75, 20)


def test_promptfoo_gets_mcnemars_test_between_two_providers_of_one_file(tmp_path):
    old, new = [True] * 8 + [False] * 12, [True] * 6 + [False] * 2 + [True] * 9 + [False] * 3
    path = promptfoo_file(tmp_path / "results.json", {"openai:old": old, "openai:new": new})
    with pytest.raises(InputError, match="has several results; name one as .*:NAME: openai:old"):
        read(path)
    with pytest.raises(InputError, match='has no "openai:now"'):
        read(f"{path}:openai:now")
    found = diff(read(f"{path}:openai:old"), read(f"{path}:openai:new"))
    by_name = {one.metric: one for one in found.metrics}
    assert set(by_name) == {"success", "score", "polite"}
    assert by_name["success"].change.p == mcnemar([[0, 2], [9, 0]], exact=True).pvalue
    assert by_name["success"].change.p_holm >= by_name["success"].change.p


@pytest.mark.slow
def test_inspect_logs_of_the_real_library(tmp_path):
    pytest.importorskip("inspect_ai")
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import ModelOutput, ModelUsage, get_model
    from inspect_ai.scorer import match

    def log(name, answers):
        task = Task(
            dataset=[Sample(input=prompt, target="yes") for prompt in PROMPTS], scorer=match()
        )
        outputs = [ModelOutput.from_content("mockllm/model", answer) for answer in answers]
        for output in outputs:  # otherwise Inspect fetches a tokenizer to count tokens
            output.usage = ModelUsage()
        model = get_model("mockllm/model", custom_outputs=outputs, memoize=False)
        (done,) = eval(
            task, model=model, log_dir=str(tmp_path / name), display="none", max_samples=1
        )
        assert done.status == "success"
        return done.location

    old, new = ["yes"] * 8 + ["no"] * 12, ["yes"] * 6 + ["no"] * 2 + ["yes"] * 9 + ["no"] * 3
    (one,) = diff(read(log("a", old)), read(log("b", new))).metrics
    assert one.metric == "match" and (one.a, one.b) == (0.4, 0.75)
    assert one.change.p == mcnemar([[0, 2], [9, 0]], exact=True).pvalue
    (tmp_path / "cut.eval").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(InputError, match=r"cut\.eval: Inspect cannot read it"):
        read(str(tmp_path / "cut.eval"))


def test_a_prompt_that_comes_twice_is_paired_in_order(tmp_path):
    values = [[0.0], [1.0], [1.0]]
    a = garak_report(tmp_path / "a.jsonl", values, ["Same?"] * 3)
    b = garak_report(tmp_path / "b.jsonl", values[:2], ["Same?"] * 2)
    found = diff(read(a), read(b))
    assert found.metrics[0].change.n == 1, "repeats are no evidence of their own"
    assert found.metrics[0].change.value == 0
    assert (found.only_a, found.only_b) == (1, 0)


def test_means_and_their_difference_count_a_prompt_once(tmp_path):
    prompts = ["Often?"] * 3 + ["Once?"]
    a = garak_report(tmp_path / "a.jsonl", [[1.0], [1.0], [1.0], [0.0]], prompts)
    b = garak_report(tmp_path / "b.jsonl", [[0.0], [0.0], [0.0], [1.0]], prompts)
    (one,) = diff(read(a), read(b)).metrics
    assert (one.a, one.b, one.change.value, one.change.n) == (0.5, 0.5, 0.0, 2)


def test_changed_items_go_to_a_private_file(tmp_path):
    a = lm_eval_samples(tmp_path / "a.jsonl", [0.0] * 20)
    b = lm_eval_samples(tmp_path / "b.jsonl", [0.0] * 17 + [1.0] * 3)
    found = diff(read(a), read(b))
    path = tmp_path / "items.jsonl"
    assert write_items(found, path) == 3 and path.stat().st_mode & 0o077 == 0
    row = json.loads(path.read_text().splitlines()[0])
    assert (row["prompt"], row["a"], row["b"]) == ("Question 17?", 0.0, 1.0)
    assert json.loads(json.dumps(as_json(found)))["metrics"][0]["higher"] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a run folder"),
        ('{"doc_id": 0, "arguments": [], "resps": []}\n{"doc_id"\n{}\n', "line 2: not JSON"),
        ('{"doc_id": 0, "arguments": [], "resps": []}\n[]\n', "line 2: not a JSON object"),
        ('{"entry_type": "init"}\n', "has no results"),
    ],
)
def test_bad_files_are_one_line(tmp_path, text, message):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        read(str(tmp_path / "bad.jsonl"))


def test_results_that_cannot_be_compared_are_one_line(tmp_path):
    a = lm_eval_samples(tmp_path / "a.jsonl", [0.0] * 20)
    other = garak_report(tmp_path / "b.jsonl", [[0.0]], ["Something else?"])
    same = garak_report(tmp_path / "c.jsonl", [[0.0]] * 20)
    with pytest.raises(InputError, match="share no prompt: the first has 20, such as"):
        diff(read(a), read(other))
    with pytest.raises(InputError, match="no scores of one name; the first has acc"):
        diff(read(a), read(same))
    with pytest.raises(InputError, match="no metric f1 in both"):
        diff(read(a), read(a), ["f1"])
    with pytest.raises(InputError, match="no such file or folder"):
        read(str(tmp_path / "missing.jsonl"))


def test_on_the_command_line(tmp_path, cli_in_process):
    a = lm_eval_samples(tmp_path / "a.jsonl", [0.0] * 20)
    b = lm_eval_samples(tmp_path / "b.jsonl", [0.0] * 17 + [1.0] * 3)
    ran = cli_in_process("diff", a, b, "--items", str(tmp_path / "items.jsonl"), "--show", "1")
    assert ran.returncode == 0, ran.stderr
    assert "+0.15" in ran.stdout and "acc up: Question 17?" in ran.stdout
    assert "3 changed items with both answers; keep it private" in ran.stdout
    assert json.loads(cli_in_process("diff", a, b, "--json").stdout)["metrics"][0]["n"] == 20
    ran = cli_in_process("diff", a, b, "--items", "nowhere/items.jsonl")
    assert ran.returncode == 2 and "there is no folder" in ran.stderr
    for words, says in (
        ((a, a), f"{a}: is compared with itself"),
        ((a, b, "--items", b), f"{b}: is compared, and is not overwritten"),
        ((a, f"{b}:"), f"{b}:: no name after the colon"),
    ):
        ran = cli_in_process("diff", *words)
        assert ran.returncode == 2 and says in ran.stderr
    ran = cli_in_process("diff", a, "nothing.jsonl")
    assert ran.returncode == 2 and len(ran.stderr.splitlines()) == 1
