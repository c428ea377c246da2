"""The documentation holds: links lead somewhere, commands parse, recipes load, examples run."""

import ast
import importlib.util
import io
import json
import logging
import pkgutil
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
from setbacks.plugins import installed, plugin
from setbacks.recipe import Recipe

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
generate = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(generate)
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks/RESULTS.md",
                *ROOT.glob("research/*.md"), *ROOT.glob("setbacks/**/*.md"),
                ROOT / "recipes/README.md"])  # fmt: skip
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


def test_the_tutorial_installs_the_torch_of_the_constraints():
    (pin,) = re.findall(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert f"pip install {pin} --index-url" in (ROOT / "docs/tutorial.md").read_text()


def test_every_recipe_and_every_file_that_recipes_read_is_listed():
    recipes = (ROOT / "recipes/README.md").read_text()
    files = (ROOT / "docs/own-data.md").read_text()
    for recipe in ROOT.glob("recipes/*.yaml"):
        assert f"({recipe.name})" in recipes, f"recipes/README.md: {recipe.name}"
        for file in re.findall(r"shared/data/([^'\n]+\.(?:json|csv))", recipe.read_text()):
            row = re.search(rf"^\| `{re.escape(file)}`.*$", files, re.MULTILINE)
            assert row and recipe.stem in row[0], f"docs/own-data.md: {file} of {recipe.name}"


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
        data = context.params
    for word in words:
        path = word.partition("=")[2] or word
        if re.search(r"\.(ya?ml|jsonl?|csv)$", path) and not THEIRS.fullmatch(path):
            assert (ROOT / path).exists(), path
    if "overrides" in data and "recipe" in data:
        recipe, overrides = data["recipe"], list(data["overrides"] or ())
        if recipe and "=" in recipe:
            recipe, overrides = None, [recipe, *overrides]
        overrides = [word for word in overrides if not re.search(r"\b[A-Z]{2,}\b", word)]
        Recipe.load(ROOT / recipe if recipe and (ROOT / recipe).exists() else None, overrides)


@running("python")
def test_scripts_are_there_and_take_these_options(block):
    words = shlex.split(block.text)
    if words[1] in ("-m", "-c") or THEIRS.fullmatch(words[1]):
        return
    place = ROOT / words[1]
    script = place.read_text()
    beside = [place.with_name(f"{n}.py") for n in re.findall(r"^from (\w+) import", script, re.M)]
    script += "".join(path.read_text() for path in beside if path.exists())
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
    """A block is a part of a recipe, words, a policy, sources by any name, or a GitHub workflow."""
    data = yaml.safe_load(block.text)
    if isinstance(data, list):
        Recipe.model_validate({"policy": data})
    elif "guided" in data:
        Recipe.model_validate({"words": data})
    elif "jobs" in data:
        steps = [step for job in data["jobs"].values() for step in job["steps"]]
        assert all(step.keys() & {"run", "uses"} for step in steps)
    elif set(data) <= set(Recipe.model_fields):
        Recipe.model_validate(data)
    else:
        for source in data.values():
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


# The run folder -------------------------------------------------------------------------------

LISTED = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs/run-folder.md").read_text(), re.MULTILINE)


def is_listed(name):
    """Whether the page's table has a file or folder of a run, by its path in the run's folder."""
    patterns = (
        re.sub("ARM|JUDGE|KEY|NNN", "[^/]+", re.escape(row)) + (".*" if row.endswith("/") else "")
        for row in LISTED
    )
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def test_the_page_lists_journals_and_what_methods_leave():
    outputs = {
        name
        for method in map(lambda name: plugin("methods", name), installed("methods"))
        for name in (*method.outputs, *method.temporary)
    }
    assert "reward" in outputs
    for name in {*outputs, *generate.JOURNALS}:
        assert is_listed(name) or is_listed(f"{name}/"), name


def test_the_page_lists_what_a_run_leaves(cli_in_process, tmp_path):
    """A run with training, of an older version, and an evaluation with people's labels."""
    (tmp_path / "a.jsonl").write_text('{"prompt": "<x>", "response": "<y>"}\n')
    words = ["evaluate", "a.jsonl", "--suite", "harmful=a.jsonl", "--judge", "refusal"]
    assert cli_in_process(*words, "--out", "run").returncode == 0
    label = {"instruction": "<x>", "response": "<y>", "harmful": False}
    (tmp_path / "labels.jsonl").write_text(json.dumps(label))
    assert cli_in_process("review", "import", "run", "labels.jsonl", "--as", "Ada").returncode == 0
    for folder in (tmp_path / "run", ROOT / "tests/data/run-0.1.0"):
        files = [file for file in folder.rglob("*") if file.is_file()]
        assert files
        for file in files:
            assert is_listed(str(file.relative_to(folder))), file


def test_the_page_has_the_fields_of_every_journal():
    """What the code opens as a journal is what `docs/generate.py` documents."""
    opened = {}
    for path in (ROOT / "setbacks").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "journal":
                for name in literals(node.args[0]):
                    opened[name] = ast.unparse(node.args[1])
    documented = {
        re.sub("ARM|JUDGE", "…", name): kind.__name__ for name, kind in generate.JOURNALS.items()
    }
    assert opened == documented
    for kind in generate.JOURNALS.values():
        assert all(field.description for field in kind.model_fields.values()), kind


# Naming ---------------------------------------------------------------------------------------

IN_CODE = re.findall(r"\| `([\w./]+)` \|$", (ROOT / "docs/naming.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", IN_CODE)
def test_what_a_word_is_in_the_code_is_there(name):
    """A file of the package or of a run, a key of a recipe, or a name in a module."""
    head, *rest = name.split(".")
    if "/" in name or rest == ["py"]:
        assert (ROOT / "setbacks" / name).exists() or is_listed(name)
    elif head in Recipe.model_fields:
        section = Recipe()
        for key in name.split("."):
            section = getattr(section, key)
    else:
        pkgutil.resolve_name(f"setbacks.{name}")


# Messages -------------------------------------------------------------------------------------


def literals(node):
    """Yield the texts that an expression can give, with `…` in place of what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    elif isinstance(node, ast.IfExp):
        yield from literals(node.body)
        yield from literals(node.orelse)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        for left in list(literals(node.left)) or ["…"]:
            for right in list(literals(node.right)) or ["…"]:
                yield left + right


TOKEN = re.compile(r"…|\w+|[^\w\s]")


def source_messages():
    """Every text of the code but documentation, as tokens."""
    found = set()
    for path in (ROOT / "setbacks").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        documentation = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if id(node) not in documentation:
                found.update(literals(node))
    return [("…", *TOKEN.findall(text), "…") for text in found if " " in text]


def literal_words(quote, source):
    """How many words of a quote stand in a source text; -1 if the quote cannot be that text.

    In both, `…` stands for any words; those of a quote may be examples of what the source fills in.
    """
    best = {(0, 0): 0}
    for i in range(len(quote) + 1):
        for j in range(len(source) + 1):
            if (i, j) not in best:
                continue
            steps = []
            if i < len(quote) and j < len(source) and quote[i] == source[j] != "…":
                steps.append((i + 1, j + 1, quote[i].isalnum()))
            if i < len(quote) and (quote[i] == "…" or source[min(j, len(source) - 1)] == "…"):
                steps.append((i + 1, j, 0))
            if j < len(source) and (source[j] == "…" or quote[min(i, len(quote) - 1)] == "…"):
                steps.append((i, j + 1, 0))
            for row, column, words in steps:
                known = best.get((row, column), -1)
                best[row, column] = max(known, best[i, j] + words)
    return best.get((len(quote), len(source)), -1)


# What a page quotes as an example: names, numbers, keys of a recipe, and the name that is offered.
EXAMPLE = re.compile(r' Did you mean ".+?"\?|"[^"]*"|\([^)]*\)|\w+([.=]\w+)+|\d+%?')


def is_in_the_source(message, sources):
    """Whether a message is a text of the code, or each of its clauses is one."""
    return is_a_text(message, sources) or all(
        is_a_text(clause, sources) for clause in re.split("[;,] ", message) if clause != "..."
    )


def is_a_text(message, sources):
    """Whether a source text with its places filled in is the message, in two words of three."""
    quote = TOKEN.findall(EXAMPLE.sub("…", f"… {message} …".replace("...", "…")))
    words = [word for word in quote if word.isalnum()]
    pairs = {pair for pair in zip(quote, quote[1:], strict=False) if "…" not in pair}
    near = (text for text in sources if pairs & {*zip(text, text[1:], strict=False)})
    return any(literal_words(quote, text) * 3 >= len(words) * 2 for text in near)


# Lines of pydantic and typer.
THEIR_LINES = ("Input should be", "No such option", "No such command")


def quoted_messages():
    """The messages that pages quote: in columns of that name, and in blocks of text."""
    for page in PAGES:
        columns = []
        for number, line in enumerate(page.read_text().splitlines(), 1):
            cells = [cell.strip() for cell in line.strip("| ").replace("\\|", "/").split(" | ")]
            if not line.startswith("|"):
                columns = []
            elif not columns:  # the heading; a number that no column has stands for none
                columns = [n for n, cell in enumerate(cells) if is_of_messages(cell)] or [99]
            for cell in [cells[column] for column in columns if column < len(cells)]:
                for span in re.findall(r"``(.+?)``|`(.+?)`", cell):
                    if len(re.findall(r"[a-z]{2,}", text := "".join(span).strip())) >= 3:
                        yield Block(page, number, "message", text)
    for block in blocks():
        for number, line in enumerate(block.text.splitlines(), 1):
            if line.startswith("setbacks: ") and block.language in ("", "text"):
                text = line.removeprefix("setbacks: ")
                yield block._replace(line=block.line + number, text=text)


def is_of_messages(heading):
    return heading in ("message", "what you see") or heading.endswith(" says")


def test_quoted_messages_are_those_of_the_code():
    """Every message, its placeholders aside, is a text of the code."""
    sources = source_messages()
    quoted = [block for block in quoted_messages() if block.page.name != "CHANGELOG.md"]
    gone = [
        f"{block}: {block.text}"
        for block in quoted
        if not any(line in block.text for line in THEIR_LINES)
        and not is_in_the_source(block.text, sources)
    ]
    assert len(quoted) > 100
    assert not gone, "\n".join(gone)


@pytest.mark.parametrize(
    ("message", "source", "found"),
    [
        ("...: no such recipe. Did you mean \"...\"?", "{path}: no such recipe.{hint}", True),
        ("... holds no model: it has no weights", "{path} holds no model: it has no config", False),
        ("no \"sfft\" among the methods: ...", 'no "{name}" among the {group}: {names}', True),
        ("delete it to have the stage done again", "restore the file, or redo the stage", False),
        ("... is full; delete the folder", "{path} is full; free some space", False),
    ],
)  # fmt: skip
def test_a_message_that_the_code_does_not_have_is_found(message, source, found):
    text = ("…", *TOKEN.findall(re.sub(r"{\w+}", "…", source)), "…")
    assert is_in_the_source(message, [text]) is found


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
    "train.helpful=[{source: 'builtin:helpful', split: train, limit: 8}]",  # it answers them itself
    "respond.sampling.max_new_tokens=16",
    "respond.suites=[{name: harmful, kind: harmful, sources: [{source: 'builtin:redteam',"
    " split: test, limit: 4}]}, {name: safe, kind: safe, sources: [{source: 'builtin:safe',"
    " split: test, limit: 4}]}]",
]


@pytest.mark.slow
@pytest.mark.timeout(2700)
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
