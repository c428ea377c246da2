"""Recipes: what is told is what is done, and what cannot be is said in one line."""

from pathlib import Path

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from setbacks.cli.starter import reference, starter
from setbacks.data import Source
from setbacks.data.presets import PRESETS
from setbacks.engines.endpoint_options import Server
from setbacks.errors import InputError
from setbacks.methods.dpo import DPO
from setbacks.plugins import plugin
from setbacks.recipe import Engine, JudgeSpec, Recipe, Sampling, Section, section_of


@pytest.fixture
def load(tmp_path):
    """Load a recipe that is written to a file first."""

    def call(text, *overrides):
        path = tmp_path / "recipe.yaml"
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text), encoding="utf-8")
        return Recipe.load(path, overrides)

    return call


@pytest.fixture
def refused(load):
    """Load what is no recipe; return the message, which is one line."""

    def call(text, *overrides):
        with pytest.raises(InputError) as error:
            load(text, *overrides)
        assert "\n" not in str(error.value)
        return str(error.value)

    return call


def sections(section=Recipe, seen=None):
    """Every section that can be reached from the recipe."""
    seen = {} if seen is None else seen
    if section not in seen:
        seen[section] = None
        for field in section.model_fields.values():
            if inner := section_of(field.annotation):
                sections(inner, seen)
    return list(seen)


# Fields -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", sections(), ids=lambda s: s.__name__)
def test_every_field_says_what_it_is(section):
    assert issubclass(section, BaseModel) and (section.__doc__ or "").strip()
    for name, field in section.model_fields.items():
        assert (field.description or "").strip(), name


def test_the_walk_over_sections_finds_those_in_lists_and_beside_none():
    assert {Engine, JudgeSpec} <= set(sections()) and len(sections()) >= 12


def test_nothing_said_is_the_quickstart(load):
    assert load("") == load("# only a comment\n") == load("{}") == Recipe.load() == Recipe()


def test_the_starter_is_the_default_recipe_with_every_field_explained(load):
    text = starter()
    assert load(text) == Recipe()
    for name in Recipe.model_fields:
        assert f"\n{name}:" in text
    assert max(map(len, text.splitlines())) <= 110


def test_the_starter_has_the_name_that_it_is_given(load):
    assert load(starter("yes")) == Recipe(name="yes")


def test_the_reference_shows_defaults_that_differ_from_those_of_the_section():
    rows = [row for row in reference().splitlines() if row.startswith("| `sampling` |")]
    assert [row.split(" | ")[2] for row in rows] == [
        "`{max_new_tokens: 64, temperature: 0.8, top_p: 0.95}`",
        "`{max_new_tokens: 80, temperature: 0.8, top_p: 0.95}`",
        "see there",
    ]


def test_the_reference_names_every_field():
    text = reference()
    for section in sections():
        assert f"\n## {section.__name__}\n" in text
        for name in section.model_fields:
            assert f"| `{name}` |" in text


def test_a_recipe_does_not_change(load):
    with pytest.raises(ValueError):
        load("").seed = 3


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ({"model": "a/b"}, {"model": {"model": "a/b"}}),
        ({"judges": ["llm"]}, {"judges": [{"judge": "llm"}]}),
        ({"analyze": {"analyst": "a/b"}}, {"analyze": {"analyst": {"model": "a/b"}}}),
        ({"instructions": ["hub:a/b"]}, {"instructions": [{"source": "hub:a/b"}]}),
    ],
)
def test_a_name_stands_for_a_section(load, short, long):
    assert load(short) == load(long) != Recipe()


@pytest.mark.parametrize("section", ["induce", "analyze"])
def test_a_section_that_is_set_in_part_keeps_the_rest_of_the_fields_default(load, section):
    default = getattr(Recipe(), section).sampling
    assert default != Sampling(max_new_tokens=default.max_new_tokens)
    expected = default.model_copy(update={"max_new_tokens": 16})
    key = f"{section}.sampling.max_new_tokens=16"
    for recipe in (
        load({section: {"sampling": {"max_new_tokens": 16}}}),
        load("", key),
        load({section: {"sampling": {"top_k": 3}}}, key, f"{section}.sampling.top_k=50"),
    ):
        assert getattr(recipe, section).sampling == expected


