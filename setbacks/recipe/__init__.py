"""The recipe: all settings of a run, in one object that documents every field.

`Recipe()` is the quickstart: the embedded model, the built-in instruction sets, sizes for two
cores. A YAML file names only what differs; `setbacks new` writes one with comments.

From here down: `sections` and `loop` (the sections of a recipe), `models` (models and judges),
`parts` (base classes of sections), `words` (language, own words, policy), `reading` (YAML,
overrides, errors).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    Field,
    PrivateAttr,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from setbacks.data import Source
from setbacks.errors import InputError
from setbacks.prompts import Words, languages
from setbacks.prompts.own import words_of
from setbacks.recipe.earlier import OFF, batched, is_earlier, pinned, renamed
from setbacks.recipe.loop import Loop
from setbacks.recipe.models import Engine, EngineField, Judges, JudgeSpec, Sampling
from setbacks.recipe.parts import (
    BLANK,
    DOTTED,
    LOCAL,
    LONGEST_NAME,
    SEED_LIMIT,
    LocalPath,
    OptionsOf,
    Part,
    PartSection,
    Section,
    Sources,
    name_problem,
    options_of,
    parts_of,
    unique,
)
from setbacks.recipe.reading import (
    explain,
    merge,
    parse_overrides,
    read_yaml,
    rebase,
    section_of,
    written_out,
)
from setbacks.recipe.sections import (
    Analyze,
    Compare,
    Contender,
    Evaluated,
    Induce,
    Lora,
    Mix,
    Posterior,
    Preflight,
    Replay,
    Respond,
    Suite,
    Train,
)
from setbacks.recipe.words import AUTO, Clause, resolved

__all__ = [
    "AUTO",
    "DOTTED",
    "LOCAL",
    "LONGEST_NAME",
    "Analyze",
    "Clause",
    "Compare",
    "Contender",
    "Engine",
    "EngineField",
    "Evaluated",
    "Induce",
    "JudgeSpec",
    "Judges",
    "LocalPath",
    "Loop",
    "Lora",
    "Mix",
    "OptionsOf",
    "PartSection",
    "Posterior",
    "Preflight",
    "Recipe",
    "Replay",
    "Respond",
    "Sampling",
    "Section",
    "Source",
    "Sources",
    "Suite",
    "Train",
    "name_problem",
    "options_of",
    "parse_overrides",
    "parts_of",
    "section_of",
]


class Recipe(Section):
    """A run's recipe. Every field has a default; the defaults are the quickstart."""

    name: str = Field("quickstart", description="Name of the run in its report.")
    seed: int = Field(0, ge=0, lt=SEED_LIMIT, description="Seed of all random draws.")
    language: str = Field(
        "en",
        description="Language of the prompts: a name such as `en` or `zh` (`setbacks list "
        "languages` shows all), the path of a language pack, or `auto` (that of each row; rows "
        "that name none are recognized by their text).",
    )
    words: dict[str, dict[str, Any]] = Field(
        {},
        description="Words to use in place of the prompts' own: a YAML file, or the words "
        "themselves, for the recipe's language or under the names of several; `setbacks words` "
        "prints the prompts.",
    )
    policy: Annotated[list[Clause], unique("id")] = Field(
        [],
        description="Rules that answers are to keep: a YAML file with a list of them, or the list. "
        "They go into the guidance, the analysis, and the rubric of the judge `llm`.",
    )
    model: EngineField = Field(default_factory=Engine, description="Model to align.")
    adapter: LocalPath = Field(
        None,
        description="Folder of a PEFT adapter of `model`: the model to align has it. That model "
        "makes and analyzes the mistakes and is the untrained arm, and training continues from "
        "it; null: none.",
    )
    instructions: Sources = Field(
        [Source(source="builtin:redteam", split="train")],
        description="Data sets with red-team instructions, to induce mistakes.",
        min_length=1,
    )
    decontaminate: float | None = Field(
        0.8,
        gt=0,
        le=1,
        description="Share of word 3-grams in common with a prompt of a suite from which a "
        "training prompt is left out as nearly the same; null: also train on test prompts.",
    )
    held_out: Sources = Field(
        [],
        description="Data sets with prompts to leave out in the same way, such as those of a later "
        "test.",
    )
    induce: Induce = Field(Induce(), description="Step 1: guided mistake induction.")
    analyze: Analyze = Field(Analyze(), description="Step 2: guided analysis.")
    preflight: Preflight = Field(Preflight(), description="Checks before training.")
    train: SerializeAsAny[Train] = Field(
        default_factory=Train, description="Step 3: fine-tune an adapter."
    )
    respond: Respond = Field(Respond(), description="Step 4: guided response generation.")
    judges: Judges = Field(
        default_factory=lambda: [JudgeSpec()],
        description="Judges of the responses, in order.",
        min_length=1,
    )
    evaluate: Annotated[list[Evaluated], unique("name")] = Field(
        [],
        description="Arms of an evaluation, which trains nothing and compares each with the first; "
        "[]: train and compare with the untrained model.",
    )
    compare: Compare = Field(Compare(), description="Options of `setbacks compare`.")
    loop: Loop = Field(Loop(), description="Options of `setbacks loop`.")
    jobs: int = Field(
        1,
        ge=1,
        description="Number of parallel runs of a comparison or a study, each in its own process; "
        "use more than 1 if one run leaves the GPU idle.",
    )
    study: Annotated[dict[str, Any], OptionsOf("studies"), BLANK] = Field(
        {}, description="Options of `setbacks study NAME`."
    )
    # Whether the run folder is of an earlier version: the file there keeps lacking new fields.
    _earlier: bool = PrivateAttr(False)

    @model_validator(mode="before")
    @classmethod
    def _with_files_read(cls, data: Any, info: ValidationInfo) -> Any:
        base = (info.context or {}).get("base", Path())
        return resolved(data, base) if isinstance(data, dict) else data

    def words_for(self, language: str = AUTO, broken: str | None = None) -> Words:
        """Return the words for a row: prompts, and what the code must know of their language.

        Args:
            language: of the row, which counts if the recipe's language is `auto`; by default, for
                what belongs to no row, English takes its place.
            broken: the clause of the policy that the row's response is known to break, if any.
        """
        chosen = language if self.language == AUTO else self.language
        return words_of(chosen, self.words, self.policy, broken)

    def all_words(self) -> dict[str, Words]:
        """Return the words of every language with a pack, or that the recipe has words for."""
        own = () if self.language == AUTO else (self.language,)
        names = dict.fromkeys((*languages(), *self.words, *own))
        return {name: words_of(name, self.words, self.policy) for name in names}

    def spoken_words(self) -> list[Words]:
        """Return the words of the recipe's language; with `auto`, of all that rows may be in."""
        return [*self.all_words().values()] if self.language == AUTO else [self.words_for()]

    def options(self, kind: type[Part]) -> Part:
        """Return the recipe's `study` section as the options of one study.

        Raises:
            InputError: an unknown key or a bad value.
        """
        try:
            return kind.model_validate(self.study)
        except ValidationError as error:
            raise InputError(explain(error, kind, "study.")) from None

    @property
    def train_seed(self) -> int:
        """The seed of the training."""
        return self.seed if self.train.seed is None else self.train.seed

    @property
    def current(self) -> Path | None:
        """The adapter of the model before training; None without one."""
        return None if self.adapter is None else Path(self.adapter)

    @property
    def start(self) -> Path | None:
        """The adapter that training continues; None for a new one."""
        return self.current if self.train.start is None else Path(self.train.start)

    @classmethod
    def load(
        cls, path: Path | str | None = None, overrides: Sequence[str] = (), of_run: bool = False
    ) -> Recipe:
        """Read a recipe from YAML; relative paths in it start from its folder.

        Args:
            path: the YAML file; None for the quickstart.
            overrides: ``key.path=value`` strings that win over the file (omegaconf's dot list).
            of_run: whether a run folder holds the file. Such a file names every field, and an
                earlier version's lacks new ones: there they are off, and built-in sets are as they
                were, so that the run resumes.

        Raises:
            InputError: the file is missing, is not YAML, or holds an unknown key or a bad value.
        """
        data: Any = {} if path is None else read_yaml(Path(path))
        if of_run:
            data = renamed(data)
        earlier = of_run and is_earlier(data)
        if earlier:
            data = OFF | pinned(data)
        where = "the command line" if path is None else str(path)
        base = Path.cwd() if path is None else Path(path).resolve().parent
        if overrides:
            with suppress(ValidationError, InputError):
                cls.model_validate(data, context={"base": base})
                where = "the command line"  # the file alone is valid
            data = merge(written_out(cls, data), parse_overrides(overrides))
        return cls.parse(data, where, base).rebased(base)._begun(earlier)

    @classmethod
    def parse(cls, data: Any, where: str, base: Path | None = None) -> Recipe:
        """Make a recipe from plain data.

        Args:
            data: the recipe.
            where: begins error messages.
            base: the folder that paths of words and policies start from; None for the current one.

        Raises:
            InputError: an unknown key or a bad value.
        """
        try:
            return cls.model_validate(data, context={"base": base or Path()})
        except ValidationError as error:
            raise InputError(f"{where}: {explain(error, cls)}") from None
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

    def resuming(self, path: Path) -> Recipe:
        """Return this recipe for a folder, which an earlier version may have begun.

        There, fields that it did not have stay off, and built-in sets and the size of batches are
        as they were. A field that this recipe sets to another value than its default stays, as a
        change.

        Args:
            path: the recipe that the folder holds.

        Raises:
            InputError: it cannot be read.
        """
        held = read_yaml(path)
        data = batched(self.model_dump(mode="json"), held)
        if earlier := is_earlier(held):
            fields = type(self).model_fields
            off = {k: off for k, off in OFF.items() if getattr(self, k) == fields[k].default}
            data = pinned(data) | off
        return type(self).model_validate(data)._begun(earlier)

    def _begun(self, earlier: bool) -> Recipe:
        """Return this recipe as one of a folder that an earlier version began, or this one."""
        copy = self.model_copy()
        copy._earlier = earlier
        return copy

    def rebased(self, base: Path) -> Recipe:
        """Return this recipe with relative paths of sources and models resolved from `base`."""

        rebased: Recipe = rebase(self, base)
        return rebased

    def parts(self, kind: type[Part]) -> Iterator[Part]:
        """Yield every part of a kind, such as each `Source` or `Engine`, in the recipe's order."""
        yield from parts_of(self, kind)

    def to_yaml(self) -> str:
        """Return the whole recipe, defaults included, as YAML."""
        data = self.model_dump(mode="json")
        if self._earlier:
            data = {key: value for key, value in data.items() if OFF.get(key, ...) != value}
        text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
        # PyYAML writes some line separators raw and reads them back as spaces.
        return text if yaml.safe_load(text) == data else yaml.safe_dump(data, sort_keys=False)
