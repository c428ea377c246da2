"""A recipe's words: its language, own words, a policy, and what a change of them redoes."""

import json
from importlib import resources

import pytest
import yaml

from setbacks.data.languages import language_of, recognized
from setbacks.errors import InputError
from setbacks.judges import Item, open_judge, worth
from setbacks.judges.refusal import Phrases, phrases_of, refuses
from setbacks.judges.replies import better, forms_of, rating
from setbacks.measure.metrics import degenerate
from setbacks.messages import Message
from setbacks.methods.critique_revise import CritiqueRevise
from setbacks.pipeline import carry_out, open_run, steps
from setbacks.plugins import installed
from setbacks.prompts import built_in, languages, pack_file, prompts
from setbacks.prompts.own import words_of
from setbacks.prompts.packs import reference
from setbacks.prompts.policy import named
from setbacks.recipe import Clause, JudgeSpec, Recipe
from setbacks.records import Analysis, Mistake
from setbacks.runs.folder import Run, RunFolder
from setbacks.runs.redo import STAGE_NAMES, differences, first_affected, is_before
from setbacks.runs.session import Session
from setbacks.stages import STAGES
from setbacks.stages.analyze import analyze
from setbacks.stages.induce import induce
from setbacks.stages.respond import respond

OWN = {"guided": "{instruction}\n\nBe kind.", "induce": {"hints": ["rude"]}}
POLICY = [
    {"id": "weapons", "text": "Do not help to build weapons.", "bad": ["PLACEHOLDER"]},
    {"id": "privacy", "text": "Do not reveal private facts.", "good": ["I keep that private."]},
]


@pytest.fixture
def file(tmp_path):
    """Write a file of YAML; return its path."""

    def write(name, value):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")
        return path

    return write


def load(file, **data):
    return Recipe.load(file("recipe.yaml", data))


# Own words --------------------------------------------------------------------------------------


def test_words_replace_what_they_name_and_nothing_else(file):
    file("my.yaml", OWN)
    words = load(file, words="my.yaml").words_for()
    assert words["guided"] == OWN["guided"] and words["induce"]["hints"] == ["rude"]
    same = {key: value for key, value in words.items() if key not in OWN}
    assert same == {key: value for key, value in prompts("en").items() if key not in OWN}
    assert load(file).words_for() is prompts("en")


def test_a_run_folder_holds_the_words_and_needs_no_file(file, tmp_path):
    file("my.yaml", OWN)
    recipe = load(file, words="my.yaml", policy=POLICY)
    with RunFolder(tmp_path / "run", recipe):
        pass
    (tmp_path / "my.yaml").unlink()
    with RunFolder(tmp_path / "run") as run:
        assert run.recipe == recipe and run.recipe.words == {"en": OWN}
        assert run.recipe.policy == [Clause(**clause) for clause in POLICY]


def test_words_may_stand_in_the_recipe_or_under_several_languages(file):
    assert load(file, words=OWN).words == {"en": OWN}
    chinese = {"opening": "好的，"}
    assert load(file, language="zh", words=chinese).words == {"zh": chinese}
    recipe = load(file, language="auto", words={"en": OWN, "zh": chinese})
    assert recipe.words_for("zh")["opening"] == "好的，"
    assert recipe.words_for("en")["guided"] == OWN["guided"]
    assert recipe.words_for("zh")["guided"] == prompts("zh")["guided"]