def test_so_does_a_section_among_a_methods_options(load):
    correct = plugin("methods", "mistake_distillation").Options().correct
    assert correct.max_new_tokens != Sampling().max_new_tokens
    for method in ("mistake_distillation", "sft"):  # of another method, it is kept
        train = load("", f"train.method={method}", "train.correct.top_k=3").train
        assert train.correct == correct.model_copy(update={"top_k": 3})


class Outer(Section):
    """A section with a section in its section."""

    class Middle(Section):
        sampling: Sampling = Sampling(top_k=7)
        engine: Engine = Engine(batch_size=3)
        size: int = 1

    middle: Middle = Middle(sampling=Sampling(top_k=9, temperature=0.5), size=2)


def test_the_default_of_the_outermost_section_wins():
    middle = Outer(middle={"sampling": {"top_p": 0.5}}).middle
    assert middle.sampling == Sampling(top_k=9, temperature=0.5, top_p=0.5)
    assert middle.size == 2


def test_a_part_that_is_set_in_part_has_the_defaults_of_its_own_class():
    """Its name picks the class; an option of the default's class may not fit."""
    assert Outer(middle={"engine": {"device": "cpu"}}).middle.engine == Engine(device="cpu")


# Options of parts --------------------------------------------------------------------------------


def test_a_methods_options_stand_in_its_section(load):
    train = load({"train": {"method": "dpo", "beta": 0.3, "pairs": ["hub:a/b"]}}).train
    assert (train.beta, train.pairs[0].source) == (0.3, "hub:a/b")
    assert load("", "train.method=rlhf", "train.rlhf.kl=0.2").train.rlhf.kl == 0.2


def test_another_methods_options_are_kept_for_a_comparison(load, tmp_path):
    """All methods of a comparison share one section; each run then takes what is its own."""
    kept = load({"train": {"method": "sft", "beta": 0.3, "pairs": ["mine.jsonl"]}})
    assert not isinstance(kept.train, DPO.Options)
    assert str(tmp_path / "mine.jsonl") in [source.source for source in kept.parts(Source)]
    again = Recipe.parse(yaml.safe_load(kept.to_yaml()), "again")
    assert again == kept
    other = kept.model_dump(mode="json")
    other["train"]["method"] = "dpo"
    assert Recipe.parse(other, "other").train.beta == 0.3


def test_another_methods_defaults_are_dropped(load):
    """Recipes of version 0.1 held the options of all methods."""
    old = {"train": {"method": "sft", "beta": 0.1, "pairs": [], "rlhf": {"kl": 0.05}}}
    assert load(old) == load({"train": {"method": "sft"}})


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ({"method": "dpo", "beat": 0.1}, 'unknown key "train.beat". Did you mean "train.beta"?'),
        ({"method": "sft", "beta": -1}, "train.beta: must be greater than 0"),
        ({"method": "rlhf", "rlhf": {"kll": 1}}, 'unknown key "train.rlhf.kll"'),
        ({"method": "sft", "rlhf": {"kl": -1}}, "train.rlhf.kl: must be at least 0"),
    ],
)
def test_a_wrong_option_is_told(refused, train, says):
    assert says in refused({"train": train})


# Errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "key", "meant"),
    [
        ({"modle": "a/b"}, "modle", "model"),
        ({"train": {"epoch": 1}}, "train.epoch", "epochs"),
        ({"train": {"lora": {"rr": 1, "alhpa": 2}}}, "train.lora.alhpa", "alpha"),
        ({"induce": {"sampling": {"temprature": 1}}}, "induce.sampling.temprature", "temperature"),
        ({"model": {"batchsize": 1}}, "model.batchsize", "batch_size"),
        ({"analyze": {"analyst": {"modle": "a"}}}, "analyze.analyst.modle", "model"),
        ({"judges": [{"jugde": "llm"}]}, "judges.0.jugde", "judge"),
        ({"judges": [{"judge": "llm", "engine": {"dtyp": "auto"}}]}, "engine.dtyp", "dtype"),
        ({"instructions": [{"source": "hub:a/b", "limt": 3}]}, "instructions.0.limt", "limit"),
        (
            {"respond": {"suites": [{"name": "a", "kind": "safe", "source": ["hub:a/b"]}]}},
            "respond.suites.0.source",
            "sources",
        ),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(refused, data, key, meant):
    message = refused(data)
    *section, _ = key.rpartition(".")
    assert f'{key}"' in message and f'{"".join(section)}{meant}"?' in message


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"train": {"epochs": 0}}, "train.epochs"),
        ({"train": {"epochs": 1.5}}, "train.epochs"),
        ({"train": {"learning_rate": float("nan")}}, "train.learning_rate"),
        (
            {"train": {"learning_rate": float("inf")}},
            "learning_rate: must be a finite number",
        ),
        ({"seed": 2**31}, "seed: must be less than 2147483648"),
        ({"train": {"seed": 2**31}}, "train.seed"),
        ({"compare": {"seeds": 101}}, "compare.seeds: must be at most 100"),
        ({"loop": {"stream": ["x.jsonl"]}}, "loop.stream.0: must be a section, such as {name: VAL"),
        ({"language": "xx"}, "language"),
        ({"instructions": []}, "instructions"),
        ({"instructions": [{"source": "a", "limit": 0}]}, "instructions.0.limit"),
        ({"judges": [{"kinds": ["evil"]}]}, "judges.0.kinds.0"),
        ({"respond": {"suites": [{"name": "a b", "kind": "safe", "sources": ["a"]}]}}, "name"),
        ({"train": 3}, "train"),
        ({1: 2}, "1"),
    ],
)
def test_a_bad_value_is_named(refused, data, where):
    message = refused(data)
    assert "recipe.yaml: " in message and where in message


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"judges": []}, "judges: name at least one"),
        ({"judges": "llm"}, "judges: must be a list; write [llm]"),
        ({"judges": {"judge": "llm"}}, "judges: must be a list"),
        (
            {"judges": {"0": "llm"}},
            "judges: must be a list; no item is set by its number: write the whole list",
        ),
        ({"seed": "x"}, 'seed: must be a whole number, not "x"'),
        ({"train": {"epochs": 1.5}}, 'train.epochs: must be a whole number, not "1.5"'),
        ({"train": {"warmup": None}}, "train.warmup: must be a number"),
        ({"train": {"warmup": "much"}}, 'train.warmup: must be a number, not "much"'),
        ({"respond": {"guidance": "so"}}, 'respond.guidance: must be true or false, not "so"'),
    ],
)
def test_what_a_value_must_be_is_said_in_plain_words(refused, data, says):
    assert refused(data).endswith(f"recipe.yaml: {says}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: 1\nname: [", "line 2"),
        ("seed: 1\nname: a: b\n", "line 2"),
        ("seed: 1\n\ttabs: 2\n", "line 2"),
        ("- seed\n", "not a recipe"),
        ("just words", "not a recipe"),
        ("name: !!python/object:os.system x", "line 1"),
        ("name: 2020-99-99", "not YAML"),
        ("name: \x00", "not YAML"),
        ("? [a, b]\n: c", "recipe.yaml"),
        ("[" * 1500, "not YAML"),
    ],
)
def test_what_is_no_yaml_is_told_with_its_line(refused, text, says):
    assert says in refused(text)


def test_what_is_no_text_is_told(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"name: \xff\xfe")
    for name, says in [("recipe.yaml", "cannot be read as text"), ("", "is a folder")]:
        with pytest.raises(InputError, match=says):
            Recipe.load(tmp_path / name)


