"""The documentation holds: links lead somewhere, commands parse, recipes load, examples run."""

import ast
import importlib
import io
import json
import logging
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
import typer.main
import yaml
from markdown_it import MarkdownIt

from setbacks.cli import app
from setbacks.data import Source
from setbacks.recipe import Recipe

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks/RESULTS.md",
                *ROOT.glob("setbacks/**/*.md")])  # fmt: skip
PARSED = {page: MarkdownIt("commonmark").enable("table").parse(page.read_text()) for page in PAGES}
# What pages call files of the reader's own; everything else that a command names must be there.
THEIRS = re.compile(
    r"mine\.yaml|recipe\.yaml|.*(labels|answers|prompts)\.(jsonl|csv)|path/to/.*|runs/.*"
    r"|[A-Z][A-Z_./]*|(RUN|DIR)/.*|\.\./shared/data|convert_hf_to_gguf\.py"
)


class Block(NamedTuple):
    """A code block, or a command in a line of text."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks():
    """Every code block of every page."""
    for page, tokens in PARSED.items():
        for token in tokens:
            if token.type == "fence":
                yield Block(page, token.map[0] + 1, token.info.strip(), token.content)


def commands():
    """Every command line of every page: in blocks, and in the text between them."""
    for block in blocks():
        if block.page.name == "commands.md":  # usage lines, made from the code
            continue
        text = block.text.replace("\\\n", " ")
        for number, line in enumerate(text.splitlines()):
            for part in re.split(r"&&|\|(?= )", line.removeprefix("$ ").split("  #")[0]):
                if re.match(r"(setbacks|python3?|pip|pytest|mkdocs) [^:]", part.strip()):
                    yield block._replace(line=block.line + 1 + number, text=part.strip())
    for page, tokens in PARSED.items():
        for token in tokens:
            for child in token.children or ():
                if child.type == "code_inline" and re.match(r"setbacks [a-z]+ ", child.content):
                    yield Block(page, token.map[0] + 1, "inline", child.content)


def of(*languages):
    """A test's parameters: the blocks of some languages."""
    return pytest.mark.parametrize(
        "block", [b for b in blocks() if b.language in languages], ids=str
    )


def running(program):
    """A test's parameters: the command lines of a program."""
    found = [c for c in commands() if c.text.startswith(program)]
    return pytest.mark.parametrize("block", found, ids=str)


# Links ------------------------------------------------------------------------------------------


def anchors(page):
    """The anchors of a page's headings, as GitHub and the site make them."""
    tokens = PARSED[page]
    seen = []
    for token, inline in zip(tokens, tokens[1:], strict=False):
        if token.type == "heading_open":
            words = "".join(child.content for child in inline.children)
            seen.append(re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-"))
    return seen


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    inline = [child for token in PARSED[page] for child in token.children or ()]
    links = [child.attrs.get("href") or child.attrs.get("src") for child in inline]
    for link in filter(None, links):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor and target in PARSED:
            assert anchor in anchors(target), f"{link}: {anchors(target)}"


def test_the_index_and_the_site_list_every_page():
    index = (ROOT / "docs/index.md").read_text()
    site = (ROOT / "mkdocs.yml").read_text()
    for page in ROOT.glob("docs/*.md"):
        assert page.name == "index.md" or f"({page.name})" in index, f"docs/index.md: {page.name}"
        assert re.search(rf"\b{page.name}$", site, re.MULTILINE), f"mkdocs.yml: {page.name}"


def test_pages_made_from_the_code_are_current():
    """The commands, the recipe's keys, and every quoted example."""
    ran = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


# Commands ---------------------------------------------------------------------------------------


@running("setbacks")
def test_commands_parse(block, caplog):
    """The real command line takes the words; what they name is there; overrides fit the recipe."""
    caplog.set_level(logging.INFO, "setbacks")  # put back what --quiet changes
    usage = block.text.endswith("...]")  # [RECIPE] and the like may be left out
    text = re.sub(r"[\[\]]| \.\.\.", "", block.text) if usage else block.text
    name, *words = shlex.split(text)[1:]
    group = typer.main.get_command(app)
    command = group if name.startswith("-") else group.get_command(None, name)
    assert command is not None, name
    if words and hasattr(command, "get_command"):  # one of a group's, such as review serve
        if block.page.name == "CHANGELOG.md":
            return  # entries keep the spelling of their version
        name, *words = words
        command = command.get_command(None, name)
        assert command is not None, name
    if command is group or block.language == "inline":  # often a part of a command alone
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in (name, *words) if word.startswith("-")} <= options | {"--help"}
        return
    with command.make_context(name, words) as context:
        told = context.params
    for word in words:
        path = word.partition("=")[2] or word
        if re.search(r"\.(ya?ml|jsonl?|csv)$", path) and not THEIRS.fullmatch(path):
            assert (ROOT / path).exists(), path
    if "overrides" in told and "recipe" in told:
        recipe, overrides = told["recipe"], list(told["overrides"] or ())
        if recipe and "=" in recipe:
            recipe, overrides = None, [recipe, *overrides]
        overrides = [word for word in overrides if not re.search(r"\b[A-Z]{2,}\b", word)]
        Recipe.load(ROOT / recipe if recipe and (ROOT / recipe).exists() else None, overrides)