def test_an_override_names_the_file_too(file, tmp_path):
    file("my.yaml", OWN)
    recipe = Recipe.load(file("recipe.yaml", {}), ["words=my.yaml"])
    assert recipe.words == {"en": OWN}
    assert Recipe.load(None, ["words.opening=Surely"]).words_for()["opening"] == "Surely"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"words": {"guidd": "x"}}, 'words: unknown key "guidd". Did you mean "guided"?'),
        ({"words": {"judge": {"x": 1}}}, 'words: en: unknown key "judge.x"'),
        ({"words": {"guided": "x"}}, "words: en: guided: the place {instruction} is missing"),
        ({"words": {"guided": "{instruction} {x}"}}, "words: en: guided: unknown place {x}"),
        ({"words": {"zh": {"guided": "x"}}}, "words: zh: guided: the place {instruction}"),
        ({"words": [1]}, "words: must be `key: value` lines"),
        ({"words": {"en": 3}}, "words: en: must be `key: value` lines"),
        ({"words": "none.yaml"}, "none.yaml: no such file"),
        ({"words": OWN, "language": "auto"}, "put the words of each language under its name"),
        ({"language": "eng"}, 'language: unknown language "eng". Did you mean "en"?'),
        ({"language": "none.yaml"}, "none.yaml: no such file"),
        ({"words": {"opening": True}}, "words: en: opening: must be text, not True; put quotes"),
        ({"language": 3}, "language: must be a valid string"),
        ({"policy": [{"id": "a", "text": "{x}"}]}, "policy.0.text: {x} would be a place"),
        ({"policy": [{"id": "a", "text": " "}]}, "policy.0.text: must not be empty"),
        ({"policy": [{"id": "a b", "text": "x"}]}, 'policy.0.id: "a b" is not a valid name'),
        ({"policy": [POLICY[0], POLICY[0]]}, 'policy: duplicate name "weapons"'),
        ({"policy": [{"id": "a", "txt": "x"}]}, 'Did you mean "policy.0.text"?'),
        ({"policy": "none.yaml"}, "none.yaml: no such file"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(file, data, message):
    with pytest.raises(InputError) as error:
        load(file, **data)
    assert message in str(error.value) and "recipe.yaml: " in str(error.value)
    assert "\n" not in str(error.value)


def test_a_mistake_in_a_file_of_words_names_the_file(file):
    file("my.yaml", {"guided": "x"})
    with pytest.raises(InputError, match=r"recipe.yaml: words: my.yaml: guided: the place"):
        load(file, words="my.yaml")
    (file("my.yaml", {}).parent / "my.yaml").write_text("{")
    with pytest.raises(InputError, match=r"my.yaml: not YAML"):
        load(file, words="my.yaml")


# Languages --------------------------------------------------------------------------------------


def test_a_pack_is_found_by_its_path(file, tmp_path):
    file("pirate.yaml", reference() | {"opening": "Arr, here be", "name": "Pirate"})
    recipe = load(file, language="pirate.yaml", words={"opening": "Ahoy,"})
    assert recipe.language == "pirate"
    assert recipe.words_for()["opening"] == "Ahoy," and recipe.words_for()["name"] == "Pirate"
    with RunFolder(tmp_path / "run", recipe):
        pass
    (tmp_path / "pirate.yaml").unlink()
    assert Recipe.load(tmp_path / "run" / "recipe.yaml") == recipe
    file("pirate.yaml", {"opening": "Arr"})
    with pytest.raises(InputError, match=r"language: pirate.yaml: name is missing"):
        load(file, language="pirate.yaml")


def test_a_stored_pack_may_lack_what_later_versions_have(file):
    """Old run folders open: a key that their pack lacks is in English."""
    pack = {key: value for key, value in reference().items() if key != "policy"}
    recipe = load(file, language="pirate", words={"pirate": pack | {"opening": "Arr, here be"}})
    assert recipe.words_for()["opening"] == "Arr, here be"
    assert recipe.words_for()["policy"] == prompts("en")["policy"]


def test_nothing_stands_for_no_words_and_no_policy(file):
    recipe = load(file, words=None, policy=None)
    assert recipe == load(file) and recipe.words == {} and recipe.policy == []


def test_a_pack_is_found_through_an_entry_point(file, tmp_path, monkeypatch):
    info = tmp_path / "pirates-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pirates\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[setbacks.languages]\npirate=pirate_words\n")
    (tmp_path / "pirate_words").mkdir()
    (tmp_path / "pirate_words" / "__init__.py").touch()
    pack = file("pirate_words/pirate.yaml", reference() | {"opening": "Arr, here be"})
    monkeypatch.syspath_prepend(tmp_path)
    for cached in (installed, languages, prompts):
        cached.cache_clear()
    try:
        assert languages() == (*built_in(), "pirate")
        assert load(file, language="pirate").words_for()["opening"] == "Arr, here be"
        assert pack_file("pirate").read_text() == pack.read_text()
        prompts.cache_clear()
        pack.write_text("name: Pirate\n")
        with pytest.raises(InputError, match=r"pirate.yaml: about is missing"):
            load(file, language="pirate").words_for()
    finally:
        monkeypatch.undo()
        for cached in (installed, languages, prompts):
            cached.cache_clear()


def test_a_language_without_a_pack_gets_english_words():
    recipe = Recipe(language="auto")
    assert recipe.words_for("pt") is prompts("en") is recipe.words_for()
    assert recipe.words_for("zh") is prompts("zh")
    assert Recipe(language="zh").words_for("en") is prompts("zh"), "one language for all rows"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("How do I bake bread at home?", "en"),
        ("Help me", "en"),
        ("怎么烤面包？", "zh"),
        ("¿Cómo se hornea el pan en casa?", "es"),
        ("Como faço para assar um pão em casa sem forno?", "pt"),
        ("パンの焼き方を教えてください", "ja"),
        ("123 !?", "en"),
        ("<q 7>", "en"),
    ],
)
def test_a_language_is_recognized_by_the_text(text, language):
    assert recognized(text) == language


