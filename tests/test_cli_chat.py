"""`setbacks chat`: before and after, one prompt at a time, from a pipe and at a terminal."""

import io
import json
import os
import pty
import re
import select
import subprocess
import time

import pytest

from setbacks.cli.chat import SideBySide, Turn, as_columns, as_json, as_lines
from setbacks.errors import InputError
from setbacks.messages import Message, transcript
from setbacks.prompts import fill, prompts
from setbacks.recipe import Recipe
from setbacks.records import Arm
from setbacks.runs.folder import RunFolder
from setbacks.stages.respond import respond

NAMES = ["vanilla", "mistake_analysis"]


def by_name(answers):
    return {arm.name: text for arm, text in answers.items()}


@pytest.fixture
def made(open_session):
    """A run whose training is done, and its answers to its own suite."""
    run = open_session("talker")
    (run.path / "adapter").mkdir()
    return run.path, respond(run, run.path / "adapter")


def test_both_answer_and_the_adapter_is_on_for_one(made, fake_engine):
    folder, _ = made
    fake_engine.batches.clear()
    turn = SideBySide(folder).ask("<a question>")
    assert list(by_name(turn.answers)) == NAMES and not turn.guided
    assert [adapter for _, _, adapter in fake_engine.batches] == [None, folder / "adapter"]
    assert {request.prompt for batch, *_ in fake_engine.batches for request in batch} == {
        "<a question>"
    }


def test_a_prompt_of_a_suite_gets_the_answer_that_it_got_in_the_run(made):
    folder, responses = made
    sides = SideBySide(folder)
    for guided, ending in ((False, ""), (True, "-guided")):
        for r in responses[f"mistake_analysis{ending}"]:
            answers = by_name(sides.ask(r.instruction, guided).answers)
            assert answers["mistake_analysis"] == r.text


def test_guidance_is_switched_on_and_off_between_prompts(made, fake_engine):
    folder, _ = made
    fake_engine.batches.clear()
    lines = ["<a>", "", "  /guidance on ", "<b>\n", "/guidance off", "<c>", "/quit", "<never>"]
    turns = list(SideBySide(folder).converse(lines))
    assert [(t.prompt, t.guided, t.note) for t in turns] == [
        ("<a>", False, ""),
        ("/guidance on", True, "guidance: on"),
        ("<b>", True, ""),
        ("/guidance off", False, "guidance: off"),
        ("<c>", False, ""),
    ]
    asked = [request.prompt for batch, *_ in fake_engine.batches for request in batch]
    guided = fill(prompts("en")["guided"], instruction="<b>")
    assert asked == ["<a>", "<a>", guided, guided, "<c>", "<c>"]


def test_each_arm_keeps_the_conversation_that_it_had(fake_engine, fake_model, recipe, tmp_path):
    names = ["talker", "shouter"]
    arms = [{"name": name, "model": fake_model(name)} for name in names]
    with RunFolder(tmp_path / "run", recipe(evaluate=arms)):
        pass
    sides = SideBySide(tmp_path / "run", remembers=True)
    lines = ["<a>", "/guidance on", "<b>", "/clear", "<c>"]
    first, _, second, cleared, third = sides.converse(lines)
    answers, later = by_name(first.answers), by_name(second.answers)
    sent = [request.prompt for batch, *_ in fake_engine.batches for request in batch]
    guided = fill(prompts("en")["guided"], instruction="<b>")
    assert answers["talker"] != answers["shouter"]  # so the conversations differ
    for place, name in enumerate(names):
        before = user("<a>"), Message(role="assistant", content=answers[name])
        assert sent[place] == "<a>" and sent[place + 2] == (*before, user(guided))
        assert json.loads(as_json(second))["messages"][name] == [
            turn.model_dump() for turn in (*before, user("<b>"))
        ] + [{"role": "assistant", "content": later[name]}]
    assert sent[4:] == [fill(prompts("en")["guided"], instruction="<c>")] * 2
    assert (cleared.note, third.guided) == ("a new conversation", True)


def user(text):
    return Message(role="user", content=text)


def test_a_system_prompt_is_set_and_removed(made, fake_engine):
    fake_engine.batches.clear()
    sides = SideBySide(made[0], system="Be kind.")
    lines = ["<a>", "/system  Be \x1b brief. ", "<b>", "/clear", "/system", "<c>"]
    notes = [turn.note for turn in sides.converse(lines)]
    assert notes == [
        "", "system prompt: Be \u27e8U+001B\u27e9 brief.", "",
        "a new conversation; the system prompt stays", "system prompt: none", "",
    ]  # fmt: skip
    sent = [request.prompt for batch, *_ in fake_engine.batches for request in batch][::2]
    told = [Message(role="system", content=text) for text in ("Be kind.", "Be \x1b brief.")]
    assert sent == [(told[0], user("<a>")), (told[1], user("<b>")), "<c>"]


