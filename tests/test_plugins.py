"""What is found by name: a part's class is checked once, and a broken one does not hide others."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from setbacks.errors import InputError, SetbacksError
from setbacks.judges import check_judge
from setbacks.plugins import BASES, installed, load_all, plugin
from setbacks.recipe import Recipe
from setbacks.runs.folder import RunFolder
from setbacks.runs.session import Session
from setbacks.stages.train import check, train

# A method of another package; a test replaces lines of it.
METHOD = """
from setbacks.methods import Method, example
from setbacks.recipe import Train


class Options(Train):
    pass


class Mine(Method):
    "Teaches one fixed answer."

    name = "mine"
    Options = Options

    def examples(self, recipe, material):
        return [example("fixed", "<question>", "<answer>", [])]
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package with one part, as pip would, for this process."""
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    monkeypatch.syspath_prepend(tmp_path)

    def write(code, group="methods", value="mine_parts:Mine"):
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[setbacks.{group}]\nmine={value}\n")
        (tmp_path / "mine_parts.py").write_text(code)
        installed.cache_clear()

    yield write
    sys.modules.pop("mine_parts", None)
    installed.cache_clear()


def refusal(group="methods"):
    """Return the one line with which the part is refused."""
    with pytest.raises(SetbacksError) as failed:
        plugin(group, "mine")
    assert "\n" not in str(failed.value)
    return str(failed.value)


@pytest.mark.parametrize(
    ("group", "value", "base"),
    [
        ("judges", "mine_parts:Mine", "setbacks.judges.Judge"),
        ("studies", "mine_parts", "setbacks.studies.Study"),
    ],
)
def test_a_part_that_is_no_subclass_says_what_to_subclass(install, group, value, base):
    install("class Mine:\n    def judge(self, items): ...\n", group, value)
    assert f"{value} must be a subclass of {base}" in refusal(group)


def test_a_recipe_with_such_a_judge_says_so_too(install):
    install("class Mine:\n    def judge(self, items): ...\n", "judges")
    with pytest.raises(SetbacksError, match=r"must be a subclass of setbacks\.judges\.Judge"):
        Recipe.parse({"judges": ["mine"]}, "a recipe")


def test_a_complete_method_is_found(install):
    install(METHOD)
    recipe = Recipe.parse({"train": {"method": "mine"}}, "a recipe")
    assert type(recipe.train) is plugin("methods", "mine").Options


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("Options(Train)", "Options(Section)", "Mine.Options must be a subclass of .*recipe.Train"),
        ("Options(Train)", "Options(BaseModel)", "Mine.Options must be a subclass of .*Train"),
        ("Options = Options", "Options = 3", "Mine.Options must be a subclass of .*recipe.Train"),
        ('name = "mine"', 'name = "other"', 'has the name "other"; it must equal the name of the'),
        ('name = "mine"', "", "mine_parts:Mine must define `name`;"),
        ("def examples(", "def exmples(", "mine_parts:Mine must define `examples`;"),
    ],
)
def test_a_mistake_in_a_methods_class_is_one_line(install, old, new, says):
    more = "from pydantic import BaseModel\nfrom setbacks.recipe import Section\n"
    install(more + METHOD.replace(old, new, 1))
    assert re.match(f'method "mine" cannot be used: .*{says}', refusal())


def test_a_study_needs_its_title_and_a_judge_its_method(install):
    install("from setbacks.studies import Study\nclass Mine(Study): ...\n", "studies")
    line = refusal("studies")
    assert 'study "mine"' in line and "must define `title` and `question` and `run`" in line


def test_a_judges_options_are_of_a_judge(install):
    code = """
from setbacks.judges import Judge
from setbacks.recipe import Section
class Mine(Judge):
    Options = Section
    def judge(self, items): ...
