"""What is found by name: a part must be a subclass of its group's base class."""

import pytest

from setbacks.errors import InputError, SetbacksError
from setbacks.judges import check_judge
from setbacks.plugins import BASES, installed, plugin
from setbacks.recipe import Recipe


@pytest.fixture
def plain(tmp_path, monkeypatch):
    """A package with a judge and a study that are not subclasses of anything."""
    info = tmp_path / "plain-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plain\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[setbacks.judges]\nplain=plain_parts:Plain\n[setbacks.studies]\nplain=plain_parts\n"
    )
    (tmp_path / "plain_parts.py").write_text("class Plain:\n    def judge(self, items): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    installed.cache_clear()
    yield
    installed.cache_clear()


@pytest.mark.parametrize(
    ("group", "name", "base"),
    [
        ("judges", "plain_parts:Plain", "setbacks.judges.Judge"),
        ("studies", "plain_parts", "setbacks.studies.Study"),
    ],
)
def test_a_part_that_is_no_subclass_says_what_to_subclass(plain, group, name, base):
    with pytest.raises(SetbacksError) as failed:
        plugin(group, "plain")
    message = str(failed.value)
    assert f"{name} must be a subclass of {base}" in message and "\n" not in message


def test_a_recipe_with_such_a_judge_says_so_too(plain):
    with pytest.raises(SetbacksError, match=r"must be a subclass of setbacks\.judges\.Judge"):
        Recipe.parse({"judges": ["plain"]}, "a recipe")


@pytest.mark.parametrize("group", BASES)
def test_every_part_that_ships_loads(group):
    for name in installed(group):
        assert plugin(group, name).Options


def test_a_name_that_is_not_installed_is_refused_with_the_nearest():
    with pytest.raises(InputError, match='Did you mean "probe"'):
        check_judge(Recipe.parse({"judges": ["prob"]}, "a recipe").judges[0])