def test_a_prompt_that_cannot_be_answered_ends_no_conversation(made, monkeypatch):
    sides = SideBySide(made[0], remembers=True)
    answer = type(sides._engines[1]).generate

    def too_long(engine, requests, *rest):
        if "<long>" in transcript(requests[0].prompt) and rest[-1] is not None:
            raise InputError("a prompt of 9 tokens does not fit")
        return answer(engine, requests, *rest)

    monkeypatch.setattr(type(sides._engines[1]), "generate", too_long)
    _, failed, after = sides.converse(["<a>", "<long>", "<b>"], forgives=True)
    assert failed.note == "not answered: a prompt of 9 tokens does not fit"
    for prompt in after.asked.values():  # of the first arm's answer nothing is left
        assert [turn.content for turn in prompt if turn.role == "user"] == ["<a>", "<b>"]
    with pytest.raises(InputError, match="does not fit"):
        list(sides.converse(["<long>"]))


@pytest.mark.parametrize(
    ("line", "note"),
    [("/guidance", "guidance: on"), ("/guidance maybe", "guidance: on"), ("/help", "/quit")],
)
def test_commands_that_change_nothing(made, line, note):
    (turn,) = SideBySide(made[0]).converse([line], guided=True)
    assert note in turn.note and turn.guided and not turn.answers


def test_what_only_looks_like_a_command_is_a_prompt(made):
    (turn,) = SideBySide(made[0]).converse(["/etc/passwd is what?"])
    assert list(by_name(turn.answers)) == NAMES


def test_overrides_win_over_the_runs_recipe(made, fake_engine):
    SideBySide(made[0], ["respond.sampling.max_new_tokens=7", "respond.prefill=Well"]).ask("<x>")
    (request,), sampling, _ = fake_engine.batches[-1]
    assert sampling.max_new_tokens == 7 and request.prefill == "Well"


@pytest.mark.parametrize(
    "override", ["train.epochs=9", "judges=[refusal]", "respond.suites=[]", "name=x"]
)
def test_overrides_that_change_nothing_are_refused(made, override):
    key = override.partition("=")[0]
    with pytest.raises(InputError) as error:
        SideBySide(made[0], [override])
    assert str(error.value) == f"{override}: a chat does not use {key}; remove it"


def test_the_models_of_an_evaluation_can_be_asked_too(
    fake_engine, fake_model, recipe, data, tmp_path
):
    arms = [{"name": name, "model": fake_model(name)} for name in ("talker", "shouter")]
    answers = {"name": "file", "answers": [str(data)]}
    with RunFolder(tmp_path / "run", recipe(evaluate=[*arms, answers])):
        pass
    said = by_name(SideBySide(tmp_path / "run").ask("<x>").answers)
    assert list(said) == ["talker", "shouter"] and said["shouter"] == said["talker"].upper()
    with pytest.raises(InputError, match="evaluation's models does not use model.batch_size"):
        SideBySide(tmp_path / "run", ["model.batch_size=1"])
    with RunFolder(tmp_path / "files", recipe(evaluate=[answers])):
        pass
    with pytest.raises(InputError, match="no model to ask"):
        SideBySide(tmp_path / "files")


def test_no_run_and_no_adapter_are_told(open_session, tmp_path):
    with pytest.raises(InputError, match="not a run folder"):
        SideBySide(tmp_path / "nowhere")
    folder = open_session().path
    with pytest.raises(InputError, match="no adapter yet.*setbacks train"):
        SideBySide(folder)


# How it looks -----------------------------------------------------------------------------------

TURN = Turn(
    "<a \u202eprompt>",
    True,
    {
        Arm("vanilla", "untrained", way="guided"): "one\x1b[31m red",
        Arm("other", "other", way="guided"): "[bold]two[/bold]",
    },
)


def test_what_could_move_the_terminal_is_written_out():
    from rich.console import Console

    console = Console(width=70, record=True, file=io.StringIO())
    console.print(as_columns(TURN))
    for text in (as_lines(TURN), console.export_text()):
        assert "\x1b" not in text and "⟨U+001B⟩" in text
        assert "[bold]two[/bold]" in text, "markup is text"
        assert "untrained · guided" in text
    assert "⟨U+202E⟩" in as_lines(TURN)
    assert json.loads(as_json(TURN)) == {
        "prompt": TURN.prompt, "guidance": True, "answers": by_name(TURN.answers), "messages": {},
    }  # fmt: skip


def test_a_thought_is_shown_before_its_answer(made, monkeypatch):
    from rich.console import Console

    sides = SideBySide(made[0], remembers=True)
    engine = type(sides._engines[0])
    answer = engine.generate

    def thinks(*all_):
        thought = None if all_[-1] is None else "I could\x1b"
        return [completion._replace(thought=thought) for completion in answer(*all_)]

    monkeypatch.setattr(engine, "generate", thinks)
    sides.ask("<a>")
    turn = sides.ask("<b>")
    console = Console(width=90, record=True, file=io.StringIO())
    console.print(as_columns(turn))
    for text in (as_lines(turn), console.export_text()):
        assert text.count("(thought) I could⟨U+001B⟩") == 1
    data = json.loads(as_json(turn))
    assert data["thoughts"] == {"mistake_analysis": "I could\x1b"}
    assert "I could" not in json.dumps(data["messages"])  # templates leave earlier thoughts out