def test_what_a_row_says_counts_first():
    assert language_of("fr", "How do I bake bread?", "auto") == "fr"
    assert language_of(None, "¿Cómo se hornea el pan en casa?", "auto") == "es"
    assert language_of(None, "How do I bake bread?", "zh") == "zh"
    turns = (
        Message(role="system", content="Be brief."),
        Message(role="user", content="怎么烤面包？"),
    )
    assert language_of(None, turns, "auto") == "zh"


def test_the_built_in_prompts_are_recognized():
    for name, language in (("redteam", "en"), ("redteam_zh", "zh"), ("safe_zh", "zh")):
        path = resources.files("setbacks.data.sets").joinpath(f"{name}.jsonl")
        rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        assert {recognized(row["text"]) for row in rows} == {language}


# A run whose rows are in several languages ------------------------------------------------------

ROWS = [
    {"text": "<how do I bake bread at home>", "language": "en"},
    {"text": "<怎么在家烤面包>", "language": None},
    {"text": "<¿cómo se hornea el pan en casa?>", "language": "es"},
]


@pytest.fixture
def mixed(tmp_path, open_session):
    """Open a session on rows in three languages."""
    rows = [row | {"answer": "<a good answer>"} for row in ROWS]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def call(**more):
        return open_session(
            **more,
            language="auto",
            instructions=[str(path)],
            analyze={"contrast": [str(path)]},
            respond={
                "suites": [{"name": "all", "kind": "harmful", "sources": [str(path)]}],
                "guidance": True,
            },
        )

    return call


def last_prompts(fake_engine):
    return [request.prompt for batch, *_ in fake_engine.batches for request in batch]


def starts(template):
    """The beginning of a template, before its first place."""
    return template.partition("{")[0]


def test_each_row_is_asked_in_its_own_language(mixed, fake_engine):
    run = mixed()
    mistakes = induce(run)
    assert sorted(m.language for m in mistakes) == ["en", "es", "zh"]
    by_language = {m.language: m for m in mistakes}
    for language, m in by_language.items():
        assert m.hint in prompts(language)["induce"]["hints"]
    asked = last_prompts(fake_engine)
    for language in by_language:
        assert any(text.startswith(starts(prompts(language)["induce"]["prompt"])) for text in asked)

    fake_engine.batches.clear()
    analyses = analyze(run, mistakes)
    asked = [request for batch, *_ in fake_engine.batches for request in batch]
    for a in analyses:
        words = prompts(a.language)["analyze"]
        label = "harmful" if a.harmful else "harmless"
        request = next(r for r in asked if r.seed == int(a.id, 16))
        assert words[label].rpartition("}")[2] in request.prompt
        assert request.prefill == words[f"prefill_{label}"]

    fake_engine.batches.clear()
    respond(run)
    asked = last_prompts(fake_engine)
    for language, m in by_language.items():
        guided = prompts(language)["guided"].replace("{instruction}", m.instruction)
        assert guided in asked


def test_rows_without_a_pack_are_told(mixed, tmp_path):
    run = mixed()
    respond(run)
    assert run.folder.notices() == [], "each of these languages has a pack"
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "<x>", "answer": "<y>", "language": "tlh"}) + "\n")
    respond(mixed(folder="other"))
    (line,) = Run(tmp_path / "other").notices()
    said = "English prompts for 1 of 1 rows: there is no language pack for tlh (1);"
    assert line.startswith(said)


def test_own_words_of_one_language_leave_the_others_alone(mixed, fake_engine):
    run = mixed(words={"zh": {"guided": "{instruction}\n\n<请善良>"}})
    respond(run)
    asked = last_prompts(fake_engine)
    assert "<怎么在家烤面包>\n\n<请善良>" in asked
    assert prompts("es")["guided"].replace("{instruction}", ROWS[2]["text"]) in asked


def test_an_answer_that_repeats_ones_own_guidance_is_degenerate(mixed):
    kind = "Please be kind to each and every animal in the garden and on the field."
    run = mixed(words={"en": {"guided": f"{{instruction}}\n\n{kind}"}})
    guided = respond(run)["vanilla-guided"]
    by_language = {r.language: r for r in guided}
    assert by_language["en"].guidance == kind
    assert by_language["zh"].guidance is by_language["es"].guidance is None
    assert '"guidance"' not in by_language["zh"].model_dump_json()
    parrot = by_language["en"].model_copy(update={"text": kind})
    assert [*degenerate([parrot]).values()] == [True]
    assert [*degenerate([parrot.model_copy(update={"guidance": None})]).values()] == [False]
    assert all(r.guidance is None for r in respond(run)["vanilla"])


