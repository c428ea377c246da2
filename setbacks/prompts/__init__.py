"""Everything that a model is told, by language, and what the code must know of a language.

A language is a *pack*: one YAML file, `NAME.yaml`, with the same keys as `en.yaml`, which is the
reference, and with the same `{places}` in each prompt. NAME is the ISO 639-1 code of the language,
such as `es`. Packs are found here, in other packages (an entry point of the group
`setbacks.languages`, named like the language, names a package that holds NAME.yaml), and by path.

Besides the prompts, a pack has:

    name         English name of the language
    about        how the pack was made, in a sentence
    policy       how the clauses of a policy are put into the prompts
    reply        the words that replies to the judge's prompts are made of; `judge.harmless` and
                 `judge.helpful` must ask for a word of `reply.rating`, `judge.pairwise` for one of
                 `reply.better`, in the form "Rating: N" and "Better: A"
    refusal      phrases that decline: regular expressions in lower case, with straight apostrophes
                 and single spaces; accents and vowel points are optional in a response
    turns        what opens a turn that a model makes up after its answer
    offer        a sentence that only offers help: a regular expression in any case, without the
                 final mark
    stop_words   words that say nothing about a topic, separated by spaces; one character each in
                 scripts without spaces between words

Regular expressions: `analyze.contradicts_*` match an analysis that says the contrary of its label,
`analyze.states_refusal` one that says that it was wrong to refuse, and `correct.about_prompt` an
answer that talks about its prompt. `analyze.prefill_*`, `spoken.prefill`, `correct.openings` and
`induce.overcautious.prefill` are beginnings that a model continues; `spoken.harmful` and
`spoken.harmless` continue `spoken.prefill`, with the space between if the language has one.
`joined.prompt` must ask for the mark `joined.answer`.

`packs` checks packs, and parts of packs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import yaml

from setbacks.errors import InputError, nearest
from setbacks.messages import Prompt, reworded, transcript
from setbacks.plugins import installed, plugin
from setbacks.prompts.packs import PLACE, complete

Words = Mapping[str, Any]  # of one language: a pack, maybe with somebody's own words in it

GUARDS = "guards"  # the one file here that is no pack: what guard models are told


@cache
def built_in() -> tuple[str, ...]:
    """Return the names of the languages whose packs are in this package, such as "en"."""
    names = (file.name for file in resources.files(__package__).iterdir())
    stems = {name.removesuffix(".yaml") for name in names if name.endswith(".yaml")}
    return tuple(sorted(stems - {GUARDS}))


@cache
def languages() -> tuple[str, ...]:
    """Return the names of all languages with a pack: the built-in ones, then other packages'."""
    return (*built_in(), *sorted(installed("languages").keys() - set(built_in())))


@cache
def prompts(language: str) -> Words:
    """Return the pack of a language.

    Raises:
        InputError: the language has no pack, or another package's pack is not complete.
    """
    file = pack_file(language)
    loaded = _read(file)
    return loaded if language in built_in() else complete(loaded, str(file))


def pack_file(language: str) -> Traversable:
    """Return the file of a language's pack.

    Raises:
        InputError: the language has no pack.
    """
    if language not in languages():
        raise InputError(
            f'unknown language "{language}".{nearest(language, languages())} '
            f"Available: {', '.join(languages())}"
        )
    package = __package__ if language in built_in() else plugin("languages", language)
    return resources.files(package).joinpath(f"{language}.yaml")


@cache
def guards() -> Mapping[str, Any]:
    """Return what guard models are told beside the conversation."""
    return _read(resources.files(__package__).joinpath(f"{GUARDS}.yaml"))


def fill(template: str, **values: Prompt) -> str:
    """Put values into ``{name}`` places, once: braces inside a value stay as they are.

    Args:
        template: text with places such as ``{instruction}``.
        values: what stands in each place; a conversation as its transcript.
    """
    return re.sub(PLACE, lambda place: transcript(values[place[1]]), template)


def ask(template: str, prompt: Prompt, **values: str) -> Prompt:
    """Put a prompt's last user turn into a template; the turns before it stay as they are.

    Args:
        template: text with a place ``{instruction}`` for that turn.
        prompt: to reword.
        values: what stands in the template's other places.
    """
    return reworded(prompt, lambda text: fill(template, instruction=text, **values))


def _read(file: Traversable) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return loaded