@running("python")
def test_scripts_are_there_and_take_these_options(block):
    words = shlex.split(block.text)
    if words[1] in ("-m", "-c") or THEIRS.fullmatch(words[1]):
        return
    script = (ROOT / words[1]).read_text()
    for word in words[2:]:
        if word.startswith("--"):
            assert f'"{word.partition("=")[0]}"' in script, word
        elif word.endswith((".yaml", ".py")):
            assert (ROOT / word).exists() or THEIRS.fullmatch(word), word


@running("pip")
def test_pip_installs_what_there_is(block):
    extras = (ROOT / "pyproject.toml").read_text()
    for names in re.findall(r"(?:setbacks|\.)\[([\w,]+)\]", block.text):
        for name in names.split(","):
            assert re.search(rf"^{name} = \[", extras, re.MULTILINE), name
    for path in re.findall(r"-c (\S+)|(\./\S+)", block.text):
        assert (ROOT / "".join(path)).exists(), path


# Blocks -----------------------------------------------------------------------------------------


@of("yaml")
def test_recipes_load(block):
    """A block is a part of a recipe, or sources by any name."""
    told = yaml.safe_load(block.text)
    if set(told) <= set(Recipe.model_fields):
        Recipe.model_validate(told)
    else:
        for source in told.values():
            Source.model_validate(source)


@of("json")
def test_json_parses(block):
    json.loads(block.text)


@of("python")
def test_python_compiles_and_what_it_imports_is_there(block):
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "setbacks":
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


RUNNABLE = [b for b in blocks() if b.language == "python" and "# prints: " in b.text]


@pytest.mark.parametrize("block", RUNNABLE, ids=str)
def test_python_prints_what_it_says(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(block.text, str(block), "exec"), {})
    assert printed.getvalue().splitlines() == re.findall(r"# prints: (.*)", block.text)


# The tutorial ---------------------------------------------------------------------------------

# What makes a whole run of the tutorial one of a minute; everything else is as the page says.
SMALL = [
    "instructions=[{source: 'builtin:redteam', split: train, limit: 8}]",
    "induce.sampling.max_new_tokens=24",
    "analyze={min_overlap: 1, contrast: [{source: 'builtin:safe', split: train, limit: 2}],"
    " sampling: {max_new_tokens: 32}}",
    "train.analyses=unfiltered",  # of so few and short ones, by chance none passes its checks
    "train.batch_size=4",
    "train.steps=2",
    "respond.sampling.max_new_tokens=16",
    "respond.suites=[{name: harmful, kind: harmful, sources: [{source: 'builtin:redteam',"
    " split: test, limit: 4}]}, {name: safe, kind: safe, sources: [{source: 'builtin:safe',"
    " split: test, limit: 4}]}]",
]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tutorials_commands_run_one_after_the_other(tmp_path, environment):
    """As on the page, in a clean folder; runs of more than a minute are made smaller."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    page = ROOT / "docs/tutorial.md"
    lines = [c.text for c in commands() if c.page == page and c.language != "inline"]
    ran = [line for line in lines if line.startswith("setbacks")]
    assert len(ran) >= 12
    for line in ran:
        words = shlex.split(line)
        if words[1] == "run" and "recipes/ci.yaml" not in words:
            words += [word for word in SMALL if word.partition("=")[0] not in line]
        done = subprocess.run(
            [sys.executable, "-m", "setbacks", *words[1:]],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, (line, done.stderr)
        assert "Traceback" not in done.stderr, line
    for made in ("my-adapter/adapter_model.safetensors", "my-model/model.safetensors",
                 "runs/quickstart/report.html", "runs/sft/report.html",
                 "runs/mine/superseded/001/recipe.yaml"):  # fmt: skip
        assert (tmp_path / made).is_file(), made