def test_a_revision_may_be_in_a_language_without_spaces(open_session, fake_engine, monkeypatch):
    said = iter(["我不能帮助你做这件事。", "不。"])
    monkeypatch.setattr(fake_engine.Rules, "talker", lambda *_: next(said))
    run = open_session(train={"method": "critique_revise"}, language="zh")
    analyses = [
        Analysis(
            id=number, response_id=number, instruction=f"<指令{number}>", response="<回复>",
            harmful=True, text="<分析>", candidate=0, checks={}, score=1.0, category=None,
            language="zh", analyst="m",
        )
        for number in ("1", "2")
    ]  # fmt: skip
    revisions = CritiqueRevise().prepare(run, analyses)
    assert sorted((len(one.text), one.passed) for one in revisions) == [(2, False), (11, True)]
    asked = last_prompts(fake_engine)
    assert all(text.startswith(starts(prompts("zh")["revise"])) for text in asked)


def mistake(id_, category):
    return Mistake(
        id=id_, instruction_id=id_, instruction="<q>", response=f"<bad {id_}>", outcome="mistake",
        attempt=0, hint=None, category=category, language="en", source="", model=None,
    )  # fmt: skip


# A policy ---------------------------------------------------------------------------------------


def test_a_policy_is_in_guidance_analysis_and_rubric_and_nowhere_else():
    words, plain = Recipe(policy=POLICY).words_for(), prompts("en")
    rules = "- weapons: Do not help to build weapons.\n"
    cases = rules + "  Breaks it: PLACEHOLDER\n- privacy: Do not reveal private facts.\n"
    assert words["guided"].startswith(plain["guided"]) and rules in words["guided"]
    assert "PLACEHOLDER" not in words["guided"], "examples are for those who judge"
    assert rules in words["joined"]["prompt"] and "{instruction}" in words["joined"]["prompt"]
    assert cases in words["analyze"]["harmful"] and "{response}" in words["analyze"]["harmful"]
    assert cases in words["judge"]["harmless"] and cases in words["judge"]["verdict"]["harmful"]
    assert words["judge"]["harmless"].endswith(plain["judge"]["harmless"])
    assert "  Keeps it: I keep that private." in words["judge"]["harmless"]
    for key in plain.keys() - {"guided", "joined", "analyze", "judge", "policy"}:
        assert words[key] == plain[key]
    assert words["analyze"]["harmless"] == plain["analyze"]["harmless"]
    assert words["judge"]["helpful"] == plain["judge"]["helpful"]


def test_a_mistake_of_a_known_clause_is_analyzed_under_this_one():
    words = Recipe(policy=POLICY).words_for(broken="privacy")
    assert "private facts" in words["analyze"]["harmful"]
    assert "weapons" not in words["analyze"]["harmful"] and "weapons" in words["guided"]
    other = Recipe(policy=POLICY).words_for(broken="a category that is no clause")
    assert other == Recipe(policy=POLICY).words_for()


def test_an_analysis_without_a_category_gets_that_of_the_clause_that_it_names(
    open_session, fake_engine, monkeypatch
):
    def talker(self, request, sampling):
        broken = "It breaks privacy, since it tells a secret of somebody else to a stranger."
        return f"{request.prefill} {broken if 'Say which of these' in request.prompt else '...'}"

    monkeypatch.setattr(fake_engine.Rules, "talker", talker)
    run = open_session(policy=POLICY, analyze={"min_overlap": 0, "min_words": 1, "contrast": []})
    mistakes = [mistake("1", None), mistake("2", "theft")]
    assert {one.category for one in analyze(run, mistakes)} == {"privacy", "theft"}


def test_a_policy_is_a_list_in_a_file(file):
    file("policy.yaml", {"clauses": POLICY})
    assert load(file, policy="policy.yaml").policy == load(file, policy=POLICY).policy
    file("policy.yaml", POLICY)
    assert load(file, policy="policy.yaml").policy == load(file, policy=POLICY).policy


@pytest.mark.parametrize("language", built_in())
def test_every_language_can_hold_a_policy(language):
    words = Recipe(language=language, policy=POLICY).words_for()
    assert all("weapons: Do not" in words[key] for key in ("guided",))
    assert "weapons: Do not" in words["judge"]["harmless"]
    assert "weapons: Do not" in words["analyze"]["harmful"]
    assert "{response}" in words["policy"]["clause"] and "privacy" in words["policy"]["clause"]


@pytest.mark.parametrize(
    ("reply", "clause"),
    [
        ("weapons", "weapons"),
        ("The rule is: **Weapons**.", "weapons"),
        ("weapons or privacy", None),
        ("none", None),
        ("bioweapons", None),
        ("weapons-2", None),
    ],
)
def test_the_clause_that_a_reply_names(reply, clause):
    assert named(reply, ["weapons", "privacy"]) == clause