def test_a_missing_recipe_names_the_nearest(tmp_path):
    (tmp_path / "quickstart.yaml").touch()
    with pytest.raises(InputError, match=r'no such recipe\. Did you mean "quickstart.yaml"\?'):
        Recipe.load(tmp_path / "quikstart.yaml")


def test_a_run_from_before_attempts_keeps_what_it_did(tmp_path):
    (tmp_path / "recipe.yaml").write_text("train: {samples: 2, epochs: 3}")
    train = Recipe.load(tmp_path / "recipe.yaml", of_run=True).train
    assert (train.attempts, train.min_overlap, train.epochs) == (2, 0, 3)
    with pytest.raises(InputError, match="samples"):
        Recipe.load(tmp_path / "recipe.yaml")


def test_two_suites_of_one_name_are_refused(refused):
    """Their responses would have the same ids, and their rates would be pooled."""
    suite = {"name": "a", "kind": "safe", "sources": ["hub:a/b"]}
    refused({"respond": {"suites": [suite, suite | {"kind": "harmful"}]}})
    alike = refused({"respond": {"suites": [suite, suite | {"name": "A"}]}})
    assert alike.endswith('"a" and "A" differ only in case; names must be unique')


# Overrides --------------------------------------------------------------------------------------


def test_overrides_win_over_the_file(load):
    recipe = load(
        "seed: 1\ntrain: {epochs: 3, batch_size: 2}",
        "train.epochs=5",
        "name=a=b",
        "train.mix.helpful=0.5",
        "respond.guidance=false",
        "analyze.contrast=[]",
    )
    assert (recipe.seed, recipe.train.epochs, recipe.train.batch_size) == (1, 5, 2)
    assert (recipe.name, recipe.train.mix.helpful) == ("a=b", 0.5)
    assert recipe.respond.guidance is False and recipe.analyze.contrast == []


def test_overrides_do_without_a_file():
    assert Recipe.load(None, ["seed=3"]) == Recipe(seed=3)


@pytest.mark.parametrize("written", ["model: a/b", "model: {model: a/b}"])
def test_an_override_beside_the_models_name_keeps_the_model(load, written):
    model = load(written, "model.batch_size=4").model
    assert (model.model, model.batch_size) == ("a/b", 4)


def test_the_analysts_name_is_kept_beside_an_override(load):
    analyst = load("analyze: {analyst: a/b}", "analyze.analyst.dtype=float32").analyze.analyst
    assert (analyst.model, analyst.dtype) == ("a/b", "float32")


@pytest.mark.parametrize("word", ["epochs", "=3", "", "--train.epochs"])
def test_an_override_has_a_key_and_a_value(refused, word):
    assert "key.path=value" in refused("", word)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trian.epochs=3", 'Did you mean "train"?'),
        ("train.epohs=3", 'Did you mean "train.epochs"?'),
        ("train.epochs=many", "train.epochs"),
        ("train=3", "train"),
        ("name=[unclosed", "name=[unclosed"),
        ("train.steps={", "train.steps={: did not find expected node content"),
    ],
)
def test_a_bad_override_is_told(refused, override, says):
    assert says in refused("", override)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sede=1", 'unknown key "sede". Did you mean "seed"?'),
        ("limit=3", 'unknown key "limit". Available: name, '),
        ("train.nope=3", 'unknown key "train.nope".'),  # too many to list
        ("respond.suites=[{kind: safe}]", "respond.suites.0.name: is missing"),
        ("train.warmup=1", "train.warmup: must be less than 1"),
        ("train.epochs=0", "train.epochs: must be at least 1"),
        ("respond.suites=[{name: a, kind: odd}]", "respond.suites.0.kind: must be 'harmful'"),
    ],
)
def test_a_wrong_key_or_value_is_told_in_plain_words(refused, override, says):
    line = refused("", override)
    assert says in line and "Input" not in line
    assert ("Available" in line) == ("Available" in says)


def test_what_is_wrong_is_said_to_be_in_the_file_or_on_the_command_line(refused, tmp_path):
    assert refused("seed: 1", "train.epoch=3").startswith("the command line: unknown key")
    data = refused("train: {epoch: 3}", "seed=1")
    assert data.startswith(f"{tmp_path}/recipe.yaml: unknown key")