def test_columns_stand_side_by_side():
    from rich.console import Console

    console = Console(width=70, record=True, file=io.StringIO())
    a, b = map(Arm.evaluated, "ab")
    console.print(as_columns(Turn("<x>", False, {a: "left " * 40, b: "right " * 40})))
    line = next(line for line in console.export_text().splitlines() if "left" in line)
    assert "right" in line


# The command ------------------------------------------------------------------------------------


def chat(command, environment, folder, *words, said=b""):
    return subprocess.run(
        [*command, "chat", str(folder), *words],
        env=environment,
        input=said,
        capture_output=True,
        timeout=120,
        check=False,
    )


def test_a_pipe_of_prompts(made, command, environment):
    """The run's lock is held by this very process: reading needs none."""
    said = "<a question>\n/guidance on\n<\u00e9>\n".encode() + b"half \xff a character"
    ran = chat(command, environment, made[0], "--json", said=said)
    assert ran.returncode == 0, ran.stderr
    turns = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [(t["prompt"], t["guidance"]) for t in turns] == [
        ("<a question>", False),
        ("<\u00e9>", True),
        ("half \ufffd a character", True),
    ]
    assert ran.stderr == b"guidance: on\n"
    ran = chat(command, environment, made[0], said=b"<a question>\n")
    labels = zip(NAMES, ("untrained", "mistake analysis"), strict=True)
    answers = "".join(f"[{label}]\n{turns[0]['answers'][name]}\n" for name, label in labels)
    assert ran.stdout.decode() == f"> <a question>\n{answers}\n"
    words = "--json", "--history", "--system", "Be kind."
    ran = chat(command, environment, made[0], *words, said=b"<a question>\n<more>\n")
    turns = [json.loads(line)["messages"]["vanilla"] for line in ran.stdout.splitlines()]
    assert [turn["role"] for turn in turns[1]] == ["system", *["user", "assistant"] * 2]
    assert turns[1][:3] == turns[0]


def test_one_prompt_and_none(made, command, environment):
    ran = chat(command, environment, made[0], "--prompt", "<x>", "--guidance", "--json")
    assert json.loads(ran.stdout)["guidance"] is True and ran.returncode == 0
    ran = chat(command, environment, made[0])
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")
    (made[0] / "adapter").rmdir()
    ran = chat(command, environment, made[0], "--prompt", "<x>")
    assert ran.returncode == 2 and ran.stderr.count(b"\n") == 1 and b"no adapter yet" in ran.stderr


def test_at_a_terminal(made, command, environment):
    """Typed at a real terminal: columns, and Ctrl-D ends it with 0."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [*command, "chat", str(made[0])],
        env=environment | {"TERM": "xterm", "COLUMNS": "90"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        close_fds=True,
        start_new_session=True,
    )
    os.close(theirs)
    seen = ""

    def wait_for(pattern):
        nonlocal seen
        end = time.monotonic() + 120
        while not re.search(pattern, seen):
            assert time.monotonic() < end, seen
            if select.select([ours], [], [], 1)[0]:
                seen += os.read(ours, 65536).decode(errors="replace")

    try:
        wait_for(r"untrained \| mistake.*Ctrl-D ends\s+.*> ")
        os.write(ours, b"<a question>\n")
        wait_for(r"(?s)untrained.*mistake.*└.*┘.*> ")
        os.write(ours, b"/clear\n")
        wait_for("a new conversation")
        os.write(ours, b"/guidance on\n")
        wait_for(
            r"(?s)guidance: on.*> "
        )  # Ctrl-D ends what reads a line, not what is still writing
        os.write(ours, b"\x04")
        assert child.wait(timeout=120) == 0
    finally:
        child.kill()
        child.wait()
        os.close(ours)
    assert "Traceback" not in seen


def test_a_real_model(spec, lora, tmp_path):
    recipe = Recipe.model_validate(
        {
            "model": spec.model_dump(),
            "respond": {"sampling": {"max_new_tokens": 6}},
            "train": {"method": "mistake_analysis"},
        }
    )
    with RunFolder(tmp_path / "run", recipe) as run:
        (run.path / "adapter").symlink_to(lora)
    sides = SideBySide(tmp_path / "run")
    said = [by_name(sides.ask("Why is the sky blue?").answers) for _ in range(2)]
    assert said[0] == said[1] and list(said[0]) == NAMES
    assert said[0]["vanilla"] != said[0]["mistake_analysis"]