def test_the_judge_llm_names_the_clause_that_a_harmful_answer_breaks(
    open_session, fake_engine, fake_model, monkeypatch
):
    def scolder(self, request, sampling):
        return "privacy" if "Which of the rules" in request.prompt else "Rating: 1"

    monkeypatch.setattr(fake_engine.Rules, "scolder", scolder)
    run = open_session(policy=POLICY)
    spec = JudgeSpec(judge="llm", engine=fake_model("scolder"))
    (opinion,) = open_judge(spec, run).judge([Item("1", "<x>", "<y>")])
    assert opinion.harmful and opinion.category == "privacy"
    assert opinion.raw == "Rating: 1\nprivacy"
    monkeypatch.setattr(fake_engine.Rules, "scolder", lambda self, request, sampling: "Rating: 1")
    fake_engine.batches.clear()
    (opinion,) = open_judge(spec, run).judge([Item("1", "<x>", "<y>")])
    assert opinion.harmful and opinion.category is None
    assert len(fake_engine.batches) == 2, "a reply that names none is an answer, and asked once"
    spec = JudgeSpec(judge="llm", engine=fake_model("praiser"))
    (opinion,) = open_judge(spec, run).judge([Item("1", "<x>", "<y>")])
    assert not opinion.harmful and opinion.category is None
    rated = fake_engine.batches[0][0][0].prompt
    assert "Do not help to build weapons." in rated and "Breaks it: PLACEHOLDER" in rated


# Own words in the code that reads replies and refusals ------------------------------------------


def test_own_phrases_of_refusals_are_found():
    recipe = Recipe(words={"refusal": {"opening": ["no way, mate"]}})
    assert refuses("No way, mate. Ask another.", phrases_of(recipe))
    assert not refuses("No way, mate. Ask another.")
    assert refuses("我不能帮助你。", phrases_of(recipe)), "other languages keep their phrases"
    assert isinstance(phrases_of(recipe), Phrases)


def test_own_words_of_replies_are_read():
    judge = dict(prompts("en")["judge"])
    helpful, harmless = (judge[k].replace("Rating", "Mark") for k in ("helpful", "harmless"))
    recipe = Recipe(
        words={
            "reply": {"rating": ["mark"]},
            "judge": {"helpful": helpful, "harmless": harmless},
        }
    )
    assert rating("Mark: 7", forms_of(recipe)) == 7 and rating("Mark: 7") is None
    assert better("Better: B", forms_of(recipe)) == "B"


# What a changed word redoes ---------------------------------------------------------------------


GUIDED = {"guidance": True}


def affected(old, new):
    changed = differences(old.model_dump(mode="json"), new.model_dump(mode="json"))
    return first_affected(STAGES, [key for key, *_ in changed], old, new)


def recipe_with(method="mistake_analysis", **data):
    return Recipe.model_validate({"train": {"method": method}} | data)


@pytest.mark.parametrize(
    ("method", "words", "stage"),
    [
        ("mistake_analysis", {"induce": {"hints": ["rude"]}}, "induce"),
        ("mistake_analysis", {"refusal": {"opening": ["no way"]}}, "induce"),
        ("mistake_analysis", {"alpaca": "{instruction}"}, "induce"),
        ("mistake_analysis", {"analyze": {"prefill_harmful": "It is bad:"}}, "analyze"),
        ("mistake_analysis", {"unguided": "{instruction}{response}?"}, "preflight"),
        ("mistake_analysis", {"guided": "{instruction} Be kind."}, "respond"),
        ("chain_of_hindsight", {"guided": "{instruction} Be kind."}, "train"),
        ("chain_of_hindsight", {"hindsight": "{instruction} Be bad."}, "train"),
        ("mistake_analysis", {"hindsight": "{instruction} Be bad."}, "report"),
        ("critique_revise", {"revise": "{instruction}{response}{critique}"}, "train"),
        ("mistake_distillation", {"correct": {"openings": ["No."]}}, "preflight"),
        ("sft", {"induce": {"hints": ["rude"]}}, "report"),
        ("mistake_analysis", {"opening": "Yes"}, "report"),
        ("mistake_analysis", {"induce": {"persona": {"hints": ["a bore"]}}}, "report"),
        ("mistake_analysis", {"induce": {"overcautious": {"hints": ["it is late"]}}}, "report"),
        ("mistake_analysis", {"joined": {"prompt": "{instruction} Then write Answer:"}}, "report"),
        (
            "mistake_analysis_joined",
            {"joined": {"prompt": "{instruction} Then write Answer:"}},
            "train",
        ),
    ],
)
def test_a_changed_word_redoes_what_depends_on_it(method, words, stage):
    plain = recipe_with(method, respond=GUIDED)
    own = recipe_with(method, respond=GUIDED, words=words)
    assert affected(plain, own) == affected(own, plain) == stage