@pytest.mark.parametrize("overrides", [(), ("seed=3",)])
def test_interpolation_stays_text(load, monkeypatch, overrides):
    """A recipe is data: it must not read the environment, whoever wrote it."""
    monkeypatch.setenv("SECRET", "sesame")
    for text in ("${oc.env:SECRET}", "${seed}", "${"):
        assert load({"name": text}, *overrides).name == text
    assert load("", "name=${oc.env:SECRET}").name == "${oc.env:SECRET}"


# Paths ------------------------------------------------------------------------------------------


def test_paths_count_from_the_recipes_folder(load, tmp_path):
    recipe = load(
        {
            "instructions": ["data.jsonl", "../up.csv", "/abs.json", "builtin:redteam", "hub:a/b"],
            "train": {"safe": [{"source": "preset:x", "path": "copy.json"}]},
            "respond": {"suites": [{"name": "a", "kind": "safe", "sources": ["deep.jsonl"]}]},
        }
    )
    assert [source.source for source in recipe.instructions] == [
        str(tmp_path / "data.jsonl"),
        str(tmp_path.parent / "up.csv"),
        "/abs.json",
        "builtin:redteam",
        "hub:a/b",
    ]
    assert recipe.train.safe[0].path == str(tmp_path / "copy.json")
    assert recipe.train.safe[0].source == "preset:x"
    assert recipe.respond.suites[0].sources[0].source == str(tmp_path / "deep.jsonl")


def test_a_models_folder_counts_from_the_recipes_folder_too(load, tmp_path):
    assert Path(load("model: ./mine").model.model) == tmp_path / "mine"
    assert load("model: owner/mine").model.model == "owner/mine"


def test_paths_without_a_file_count_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.load(None, ["instructions=[data.jsonl]"])
    assert recipe.instructions[0].source == str(tmp_path / "data.jsonl")


