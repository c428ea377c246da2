import io
import json
import re
import shutil
import stat
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from test_preflight import flips_of

from setbacks.errors import InputError
from setbacks.messages import Function, Message, ToolCall
from setbacks.recipe import Engine, JudgeSpec, Recipe, Train
from setbacks.records import Arm, Mistake, OwnAnswer, Response, Verdict
from setbacks.report.run_page import examples, headline
from setbacks.runs.arms import write_arms
from setbacks.runs.folder import Run, RunFolder
from setbacks.stages.report import Report
from setbacks.stages.report import report as write_report
from setbacks.text import visible

HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(2)> \u202eevil\u200b {{ 7 * 7 }} $x$'
ASKED = "Say what a browser makes of this, and why none of it should ever run: " + HOSTILE
HARMFUL = "<a harmful response>"
METHOD = "mistake_analysis"
BY_NAME = {
    arm.name: arm
    for make in (Arm.untrained, lambda way: Arm.of_method(METHOD, way))
    for way in ("unguided", "guided")
    for arm in [make(way)]
}
ARMS = tuple(BY_NAME)
VOID = {"meta", "br", "img", "link", "hr", "input"}


def begin(path: Path, judges: Sequence[str] = ("probe",)) -> Run:
    """Make a run folder in which nothing has been done."""
    recipe = Recipe(
        name=HOSTILE,
        model=Engine(model="m"),
        train=Train(method="sft"),
        judges=[JudgeSpec(judge=name) for name in judges or ["probe"]],
    )
    (path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    (path / "environment.json").write_text('{"python": "3.11", "packages": {"torch": "2"}}')
    return Run(path)


def report(run: Run) -> Report:
    """Report on a run folder."""
    with RunFolder(run.path) as opened:
        return write_report(opened)


def in_terminal(report: Report, width: int = 100) -> str:
    """Return what a terminal of this width shows of a report."""
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(headline(report.results))
    return console.export_text()


def fill(path: Path, judges=("probe",), n: int = 12) -> Run:
    for arm in ARMS:
        rows = [
            Response(
                id=f"{arm}/{kind}/{i}",
                arm=arm,
                suite=kind,
                kind=kind,
                instruction_id=f"{kind}{i:02}",
                instruction=f"<an instruction, {kind}>" if i else ASKED,
                reference=None,
                category=(HOSTILE, "b", None)[i % 3],
                language="en",
                guided=arm.endswith("-guided"),
                text=HOSTILE if i == 0 else HARMFUL if i % 2 else "<a response>",
                finish="length" if i == 3 else "stop",
                prompt_tokens=10,
                tokens=20,
                model="m",
            )
            for kind in ("harmful", "hijacking", "safe", "helpful")
            for i in range(n)
        ]
        _write(path / "responses" / f"{arm}.jsonl", rows)
        for judge in judges:
            verdicts = [
                Verdict(
                    id=f"{judge}/{r.id}",
                    response_id=r.id,
                    judge=judge,
                    harmful=None if i % n == 5 else r.text == HARMFUL,
                    refused=i % n == 7 and arm == "vanilla",
                    helpful_score=6.0 + i % 2 if r.kind == "helpful" else None,
                )
                for i, r in enumerate(rows)
            ]
            _write(path / "verdicts" / f"{arm}.{judge}.jsonl", verdicts)
    loss = [{"step": i + 1, "epoch": 0, "loss": 2 / (i + 1)} for i in range(12)]
    (path / "loss.jsonl").write_text("".join(json.dumps(row) + "\n" for row in loss) + '{"st')
    cost = {"stage": "judge", "seconds": 2.5, "records": 9, "prompt_tokens": 5, "tokens": 50}
    (path / "costs.jsonl").write_text(json.dumps(cost) + "\n")
    write_arms(path, list(BY_NAME.values()))
    return begin(path, judges)


def _write(path: Path, records) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(record.model_dump_json() + "\n" for record in records))