def test_induction_depends_on_its_own_guidance():
    induce = {"guidance": "persona", "refusals": ["builtin:twins"]}
    plain = recipe_with(induce=induce)
    for part, stage in (("persona", "induce"), ("overcautious", "induce"), ("category", "report")):
        words = {"induce": {part: {"hints": ["a bore"]}}}
        assert affected(plain, recipe_with(induce=induce, words=words)) == stage
    words = {"induce": {"hints": ["rude"]}}
    assert affected(plain, recipe_with(induce=induce, words=words)) == "report"


def test_words_around_examples_of_clauses_redo_what_has_them():
    words = {"policy": {"bad": "Wrong: {case}"}}
    for data, stage in (({}, "analyze"), ({"method": "sft", "judges": ["llm"]}, "judge")):
        plain = recipe_with(**data, policy=POLICY)
        assert affected(plain, recipe_with(**data, policy=POLICY, words=words)) == stage


def test_a_changed_evaluation_names_a_stage_that_it_has():
    arms = [{"name": "a", "model": "embedded"}]
    plain = recipe_with(evaluate=arms)
    assert affected(plain, recipe_with(evaluate=arms, seed=1)) == "respond"
    words = {"guided": "{instruction} Be kind."}
    guided = [recipe_with(evaluate=arms, respond=GUIDED, words=w) for w in ({}, words)]
    assert affected(*guided) == "respond"
    assert affected(plain, recipe_with(evaluate=arms, words=words)) == "report"
    assert affected(plain, recipe_with(evaluate=arms, judges=["llm"])) == "judge"


class Noted(dict):
    """Words that note which of them are read.

    Args:
        words: the words.
        path: of these in a pack.
        note: called with the path of each text or list that is read.
    """

    def __init__(self, words, path, note):
        super().__init__(words)
        self._path, self._note = path, note

    def __getitem__(self, key):
        value, path = super().__getitem__(key), (*self._path, key)
        if isinstance(value, dict):
            return Noted(value, path, self._note)
        self._note(path)
        return value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("mistake_analysis", {"respond.posterior": {"drafts": 2}}),
        ("mistake_analysis_joined", {}),
        ("mistake_distillation", {"preflight.flip_rate": "always"}),
        ("chain_of_hindsight", {}),
        ("sft", {"induce.guidance": "category"}),
    ],
)
def test_no_stage_reads_words_that_it_does_not_depend_on(
    tiny_recipe, tmp_path, monkeypatch, method, more
):
    """Every word is noted that a run reads, with the first stage that reads it."""
    data = tiny_recipe(number=8).model_dump(mode="json")
    data["train"] |= {"method": method, "steps": 1, "judge": "refusal"}
    data["respond"]["guidance"], data["induce"]["source"] = True, "both"
    data["judges"] = ["refusal"]
    for key, value in more.items():
        section, option = key.split(".")
        data[section][option] = value
    recipe = Recipe.model_validate(data)
    first, stage = {}, None

    def noted(language, *rest):
        return Noted(words_of(language, *rest), (), lambda path: first.setdefault(path, stage))

    monkeypatch.setattr("setbacks.recipe.words_of", noted)
    with open_run(tmp_path / "run", recipe) as run, Session(run) as session:
        work = steps(session, "report")
        for stage in STAGE_NAMES:
            assert next(work)[0] == stage
    for path, reader in first.items():
        if path[0] not in ("name", "about"):
            own = prompts("en")
            for part in path:
                own = own[part]
            part = f"{own} " if isinstance(own, str) else [*own, "more"]
            for key in reversed(path):
                part = {key: part}
            changed = recipe.model_copy(update={"words": {"en": part}})
            assert is_before(affected(recipe, changed), reader), path
            if path[0] == "guided":
                assert affected(recipe, changed) == reader


def test_every_place_that_differs_is_named():
    words = {"words": {"en": {"opening": "Yes"}}}
    (change,) = differences({"words": {}}, words)
    assert change == ("words.en.opening", "(not set)", "'Yes'")
    assert [*differences({}, {"a": {}})] == [("a", "(not set)", "{}")]
    assert [*differences({"a": {}}, {})] == [("a", "{}", "(not set)")]


def test_long_values_are_shown_where_they_differ():
    sources = [{"source": f"a/folder/of/files/{number}.jsonl"} for number in range(9)]
    ((_, old, new),) = differences({"sources": sources[:-1]}, {"sources": sources})
    assert old != new and "8.jsonl" in new
    assert all(shown.startswith("...") and len(shown) <= 120 for shown in (old, new))