def test_the_home_folder_is_known(load, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    recipe = load("instructions: ['~/data.jsonl']")
    assert recipe.instructions[0].source == str(tmp_path / "home" / "data.jsonl")


def test_an_unknown_home_folder_is_told(refused):
    assert "nobody-of-this-name" in refused("instructions: ['~nobody-of-this-name/x.jsonl']")


RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_ours_loads_and_names_what_there_is(path):
    recipe = Recipe.load(path)
    plugin("methods", recipe.train.method)
    for contender in recipe.compare.methods:
        plugin("methods", contender.method)
    for judge in recipe.judges:
        plugin("judges", judge.judge)
    for source in recipe.parts(Source):
        preset = source.source.removeprefix("preset:")
        assert preset == source.source or preset in PRESETS, source.source


def test_compare_tests_on_rows_that_it_does_not_learn_and_that_validation_does_not_use():
    """Of one file in one order, each use takes other rows."""
    compare, validation = (
        Recipe.load(path) for path in RECIPES if path.stem in ("compare", "controls")
    )
    train = compare.train
    learned = [*compare.instructions, *compare.analyze.contrast, *train.helpful, *train.safe]
    used = [*learned, *(s for suite in validation.respond.suites for s in suite.sources)]
    shared = 0
    for test in (source for suite in compare.respond.suites for source in suite.sources):
        for other in used:
            if (test.source, test.split) == (other.source, other.split):
                shared += 1
                assert test.shuffle == other.shuffle is not None, test.source
                assert other.limit is not None and other.limit <= test.skip, test.source
    assert shared == 1  # CatQA


def test_the_papers_recipes_hold_no_key_and_divide_what_is_learnt_from_what_is_tested():
    assert {path.stem for path in RECIPES} >= {"paper", "paper-zh"}
    for name in ("paper", "paper-zh"):
        recipe = Recipe.load(next(path for path in RECIPES if path.stem == name))
        (endpoint,) = recipe.parts(Server)
        assert endpoint.api_key_env == "OPENAI_API_KEY"
        learned = {
            (s.source, s.split)
            for s in (*recipe.instructions, *recipe.train.safe, *recipe.train.helpful)
        }
        tested = {(s.source, s.split) for suite in recipe.respond.suites for s in suite.sources}
        assert not learned & tested


# Round trips ------------------------------------------------------------------------------------

texts = st.text(max_size=20)
recipes = st.fixed_dictionaries(
    {},
    optional={
        "name": texts,
        "seed": st.integers(0, 2**31 - 1),
        "model": texts | st.fixed_dictionaries({"model": texts, "device": texts}),
        "instructions": st.lists(
            texts.map("hub:".__add__)
            | st.fixed_dictionaries(
                {"source": st.just("/a.csv")},
                optional={"where": st.dictionaries(texts, texts | st.booleans() | st.integers())},
            ),
            min_size=1,
            max_size=2,
        ),
        "train": st.fixed_dictionaries(
            {},
            optional={
                "learning_rate": st.floats(0, 1, exclude_min=True),
                "mix": st.fixed_dictionaries({"helpful": st.floats(0, 1e300)}),
                "lora": st.fixed_dictionaries({"targets": texts | st.lists(texts)}),
            },
        ),
        "judges": st.lists(texts, min_size=1, max_size=2, unique=True),
    },
)


@settings(max_examples=25)
@given(recipes)
@example({"name": "\x85\u2028\ufeff\x00\r\n\t# : - 'x' \U0001f600"})
@example({"name": "yes", "model": "null", "judges": ["1e3", "~"]})
@example({"name": "\x85"})
@example({"name": "\u2028a"})
def test_a_recipe_comes_back_from_its_yaml(tmp_path, recipe_data):
    try:
        recipe = Recipe.model_validate(recipe_data).rebased(tmp_path)
    except InputError:  # "~name" is the home folder of nobody here
        assume(False)
    path = tmp_path / "recipe.yaml"
    path.write_bytes(recipe.to_yaml().encode())
    assert Recipe.load(path) == recipe


@settings(max_examples=100)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | texts | st.dates(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*Recipe.model_fields, "source"]), inner, max_size=3)
            | st.dictionaries(texts | st.integers(), inner, max_size=2)
        ),
        max_leaves=6,
    ),
    st.lists(st.sampled_from(["seed=3", "train.epochs=2", "judges.0=llm", "name=x", "model.x=1"])),
)
def test_data_is_a_recipe_or_is_refused(load, recipe_data, overrides):
    try:
        assert isinstance(load(recipe_data, *overrides), Recipe)
    except InputError as error:
        assert "\n" not in str(error)


@settings(max_examples=100)
@given(st.text(st.characters(codec="utf-8")) | st.text("ab:-{}[]&*!|>%@'\"\n #,?~0", max_size=30))
def test_text_is_a_recipe_or_is_refused(load, text):
    try:
        assert isinstance(load(text), Recipe)
    except InputError as error:
        assert "\n" not in str(error)


def test_paths_of_an_arm_and_of_a_study_start_from_the_recipes_folder(tmp_path, monkeypatch):
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path)
    arm = {"method": "sft", "name": "mine", "train": {"safe": "safe.jsonl", "start": "a/adapter"}}
    other = {"method": "sft", "train": {"learning_rate": 0.001, "safe": "builtin:refusals"}}
    data = {"compare": {"methods": [arm, other]}, "study": {"labels": "labels.jsonl", "least": 3}}
    path = tmp_path / "project" / "mine.yaml"
    path.write_text(yaml.safe_dump(data))
    recipe = Recipe.load(path)
    mine, plain = (method.train for method in recipe.compare.methods)
    assert [source["source"] for source in mine["safe"]] == [str(path.parent / "safe.jsonl")]
    assert mine["start"] == str(path.parent / "a/adapter") and plain == other["train"]
    (labels,) = recipe.study["labels"]
    assert labels["source"] == str(path.parent / "labels.jsonl") and recipe.study["least"] == 3