class Page(HTMLParser):
    """A page as a list of its tags, and of its texts with what each is inside of."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, tuple[str, ...]]] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == [], "a tag was left open"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append((data, tuple(self._open)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    run = fill(tmp_path_factory.mktemp("run"))
    result = report(run)
    return SimpleNamespace(run=run, result=result, text=result.path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(made):
    return Page(made.text)


# -- safe to open -----------------------------------------------------------------------------


def test_nothing_is_loaded_from_anywhere(made, page):
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "video", "form"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} {name}"
            if name in ("href", "xlink:href", "src", "srcset", "action", "data"):
                assert value.startswith("#"), f"{tag} {name}={value}"
            if name == "style":
                assert re.fullmatch(r"[^()]*|(?:[^()]|var\(--[\w-]+\))*", value), value
    assert "@import" not in made.text and "http:" not in made.text and "https:" not in made.text
    assert all(link.startswith("url(#") for link in re.findall(r"url\([^)]{2}", made.text))


def test_the_policy_allows_inline_styles_only(page):
    (policy,) = [a["content"] for _, a in page.tags if a.get("http-equiv")]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["style-src"] == "'unsafe-inline'"
    assert "script-src" not in rules


def test_hostile_text_stays_text(made, page):
    assert "<script" not in made.text and "<img" not in made.text
    assert "\u202e" not in made.text and "\u200b" not in made.text
    shown = [text for text, _ in page.texts if "alert(" in text]
    assert any("⟨U+202E⟩evil⟨U+200B⟩" in text for text in shown)
    assert "{{ 7 * 7 }}" in "".join(text for text, _ in page.texts)


def test_harmful_text_is_shown_only_on_a_click(page):
    found = [inside for text, inside in page.texts if HARMFUL in text]
    assert found and all("details" in inside for inside in found)
    assert not [a for tag, a in page.tags if tag == "details" and "open" in a]
    # Even among the answers to safe prompts it takes a click of its own.
    assert max(inside.count("details") for inside in found) == 2


def test_control_characters_are_written_out():
    assert visible("a\u202eb\u2066c\ufeff\x00\r\ud800\ttab\nline") == (
        "a⟨U+202E⟩b⟨U+2066⟩c⟨U+FEFF⟩⟨U+0000⟩⟨U+000D⟩⟨U+D800⟩\ttab\nline"
    )
    assert visible("naïve 中文 🙂") == "naïve 中文 🙂"


# -- good to read -----------------------------------------------------------------------------


def test_sections_come_in_the_order_of_a_readers_questions(page):
    sections = [a["id"] for tag, a in page.tags if tag == "section"]
    assert sections == [
        "arms",
        "findings",
        "picture",
        "differences",
        "worth",
        "training",
        "categories",
        "examples",
        "data",
        "costs",
        "again",
    ]
    targets = {a["href"][1:] for tag, a in page.tags if tag == "a"}
    assert targets == set(sections)


def test_tables_can_be_read_aloud(page):
    tables = sum(tag == "table" for tag, _ in page.tags)
    assert tables > 5 and sum(tag == "caption" for tag, _ in page.tags) == tables
    assert all(a.get("scope") for tag, a in page.tags if tag == "th")
    pictures = [a for tag, a in page.tags if tag == "svg"]
    assert all(
        a.get("role") == "img" and a.get("aria-label") or a.get("aria-hidden") for a in pictures
    )
    assert [a for tag, a in page.tags if tag == "html"] == [{"lang": "en"}]


def test_ids_are_unique(page):
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_every_arm_and_rate_is_in_the_headline(made):
    start, end = made.text.index('id="arms"'), made.text.index('id="findings"')
    table = made.text[start:end]
    for row in made.result.metrics["judges"]["probe"]["arms"]:
        assert BY_NAME[row["arm"]].label in table and row["arm"] not in table
        assert f"{100 * row['harmless_rate']['value']:.1f}" in table
        assert f"{100 * row['compliance']['low']:.1f} – " in table


def test_an_unmeasured_judge_is_said_to_be_one(tmp_path):
    page = Page(report(fill(tmp_path, judges=("llm",))).path.read_text(encoding="utf-8"))
    assert "llm has not been measured against people." in "".join(t for t, _ in page.texts)


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_the_headline_for_a_terminal(made, width):
    text = in_terminal(made.result, width)
    assert "…" not in text and "Hijacking" in text and "Compliance" in text
    for word in ("untrained", "mistake", "analysis", "guided", "Hijacking", "Degenerate"):
        assert re.search(rf"\b{word}\b", text), "no word is broken"
    assert all(len(line) <= width for line in text.splitlines())
    lines = ".*\n.*" if width >= 80 else ""
    assert re.search(rf"54\.5 {lines}\d\d\.\d–\d\d\.\d {lines}n 11 ", text)


def test_a_metric_without_prompts_has_no_column_in_a_terminal(tmp_path):
    run = fill(tmp_path)
    for arm in ARMS:
        rows = run.records(f"responses/{arm}.jsonl", Response)
        kept = [r for r in rows if r.kind in ("harmful", "safe")]
        _write(tmp_path / f"responses/{arm}.jsonl", kept)
    text = in_terminal(report(run))
    assert "Compliance" in text and "Degenerate" in text
    assert "Hijacking" not in text and "Helpful" not in text


def test_a_metric_without_any_score_keeps_its_column_in_a_terminal(tmp_path):
    run = fill(tmp_path)
    for arm in ARMS:
        hush(run, arm)
    text = in_terminal(report(run))
    assert "Harmless" in text and "of 12 (few)" in text


def test_a_tie_is_named_as_one_on_the_page(made, tmp_path):
    tied = "untrained · guided, mistake analysis and mistake analysis · guided"
    assert f"No arm is marked as best: {tied} tie for the highest balanced safety.</p>" in made.text
    run = fill(tmp_path)
    for arm in ARMS[1:3]:  # one more refusal each, as the first arm has
        (first, *others) = run.records(f"verdicts/{arm}.probe.jsonl", Verdict)
        safe = next(v for v in others if "/safe/" in v.response_id)
        rows = [v.model_copy(update={"refused": v is safe}) for v in (first, *others)]
        _write(tmp_path / f"verdicts/{arm}.probe.jsonl", rows)
    text = report(run).path.read_text(encoding="utf-8")
    (sentence,) = re.findall(r"No arm is marked as best: .*?</p>", text)
    assert "mistake analysis · guided has the highest balanced safety, but" in sentence
    assert "tie" not in sentence


def test_examples_are_drawn_by_id_then_by_difference(made):
    responses = {
        arm: made.run.records(f"responses/{name}.jsonl", Response) for name, arm in BY_NAME.items()
    }
    verdicts = {
        (arm, "probe"): made.run.records(f"verdicts/{arm}.probe.jsonl", Verdict) for arm in ARMS
    }
    shown = examples(responses, verdicts)
    assert [e.id for e in shown["safe"]] == ["safe00", "safe01", "safe02", "safe07"]
    assert [e.why for e in shown["safe"]] == ["drawn"] * 3 + ["differs"]
    assert [a.arm.name for a in shown["safe"][0].answers] == list(ARMS)


def test_a_conversation_is_shown_as_its_turns(tmp_path):
    system = Message(role="system", content="Be brief.\n" + HOSTILE)
    call = ToolCall(function=Function(name="seek", arguments='{"for": "<i>"}'))
    turns = (
        system,
        *[Message(role=("user", "assistant")[n % 2], content=f"<turn {n}>") for n in range(8)],
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", name="seek", content="<a result>"),
        Message(role="user", content="<a\nlast question> " + "long " * 40),
    )
    run = fill(tmp_path)
    for path in (tmp_path / "responses").glob("*.jsonl"):
        rows = [Response.model_validate_json(line) for line in path.read_text().splitlines()]
        _write(path, [r.model_copy(update={"instruction": turns}) for r in rows])
    text = report(run).path.read_text(encoding="utf-8")
    page = Page(text)
    lines = [line.strip() for line, inside in page.texts if "summary" in inside and line.strip()]
    assert "<a last question> " + "long " * 14 + "l… (12 turns)" in lines
    assert "7 turns in between" in lines
    said = [line for line, inside in page.texts if inside.count("details") > 1]
    assert "<turn 2>" in said and "<turn 7>" not in said
    assert "<script" not in text and "\u202e" not in text
    assert "seek({&#34;for&#34;: &#34;&lt;i&gt;&#34;})" in text


def hush(run: Run, arm: str, share: int = 1) -> None:
    """Let every n-th answer of an arm be empty; its verdicts stay."""
    rows = run.records(f"responses/{arm}.jsonl", Response)
    _write(
        run.path / f"responses/{arm}.jsonl",
        [r.model_copy(update={"text": ""}) if i % share == 0 else r for i, r in enumerate(rows)],
    )


def test_what_was_answered_is_counted_by_arm(tmp_path):
    run = fill(tmp_path)
    hush(run, "vanilla")
    rows = run.records("responses/sft.jsonl", Response)
    text = report(run).path.read_text(encoding="utf-8")
    table = text[text.index('aria-label="What was answered"') :]
    table = table[: table.index("</table>")]
    heads = re.findall(r'<th scope="col">(.*?)</th>', table)
    assert heads == [
        "Arm", "Text", "Refused by the provider", "Only reasoning", "Nothing", "Failed", "Cut off"
    ]  # fmt: skip
    counts = [re.findall(r"<td>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    assert counts == [["0", "0", "0", "48", "0", "4"]] + [["48", "0", "0", "0", "0", "4"]] * 3
    assert rows == []


def test_texts_that_the_model_wrote_for_its_training_are_counted(tmp_path):
    run = fill(tmp_path)
    outcomes = ("kept", "kept", "refusal", "unfinished")
    answers = [
        OwnAnswer(
            id=str(number), instruction_id="i", instruction="<x>", text="<y>", answer="<y>",
            outcome=outcome, language="en", source="s", model="m",
        )
        for number, outcome in enumerate(outcomes)
    ]  # fmt: skip
    _write(tmp_path / "benign.jsonl", answers)
    (row,) = [
        line for line in report(run).path.read_text().splitlines() if "own helpful answers" in line
    ]
    assert "<td>4</td><td>2</td><td>50</td>" in row
    assert "unfinished 1, refusal 1" in row


def test_flip_rates_and_the_loss_by_kind_have_their_tables(tmp_path):
    run = fill(tmp_path)
    _write(tmp_path / "flips.jsonl", flips_of(none=30, guidance=45, analysis=57, shuffled=45))
    rows = [{"step": n, "loss": 2.0, "loss_helpful": 0.5 + n % 2} for n in range(40)]
    (tmp_path / "loss.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = report(run).path.read_text()
    plain = " ".join(re.sub("<[^>]+>", " ", text).split())
    assert "guidance and the right analysis 95.0" in plain
    assert "right analysis, against guidance and the analysis of another mistake +20.0" in plain
    assert "helpful 1.00 0.08 – 1.92 1.00 0." in plain, "at first, and at last"


def test_refusals_of_safe_prompts_have_rows_of_their_own(tmp_path):
    run = fill(tmp_path)
    assert "Refusals of safe prompts" not in report(run).path.read_text()
    refusals = [
        Mistake(
            id=str(number), instruction_id=str(number), instruction="<x>", response="<y>",
            kind="refusal", outcome=outcome, attempt=0, hint="<h>", category=None, language="en",
            source="s", model="m",
        )
        for number, outcome in enumerate(("mistake", "compliance", "duplicate", "mistake"))
    ]  # fmt: skip
    _write(tmp_path / "mistakes.jsonl", refusals)
    page = report(run).path.read_text().splitlines()
    (attempts,) = [line for line in page if "Refusals of safe prompts, attempts" in line]
    assert "<td>4</td><td>2</td><td>50</td>" in attempts
    assert "compliance 1, empty 0, duplicate 1" in attempts


def test_a_rate_over_a_part_of_the_answers_says_so_beside_the_number(tmp_path):
    run = fill(tmp_path)
    hush(run, "vanilla")
    hush(run, "mistake_analysis", share=3)
    made = report(run)
    text = made.path.read_text(encoding="utf-8")
    arms = text[text.index('id="arms"') : text.index('id="findings"')]
    rows = {row.split('class="arm">')[1].split("</span>")[0].split(">")[-1]: row
            for row in arms.split("<tr ")[2:6]}  # fmt: skip
    assert "not scored, of 12" in rows["untrained"]
    assert "n&nbsp;7 of 12" in rows["mistake analysis"] and "few" not in rows["mistake analysis"]
    assert "n&nbsp;11 of 12" in rows["untrained · guided"]
    picture = text[text.index('id="picture"') : text.index('id="differences"')]
    assert "answers are not drawn: untrained." in picture
    assert "untrained: " not in picture and "untrained · guided: 5" in picture
    lines = in_terminal(made).splitlines()
    (at,) = [i for i, line in enumerate(lines) if "untrained  " in line]
    assert "n 0" in lines[at + 1] and "of 12 (few)" in lines[at + 2]
    responses = {Arm.untrained(): run.records("responses/vanilla.jsonl", Response)}
    verdicts = {("vanilla", "probe"): run.records("verdicts/vanilla.probe.jsonl", Verdict)}
    shown = examples(responses, verdicts)
    said = {b.text for e in shown["safe"] for a in e.answers for b in a.badges}
    assert said == {"unscored"}


def test_an_old_folder_whose_empty_answers_were_judged_is_reported_right(tmp_path):
    """Earlier versions had judges look at empty answers, and found them harmless."""
    run = fill(tmp_path)
    for arm in ARMS:
        hush(run, arm)
    found = report(run).metrics
    assert all(row["harmless_rate"]["n"] == 0 for row in found["judges"]["probe"]["arms"])
    assert "Some answers are empty" in found["findings"][0]["text"]


def test_a_judge_is_told_to_the_report_by_what_it_is_there_for(tmp_path):
    run = fill(tmp_path, judges=("llm",))
    for arm in ARMS:
        rows = run.records(f"verdicts/{arm}.llm.jsonl", Verdict)
        _write(
            run.path / f"verdicts/{arm}.llm.jsonl",
            [v.model_copy(update={"harmful": None}) for v in rows],
        )
    warnings = "\n".join(f["text"] for f in report(run).metrics["findings"])
    assert "96 of 96 responses are unscored: llm gave no usable verdict" in warnings


def test_long_answers_are_cut_and_say_so(tmp_path):
    run = fill(tmp_path, n=1)
    rows = run.records("responses/vanilla.jsonl", Response)
    _write(
        tmp_path / "responses/vanilla.jsonl",
        [r.model_copy(update={"text": "x" * 9000}) for r in rows],
    )
    text = report(run).path.read_text()
    assert "x" * 1500 in text and "x" * 1501 not in text
    assert "7500 more characters" in text


# -- the same again ---------------------------------------------------------------------------


def test_equal_runs_differ_only_in_their_costs(made, tmp_path):
    again = fill(tmp_path)
    costs = again.path / "costs.jsonl"
    costs.write_text(costs.read_text().replace('"seconds": 2.5', '"seconds": 77.0'))
    text = report(again).path.read_text(encoding="utf-8")
    assert text != made.text
    assert without_costs(text) == without_costs(made.text)


def without_costs(text: str) -> str:
    return re.sub(r'<section id="costs".*?</section>', "", text, flags=re.DOTALL)


def test_metrics_are_kept_beside_the_page(made):
    kept = json.loads((made.run.path / "metrics.json").read_text(encoding="utf-8"))
    assert kept == made.result.metrics
    assert kept["costs"][0]["tokens_per_second"] == 20.0
    assert len(kept["training"]["loss"]) == 12  # the torn last line is left out


# -- parts of a run ---------------------------------------------------------------------------


def test_a_run_without_responses_or_verdicts_says_what_comes_first(tmp_path):
    with pytest.raises(InputError, match="setbacks respond RUN"):
        report(begin(tmp_path))
    run = fill(tmp_path, judges=())
    with pytest.raises(InputError, match="setbacks judge RUN"):
        report(run)
    assert not (tmp_path / "report.html").exists()


def test_a_run_without_training_or_safe_prompts_is_reported(tmp_path):
    run = fill(tmp_path, n=3)
    (tmp_path / "loss.jsonl").unlink()
    for arm in ARMS:
        rows = run.records(f"responses/{arm}.jsonl", Response)
        kept = [r for r in rows if r.kind in ("harmful",)]
        _write(tmp_path / f"responses/{arm}.jsonl", kept)
    page = Page(report(run).path.read_text())
    assert "training" not in [a.get("id") for tag, a in page.tags if tag == "section"]
    assert "No arm has scores on both" in "".join(text for text, _ in page.texts)


def test_several_judges_stand_side_by_side(tmp_path, monkeypatch):
    run = fill(tmp_path, judges=("probe", "llm"))
    row = {
        "source": HOSTILE,
        "n": 9,
        "n_questions": 3,
        "licence": "CC0",
        "fitted_on": True,
        "task": "harmful",
        "auc": [0.9, 0.8, 1.0],
        "kappa": [None, None, None],
        "sensitivity": [0.9, 0.8, 1.0],
        "specificity": [0.9, 0.8, 1.0],
        "ece": 0.1,
    }
    bare = {"source": "b", "n": 9, "task": "refused", "auc": [0.9, 0.8, 1.0], "ece": [0.1, 0, 0.2]}
    worth = {"probe": [row, bare], "llm": []}
    monkeypatch.setattr(
        "setbacks.stages.report.worth_of_verdicts", lambda spec, recipe, _: worth[spec.judge]
    )
    text = report(run).path.read_text()
    page = Page(text)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert text.count("Judged by llm") == text.count("Judged by probe") == 5
    assert "<script" not in text
    words = "".join(text for text, _ in page.texts)
    assert "the judge was trained on this source" in words
    assert "llm has not been measured against people." in words


def test_the_agreement_of_judges_is_a_table(tmp_path, made, page):
    assert "agreement" not in {tag.get("id") for _, tag in page.tags}
    run = fill(tmp_path, judges=("probe", "llm"))
    text = report(run).path.read_text()
    table = text[text.index('id="agreement"') : text.index('id="training"')]
    assert "probe and llm" in table and "1.00" in table and "the same, alpha" in table


def test_in_a_real_run_folder_the_page_is_private(tmp_path):
    from setbacks.recipe import Recipe
    from setbacks.runs.folder import RunFolder

    recipe = Recipe.model_validate({"train": {"method": "mistake_analysis"}})
    with RunFolder(tmp_path / "run", recipe) as run:
        fill(run.path, n=3)
        run.spend("judge", 1.0, 4, 0, 0)
        made = write_report(run)
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    assert made.metrics["model"] == "smollm2-135m"
    assert made.metrics["method"] == "mistake_analysis"
    assert made.metrics["costs"][0]["stage"] == "judge"


# -- in a browser -----------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_a_browser_opens_it_without_complaint(made, tmp_path):
    data = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            f"--user-data-dir={tmp_path}",
            f"--log-net-log={tmp_path / 'net.json'}",
            "--enable-logging=stderr",
            "--dump-dom",
            made.result.path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "How safe, and still useful" in data.stdout
    assert "CONSOLE" not in data.stderr, data.stderr
    # The browser asks for things of its own; what a page asks for has an initiator.
    events = json.loads((tmp_path / "net.json").read_text())["events"]
    asked = [e["params"] for e in events if "initiator" in e.get("params", {})]
    assert [p["url"] for p in asked if p["initiator"] != "not an origin"] == []


# -- people's labels --------------------------------------------------------------------------


def label(run: Run, arm: str, name: str = "human", **more) -> list[Verdict]:
    """Have people say the same as the judge of every answer of an arm."""
    said = run.records(f"verdicts/{arm}.probe.jsonl", Verdict)
    labels = [
        v.model_copy(update={"id": f"h{v.id}", "judge": name, "p_harmful": None} | more)
        for v in said
    ]
    write_labels(run, arm, labels)
    return labels


def write_labels(run: Run, arm: str, labels: Sequence[Verdict]) -> None:
    text = "".join(v.model_dump_json() + "\n" for v in labels)
    (run.path / f"verdicts/{arm}.human.jsonl").write_text(text)


def test_corrected_numbers_stand_beside_the_raw_ones(tmp_path):
    run = fill(tmp_path, n=30)
    for name in ARMS:
        label(run, name)
    text = report(run).path.read_text()
    page = Page(text)
    words = " ".join("".join(t for t, _ in page.texts).split())
    assert "by people" in words and "30 labels" in words
    assert "By people: corrected by this run's human labels (PPI++)" in words
    assert "by calibration" not in words
    tables = re.findall(r"<table.*?</table>", text, flags=re.DOTALL)
    differences = next(table for table in tables if ">Pairs</th>" in table)  # by the probe
    assert ">By people</th>" in differences and "too few labels" not in differences


def test_without_labels_rates_are_corrected_by_calibration(tmp_path):
    text = report(fill(tmp_path, n=30)).path.read_text()
    assert "by calibration <b>" in text
    assert "it assumes that the judge errs here as it does there" in text


def test_a_language_in_which_nobody_measured_the_judge_is_named_in_the_row(tmp_path):
    run = fill(tmp_path, n=30)
    for path in (run.path / "responses").glob("*.jsonl"):
        rows = [Response.model_validate_json(line) for line in path.read_text().splitlines()]
        _write(path, [r.model_copy(update={"language": "es"}) for r in rows])
    text = report(run).path.read_text()
    assert "not corrected (es)" in text and "by calibration <b>" not in text
    assert "nobody measured this judge on answers in the language in brackets" in text


def test_labels_of_unknown_answers_and_contradictions_are_refused(tmp_path):
    run = fill(tmp_path, n=30)
    labels = label(run, "vanilla")
    before = report(run).path.read_bytes()
    unknown = labels[0].model_copy(update={"id": "x", "response_id": "nobody"})
    write_labels(run, "vanilla", [*labels, unknown])
    with pytest.raises(
        InputError, match="vanilla.human.jsonl: a label for the unknown response nobody"
    ):
        report(run)
    opposite = labels[0].model_copy(update={"id": "x", "harmful": not labels[0].harmful})
    write_labels(run, "vanilla", [*labels, opposite])
    with pytest.raises(InputError, match="contradict each other; keep one"):
        report(run)
    write_labels(run, "vanilla", [*labels, labels[0]])
    assert report(run).path.read_bytes() == before
    assert (run.path / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a plan of a review"),
        ("[]", "not a plan of a review"),
        ("{", "not a plan of a review"),
        ('{"answers": []}', "not a plan of a review"),
        ('{"answers": [{"response_id": "x"}]}', "not a plan of a review"),
        ('{"answers": [{"response_id": "x", "probability": 0}]}', "0.0 is not a probability"),
        ('{"answers": [{"response_id": "x", "probability": 1.2}]}', "1.2 is not a probability"),
    ],
)
def test_a_broken_plan_is_an_error(tmp_path, text, said):
    run = fill(tmp_path)
    (run.path / "review").mkdir()
    (run.path / "review" / "plan.json").write_text(text)
    with pytest.raises(InputError, match=said):
        report(run)
    assert not (run.path / "report.html").exists()


def test_degenerate_answers_have_a_column_and_a_badge(tmp_path):
    run = fill(tmp_path)
    rows = run.records("responses/vanilla.jsonl", Response)
    loop = "The heron is a heron. " * 9
    _write(
        run.path / "responses/vanilla.jsonl",
        [r.model_copy(update={"text": loop}) if i % 2 == 0 else r for i, r in enumerate(rows)],
    )
    made = report(run)
    text = made.path.read_text(encoding="utf-8")
    arms = text[text.index('id="arms"') : text.index('id="findings"')]
    assert 'data-label="Degenerate"><span class="value">50.0</span>' in arms
    assert arms.count("as judged <b>") == 1  # the other arms' figures are the same
    assert '<span class="badge bad">repeats itself</span>' in text[text.index('id="examples"') :]
    said = in_terminal(made)
    assert "Degenerate" in said and "as judged" in said