"""
    install(code, "judges")
    assert "Mine.Options must be a subclass of setbacks.recipe.JudgeSpec" in refusal("judges")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("x = 1\nclass Mine(:\n", r"SyntaxError: .* \(\S+mine_parts\.py, line 2\)"),
        ("\n\nundefined\n", r"NameError: .*undefined.* \(\S+mine_parts\.py, line 3\)"),
        ("import no_such_library\n", r"ModuleNotFoundError: .*no_such_library.*, line 1\)"),
        ("1 / 0\n", r"ZeroDivisionError: .*, line 1\)"),
        ("class Other: ...\n", "AttributeError: .*'Mine'"),
    ],
)
def test_any_error_at_import_names_the_plugin_and_the_line(install, code, says):
    install(code)
    assert re.match(rf'method "mine" cannot be loaded: mine_parts:Mine: {says}', refusal())


def test_list_and_doctor_show_the_others_and_why_one_is_broken(install, cli_in_process):
    install("class Mine(:\n")
    listed = cli_in_process("list", "--json")
    assert listed.returncode == 0, listed.stderr
    methods = json.loads(listed.stdout)["methods"]
    assert methods["mine"].startswith('method "mine" cannot be loaded')
    assert list(methods) == sorted(methods) and methods["sft"].startswith("Safe answers")
    examined = cli_in_process("doctor", "--json")
    shown = [row for row in json.loads(examined.stdout) if row["name"] == "methods"]
    assert [row["ok"] for row in shown] == [True, False] and not shown[1]["needed"]
    assert "sft" in shown[0]["found"] and "mine" not in shown[0]["found"]
    assert 'method "mine" cannot be loaded' in shown[1]["found"]


def test_a_broken_method_leaves_other_recipes_alone(install, cli_in_process):
    """Unknown keys are still explained, and `setbacks new` still writes all options."""
    install("class Mine(:\n")
    with pytest.raises(InputError, match='unknown key "train.keeep"'):
        Recipe.parse({"train": {"keeep": 1}}, "a recipe")
    made = cli_in_process("new", "mine.yaml")
    assert made.returncode == 0, made.stderr


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return 1 / 0", r"`examples` failed: ZeroDivisionError: .*mine_parts\.py, line 17\)"),
        ("return example(3)", r"`examples` failed: TypeError: .*mine_parts\.py, line 17\)"),
        (
            "pass",
            r"`examples` must return a list of Example, not NoneType \(.*mine_parts\.py, line 16\)",
        ),
        ("return [{}]", r"`examples` must return a list of Example, not of dict \(.*, line 16\)"),
    ],
)
def test_a_bug_in_examples_names_the_method_and_the_line(install, body, says):
    install(METHOD.replace('return [example("fixed", "<question>", "<answer>", [])]', body))
    recipe = Recipe.parse({"train": {"method": "mine"}}, "a recipe")
    with pytest.raises(SetbacksError, match=rf"^method mine: {says}") as failed:
        check(recipe)
    assert "\n" not in str(failed.value)


def test_a_method_without_mistakes_and_examples_says_why(install, data, tiny, tmp_path):
    """It forgot `uses_mistakes`, so that there was no material."""
    nothing = METHOD.replace('[example("fixed", "<question>", "<answer>", [])]', "material")
    install(nothing.replace('"Teaches', 'learns_analyses = True\n    "Teaches'))
    recipe = Recipe.parse(
        {"model": str(tiny), "instructions": str(data), "train": {"method": "mine"}}, "a recipe"
    )
    with (
        RunFolder(tmp_path / "run", recipe) as folder,
        Session(folder) as run,
        pytest.raises(InputError, match="`uses_mistakes` is False, so no mistakes were analyzed"),
    ):
        train(run, [])


def test_the_example_methods_own_tests_pass(monkeypatch):
    """The tests that docs/own-method.md shows."""
    package = Path(__file__).parents[1] / "examples" / "plugin"
    monkeypatch.syspath_prepend(package)
    module = runpy.run_path(str(package / "test_first_sentence.py"))
    tests = [module[name] for name in module if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


@pytest.mark.parametrize("group", BASES)
def test_every_part_that_ships_loads(group):
    usable, broken = load_all(group)
    assert usable.keys() == installed(group).keys() and not broken
    assert all(part.Options for part in usable.values())


def test_a_name_that_is_not_installed_is_refused_with_the_nearest():
    with pytest.raises(InputError, match='Did you mean "probe"'):
        check_judge(Recipe.parse({"judges": ["prob"]}, "a recipe").judges[0])