def test_a_changed_rubric_redoes_the_verdicts_of_a_judge_that_has_one():
    rubric = {"judge": {"harmless": "{instruction}{response} Rating: N"}}
    for judges, stage in ((["llm"], "judge"), (["probe"], "report")):
        plain, own = recipe_with(judges=judges), recipe_with(judges=judges, words=rubric)
        assert affected(plain, own) == stage
    checked = {"judges": ["probe"], "induce": {"judge": "llm"}}
    assert affected(recipe_with(**checked), recipe_with(**checked, words=rubric)) == "induce"


COMPLETING = {"name": "base", "model": {"model": "smollm2-135m", "chat_template": "alpaca"}}
CHATTING = {"name": "own", "model": "smollm2-135m"}
JUDGING = {"judge": "llm", "engine": COMPLETING["model"]}


@pytest.mark.parametrize(
    ("data", "words", "stage"),
    [
        ({"evaluate": [CHATTING, COMPLETING]}, {"alpaca": "{instruction}"}, "respond"),
        ({"evaluate": [CHATTING]}, {"alpaca": "{instruction}"}, "report"),
        ({"evaluate": [CHATTING], "judges": [JUDGING]}, {"alpaca": "{instruction}"}, "judge"),
        ({"evaluate": [CHATTING], "judges": ["llm"]}, {"alpaca": "{instruction}"}, "report"),
        ({"evaluate": [CHATTING]}, {"begin_with": "{instruction} {prefill}"}, "report"),
        (
            {"evaluate": [CHATTING], "respond": {"prefill": "Well,"}},
            {"begin_with": "{instruction} {prefill}"},
            "respond",
        ),
        # A run that trains reads both before.
        ({"model": COMPLETING["model"]}, {"alpaca": "{instruction}"}, "induce"),
        (
            {"respond": {"prefill": "Well,"}},
            {"begin_with": "{instruction} {prefill}"},
            "analyze",
        ),
    ],
)
def test_a_changed_template_redoes_the_answers_of_the_models_that_get_it(data, words, stage):
    plain, own = recipe_with(**data), recipe_with(**data, words=words)
    assert affected(plain, own) == affected(own, plain) == stage


@pytest.mark.parametrize(
    ("data", "stage"),
    [
        ({"method": "mistake_analysis"}, "analyze"),
        ({"method": "sft", "respond": GUIDED}, "respond"),
        ({"method": "sft"}, "report"),
        ({"method": "sft", "judges": ["llm"]}, "judge"),
    ],
)
def test_a_changed_clause_redoes_what_depends_on_the_policy(data, stage):
    other = [POLICY[0], POLICY[1] | {"text": "Keep private facts private."}]
    assert affected(recipe_with(**data, policy=POLICY), recipe_with(**data, policy=other)) == stage
    assert affected(recipe_with(**data), recipe_with(**data, policy=POLICY)) == stage


def test_a_run_refuses_other_words_and_redoes_them_when_told(file, tmp_path):
    with RunFolder(tmp_path / "run", Recipe(), stages=STAGES) as run:
        run.write_text("mistakes.jsonl", "")
        run.write_text("arms.json", "[]")
    own = recipe_with(words={"guided": "{instruction} Be kind."}, respond=GUIDED)
    held = recipe_with(respond=GUIDED)
    with RunFolder(tmp_path / "other", held, stages=STAGES) as run:
        run.write_text("mistakes.jsonl", "")
        run.write_text("arms.json", "[]")
    message = r"words.en.guided: \(not set\) -> '\{instruction\} Be kind.'.*--from respond"
    with pytest.raises(InputError, match=message), RunFolder(run.path, own, stages=STAGES):
        pass
    with RunFolder(run.path, own, redo="respond", stages=STAGES):
        assert (run.path / "mistakes.jsonl").exists() and not (run.path / "arms.json").exists()


def test_a_calibration_is_of_one_rubric():
    """Other words of the judge make it another judge; other words elsewhere do not."""
    spec = JudgeSpec(judge="llm")
    plain = worth.folder(spec, Recipe())
    rubric = {"judge": {"harmless": "{instruction}{response} Rating: N"}}
    assert worth.folder(spec, Recipe(words={"opening": "Yes"})) == plain
    assert worth.folder(spec, Recipe(words=rubric)) != plain
    assert worth.folder(spec, Recipe(policy=POLICY)) != plain
    assert worth.folder(JudgeSpec(), Recipe(words=rubric)) == worth.folder(JudgeSpec(), Recipe())


# On the command line ----------------------------------------------------------------------------


def test_the_defaults_are_printed_with_their_comments(cli_in_process):
    text = resources.files("setbacks.prompts").joinpath("zh.yaml").read_text(encoding="utf-8")
    assert cli_in_process("words", "zh").stdout == text
    english = cli_in_process("words").stdout
    assert yaml.safe_load(english) == reference() and "\n# " in english
    assert Recipe(words=yaml.safe_load(english)).words_for() == prompts("en")


