"""The arrows between modules point one way, and heavy libraries are loaded when they are needed."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "setbacks"
FILES = sorted(ROOT.rglob("*.py"))

# From the command line down. A file may import from the rows below its own, and from its own
# package; never from beside it or from above. Imports for types alone count as well.
LAYERS = [
    {"cli"},
    {"studies", "loop"},
    {"pipeline", "calibration", "export"},
    {"stages", "review", "inspect_ai"},
    {"methods"},
    {"training", "judges"},
    {"runs"},
    {"engines"},
    {"models"},
    {"recipe"},
    {"report", "data"},
    {"measure"},
    {"records", "prompts", "hub", "notices"},
    {"text", "files", "signals", "plugins", "messages"},
    {"errors"},
]
# `setbacks` itself gives a few names by importing their modules when they are asked for, and a few
# modules are old names.
ANYTHING = {"__init__", "__main__", "adapters", "chat", "embedded", "sources"}

HEAVY = {
    "accelerate",
    "datasets",
    "gguf",
    "matplotlib",
    "omegaconf",
    "peft",
    "rich",
    "sklearn",
    "torch",
    "transformers",
    "trl",
}


def part(path):
    """The name by which a file stands in the layers: its package under setbacks, or itself."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(nodes, inside=True):
    """Yield every module that is imported, for types alone as well.

    Args:
        nodes: parts of a parsed file.
        inside: also look into functions.
    """
    for node in nodes:
        if not inside and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from imports(node.orelse, inside)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "setbacks":
                yield from (f"setbacks.{alias.name}" for alias in node.names)
            else:
                yield node.module
        elif inside or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports(ast.iter_child_nodes(node), inside)


def rank(name):
    return next(index for index, layer in enumerate(LAYERS) if name in layer)


def violations(path, source):
    """The imports of a file that point the wrong way."""
    own = part(path)
    if own in ANYTHING:
        return []
    for module in imports([ast.parse(source)]):
        if not module.startswith("setbacks."):
            continue
        other = module.split(".")[1]
        if other != own and not other.startswith("__") and rank(other) <= rank(own):
            yield f"{own} -> {module}"


def name_of(path, root=ROOT.parent):
    """The dotted name of a module."""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def arrows(sources):
    """What each module imports of the others: in functions and for types alone as well.

    Args:
        sources: the text of each module, by its dotted name.
    """

    def imported(node):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:  # each a module, or something in one
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in sources else node.module

    return {
        name: {m for node in ast.walk(ast.parse(source)) for m in imported(node) if m in sources}
        - {name}
        for name, source in sources.items()
    }


def circle(sources):
    """Return the modules of an import circle; nothing where there is none."""
    try:
        TopologicalSorter(arrows(sources)).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_there_is_no_import_circle():
    assert circle({name_of(path): path.read_text(encoding="utf-8") for path in FILES}) == []


@pytest.mark.parametrize(
    ("a", "b", "is_circle"),
    [
        ("import setbacks.b", "import setbacks.a", True),
        ("from setbacks import b", "def f():\n  from setbacks.a import x", True),
        ("from setbacks.b import x", "if TYPE_CHECKING:\n  from setbacks.a import X", True),
        ("from setbacks.b import x", "", False),
    ],
)
def test_a_circle_is_found(a, b, is_circle):
    assert bool(circle({"setbacks": "", "setbacks.a": a, "setbacks.b": b})) is is_circle


def test_every_module_has_a_place():
    """A new module: name it in the layer where it belongs."""
    placed = set().union(*LAYERS)
    assert {part(path) for path in FILES} - ANYTHING <= placed
    assert sum(map(len, LAYERS)) == len(placed)


