"""Tests of the method: they need no model and no run folder."""

from setbacks_example.first_sentence import Excerpt, FirstSentence

from setbacks.recipe import Recipe

RECIPE = Recipe.parse({"train": {"method": "first_sentence", "mix": {"helpful": 0}}}, "a test")
EXCERPT = Excerpt(id="1", analysis_id="a", question="<question>", text="<a first sentence>")


def test_each_excerpt_becomes_an_example():
    """The model learns the excerpt, and the example names its analysis."""
    (made,) = FirstSentence().examples(RECIPE, [EXCERPT])
    assert [turn.content for turn in made.prompt] == ["<question>"]
    assert (made.completion, made.parents) == ("<a first sentence>", ["a"])


def test_every_kind_of_example_has_sources():
    """The model card lists the sources of every kind."""
    method = FirstSentence()
    kinds = {made.kind for made in method.examples(RECIPE, [EXCERPT])}
    assert kinds <= method.sources(RECIPE).keys()
