"""The page of guarantees names tests that there are, and every test of this folder."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = set(
    re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", (ROOT / "docs/guarantees.md").read_text())
)


def functions_of(path):
    """The names of the tests of a file."""
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in tree.body if getattr(node, "name", "").startswith("test_")}


def test_every_test_that_the_page_names_exists():
    assert len(NAMED) > 50
    assert [named for named in sorted(NAMED) if named[1] not in functions_of(named[0])] == []


def test_every_test_of_a_guarantee_is_on_the_page():
    here = [path.relative_to(ROOT).as_posix() for path in Path(__file__).parent.glob("test_*.py")]
    assert {(path, name) for path in here for name in functions_of(path)} <= NAMED