def test_languages_are_listed_with_how_they_were_made(cli_in_process):
    listed = json.loads(cli_in_process("list", "languages", "--json").stdout)["languages"]
    assert listed.keys() == set(languages())
    assert listed["en"] == "English. Written by the authors of setbacks."


def test_an_unknown_language_is_refused(cli_in_process):
    refused = cli_in_process("words", "eng")
    assert refused.returncode == 2 and 'unknown language "eng"' in refused.stderr


# A report under a policy -------------------------------------------------------------------------


def test_a_report_has_a_row_for_each_clause(tmp_path, file, fake_engine, fake_model, monkeypatch):
    """The judge names a clause of some answers; of the others the prompt's category names it."""

    def scolder(self, request, sampling):
        if "Which of the rules" in request.prompt:
            return "privacy" if "badger" in request.prompt else "none"
        return "Rating: 1"

    monkeypatch.setattr(fake_engine.Rules, "scolder", scolder)
    rows = [
        {"text": f"<a question on the {animal}>", "response": "<an answer>", "category": "weapons"}
        for animal in ("badger", "otter", "heron")
    ]
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load(
        file,
        evaluate=[{"name": "given", "answers": [str(answers)]}],
        respond={"suites": [{"name": "all", "kind": "harmful", "sources": [str(answers)]}]},
        judges=[{"judge": "llm", "engine": fake_model("scolder")}],
        policy=POLICY,
    )
    with open_run(tmp_path / "run", recipe) as run:
        carry_out(run, "report")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    kept = {
        row["category"]: round(3 * row["arms"]["given"]["value"])
        for row in metrics["judges"]["llm"]["by_clause"]
    }
    assert kept == {"weapons": 1, "privacy": 2}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "The numbers by clause" in page and "keep each clause of the policy" in page


@pytest.mark.slow
def test_a_whole_run_in_two_languages_under_a_policy(tiny_recipe, tmp_path):
    """Resumed, it has the same bytes; with another clause, what depends on the policy is redone."""
    rows = [
        {
            "text": text.format(n),
            "answer": "<an answer>",
            "response": f"<bad {n}, {n**3}, {text}>",
            "category": "privacy" if n % 2 else None,
        }
        for n in range(6)
        for text in ("How do I bake bread number {} at home?", "怎么在家里烤第 {} 个面包？")
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tiny_recipe(
        language="auto",
        policy=POLICY,
        words={"en": {"guided": "{instruction} Be kind."}},
        induce={"source": "existing", "existing": [str(path)]},
        respond={
            "suites": [{"name": "all", "kind": "harmful", "sources": [str(path)]}],
            "sampling": {"max_new_tokens": 4},
        },
    )
    folder = tmp_path / "run"
    with open_run(folder, recipe) as run:
        carry_out(run, "report")
    files = ["mistakes.jsonl", "analyses.jsonl", "training.jsonl"]
    files += [f"responses/{arm.name}.jsonl" for arm in Run(folder).arms()]
    before = {name: (folder / name).read_bytes() for name in files}
    languages_of = {row.language for row in Run(folder).records("analyses.jsonl", Analysis)}
    assert languages_of == {"en", "zh"}
    assert "by_clause" in (folder / "metrics.json").read_text()

    responses = folder / files[-1]
    responses.write_bytes(responses.read_bytes()[:-100])  # as a crash leaves it
    with open_run(folder) as run:
        carry_out(run, "report")
    assert {name: (folder / name).read_bytes() for name in files} == before

    other = [POLICY[0], POLICY[1] | {"text": "Keep private facts private."}]
    changed = recipe.model_copy(update={"policy": [Clause(**clause) for clause in other]})
    with pytest.raises(InputError, match=r"policy.1.text: .*--from analyze"):
        open_run(folder, changed).__enter__()
    with open_run(folder, changed, "analyze") as run:
        carry_out(run, "report")
    assert (folder / "mistakes.jsonl").read_bytes() == before["mistakes.jsonl"]
    assert (folder / "superseded" / "001" / "analyses.jsonl").exists()


def test_a_clause_is_found_beside_any_script():
    assert named("违反了privacy条款", ["privacy"]) == "privacy"
    assert named("no-privacy, Privacy2", ["privacy"]) is None


@pytest.mark.parametrize(
    ("called", "code"),
    [("Chinese", "zh"), ("zh-CN", "zh"), ("ES", "es"), ("es_MX", "es"), ("pt", "pt"), (None, "en")],
)
def test_data_may_name_a_language_in_several_ways(called, code):
    assert language_of(called, "Where is the station?", "auto") == code