def test_pages_show_this_order():
    """In one line for contributors, and as a picture, whose rows are at their heights."""
    page = (ROOT.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"```\n(cli -> .*?)\n```", page, re.DOTALL)
    assert [set(re.findall(r"\w+", layer)) for layer in line.split("->")] == LAYERS
    picture = (ROOT.parent / "docs/images/layers.svg").read_text(encoding="utf-8")
    rows = {}
    for height, name in re.findall(r'y="(\d+)" text-anchor="middle"[^>]*>(\w+)<', picture):
        rows.setdefault(int(height), set()).add(name)
    assert [rows[height] for height in sorted(rows)] == LAYERS


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_down(path):
    assert list(violations(path, path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_libraries_are_imported_where_they_are_used(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {module.split(".")[0] for module in imports([tree], inside=False)}
    assert not found & HEAVY


# Length -----------------------------------------------------------------------------------------

MODULE, FUNCTION = 500, 80  # lines


def too_long(source):
    """Name the module if it is too long, and its long functions whose docstring gives no reason.

    A reason begins with the words "Long because".
    """
    if source.count("\n") > MODULE:
        yield "the module"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if lines > FUNCTION and "Long because" not in (ast.get_docstring(node) or ""):
                yield node.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_are_short_enough_to_read(path):
    assert list(too_long(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x = 1\n" * MODULE, []),
        ("x = 1\n" * (MODULE + 1), ["the module"]),
        ("def f():\n" + "    x = 1\n" * (FUNCTION - 1), []),
        ("def f():\n" + "    x = 1\n" * FUNCTION, ["f"]),
        ("class A:\n  async def f():\n" + "    x = 1\n" * FUNCTION, ["f"]),
        ("def f():\n    'Long because it is one table.'\n" + "    x = 1\n" * FUNCTION, []),
    ],
)
def test_the_rule_finds_what_is_too_long(source, found):
    assert list(too_long(source)) == found


# What opens text in the locale's encoding where none is named, and how many words it takes at most
# (a run folder's own `write_text` takes two).
OPENERS = {"open": 9, "fdopen": 9, "read_text": 0, "write_text": 1}


def without_encoding(tree):
    """Yield the calls that open text and do not say in which encoding."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        given = {word.arg for word in call.keywords}
        opens = name in OPENERS and len(call.args) <= OPENERS[name]
        if name == "open":  # `open` itself alone; a path's and an archive's are of bytes here
            mode = call.args[1:2] or [word.value for word in call.keywords if word.arg == "mode"]
            binary = bool(mode) and isinstance(mode[0], ast.Constant) and "b" in mode[0].value
            opens = isinstance(call.func, ast.Name) and not binary
        if (opens or "text" in given and name in ("run", "Popen")) and "encoding" not in given:
            yield ast.unparse(call)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_files_are_in_utf8_whatever_the_locale(path):
    assert list(without_encoding(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("open(a)", 1),
        ("open(a, 'w')", 1),
        ("open(a, 'wb')", 0),
        ("open(a, mode='rb')", 0),
        ("open(a, encoding='utf-8')", 0),
        ("(a / 'b').read_text()", 1),
        ("a.write_text(b)", 1),
        ("run.write_text('name', b)", 0),
        ("subprocess.run(a, text=True)", 1),
        ("subprocess.run(a)", 0),
    ],
)
def test_the_rule_finds_what_names_no_encoding(source, found):
    assert len(list(without_encoding(ast.parse(source)))) == found


# A command up to its first argument, in a text for people.
COMMAND = re.compile(r"\bsetbacks [a-z -]*$")


def unquoted(tree):
    """Yield what follows a command in a text without being quoted for a shell."""
    for text in (node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)):
        for before, part in pairwise(text.values):
            command = isinstance(before, ast.Constant) and COMMAND.search(before.value)
            word = ast.unparse(part.value) if isinstance(part, ast.FormattedValue) else ""
            if command and word and not word.startswith(("quoted(", "shlex.join(")):
                yield word


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_command_to_copy_works_in_folders_with_spaces(path):
    assert list(unquoted(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("f'first `setbacks train {run}`'", ["run"]),
        ("f'first `setbacks train {quoted(run)}`'", []),
        ("f'{a}: setbacks review plan ' f'{run.path}'", ["run.path"]),
        ("f'setbacks harvest --out {folder}'", ["folder"]),
        ("f'setbacks: {folder}'", []),
    ],
)
def test_the_rule_finds_a_command_that_is_not_quoted(source, found):
    assert list(unquoted(ast.parse(source))) == found


@pytest.mark.parametrize(
    ("file", "source", "found"),
    [
        ("records.py", "from setbacks.cli import main", ["records -> setbacks.cli"]),
        ("records.py", "from setbacks import recipe", ["records -> setbacks.recipe"]),
        ("recipe/__init__.py", "def f():\n  import setbacks.engines.local", 1),
        ("judges/llm.py", "from setbacks.methods import answers", 1),
        ("judges/llm.py", "if TYPE_CHECKING:\n  from setbacks.runs.folder import RunFolder", []),
        ("judges/llm.py", "if TYPE_CHECKING:\n  from setbacks.stages import judge", 1),
        ("judges/llm.py", "from setbacks.judges.refusal import refuses", []),
        ("cli/runs.py", "from setbacks.stages.report import report\nimport torch", []),
    ],
)
def test_the_rules_find_what_breaks_them(file, source, found):
    made = list(violations(ROOT / file, source))
    assert made == found or len(made) == found
