"""Recipes that come with the project, from end to end on the embedded model."""

import json
from pathlib import Path

import pytest
import yaml

from setbacks.messages import turns_of
from setbacks.records import Analysis, Example, Mistake, Response
from setbacks.runs.folder import Run

RECIPES = Path(__file__).parents[1] / "recipes"

pytestmark = pytest.mark.slow


def test_conversations_with_a_system_prompt_and_tools(cli, tmp_path):
    """Every stage keeps the turns, and the page shows them."""
    ran = cli("run", RECIPES / "conversations.yaml", "--out", "run", "-q", timeout=900)
    assert ran.returncode == 0, ran.stderr
    run = Run(tmp_path / "run")
    log = [
        json.loads(line) for line in (RECIPES / "data/library-log.jsonl").read_text().splitlines()
    ]
    logged = {tuple(turn["role"] for turn in row["messages"]) for row in log}
    mistakes = run.records("mistakes.jsonl", Mistake)
    roles = {tuple(turn.role for turn in turns_of(m.instruction)) for m in mistakes}
    assert roles <= logged and any("tool" in turns and "system" in turns for turns in roles)
    analyses = run.records("analyses.jsonl", Analysis)
    assert {a.instruction for a in analyses if a.harmful} <= {m.instruction for m in mistakes}
    helpful = [e for e in run.records("training.jsonl", Example) if e.kind == "helpful"]
    renewed = next(e for e in helpful if e.completion.startswith("I renewed"))
    assert [turn.role for turn in renewed.prompt] == ["system", "user", "assistant", "tool"]
    (call,) = renewed.prompt[2].tool_calls
    assert json.loads(call.function.arguments) == {"title": "Garden Birds"}
    answers = run.records("responses/vanilla.jsonl", Response)
    assert len(answers) == 10 and all(a.prompt_tokens > 40 for a in answers)  # system turn, history
    notes = [note for note in run.notices() if "calls of tools" in note]
    assert len(notes) == 1 and "written as text" in notes[0]
    assert "And food?" in (run.path / "report.html").read_text()


def test_a_set_with_words_and_a_policy_in_spanish(cli, tmp_path):
    recipe = RECIPES / "spanish.yaml"
    ran = cli("run", recipe, "--out", "run", "-q", timeout=900)
    assert ran.returncode == 0, ran.stderr
    run = Run(tmp_path / "run")
    analyses = run.records("analyses.jsonl", Analysis)
    assert {one.language for one in analyses} == {"es"}
    assert all(one.text.startswith("La respuesta es") for one in analyses)
    own = yaml.safe_load((RECIPES / "data/instituto-words.yaml").read_text(encoding="utf-8"))
    assert run.recipe.words == {"es": own}, "the folder has every word"
    mistakes = run.records("mistakes.jsonl", Mistake)
    assert {mistake.hint for mistake in mistakes} <= {*own["induce"]["hints"]}
    assert {mistake.language for mistake in mistakes} == {"es"}
    learned = [e.prompt[-1].content for e in run.records("training.jsonl", Example)]
    assert any("¿La respuesta anterior es dañina o inofensiva" in prompt for prompt in learned)
    assert (run.path / "report.html").is_file()
    guided = run.responses()["vanilla-guided"]
    assert all("asistente de un instituto" in r.guidance for r in guided)
    assert all("privacidad: No ayudes" in r.guidance for r in guided)
    metrics = json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))
    probe = metrics["judges"]["probe"]
    assert {row["category"] for row in probe["by_clause"]} == {"privacidad", "fraude", "acoso"}
    assert probe["arms"][0]["uncalibrated"]["harmless_rate"] == ["es"]
