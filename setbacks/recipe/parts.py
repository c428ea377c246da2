"""What sections of a recipe are made of: their base classes, names, and short forms."""

from __future__ import annotations

import re
import unicodedata
from operator import attrgetter
from typing import Annotated, Any, ClassVar, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from setbacks.data import Source
from setbacks.plugins import installed, plugin

LONGEST_NAME = 100  # two of them, and an ending, fit into the 255 bytes of a file's name
# An arm's name may have dots, as models' names do. Judges' and suites' have none, so a file's name,
# such as ARM.JUDGE.jsonl, can be read from its end.
DOTTED = ".-"
LOCAL = "a path on this machine"
# A file or folder; relative paths start from the folder of the recipe.
LocalPath = Annotated[str | None, LOCAL]


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PartSection(Section):
    """A section that names a part: a method, for one. The part's options stand beside the name.

    The name picks the class: a part's `Options` is a subclass of the section that adds its fields,
    so that they are checked, documented, and completed like all others. A key that is an option of
    another part is kept where `keeps_others` says so (a comparison's methods share one section),
    and refused otherwise. Where the named part is not installed, its options are kept as they are.
    """

    model_config = ConfigDict(extra="allow")  # `_of_its_part` refuses what nobody knows

    group: ClassVar[str]  # of entry points, as `setbacks.plugins.plugin` takes it
    names: ClassVar[str]  # the field that names the part
    keeps_others: ClassVar[bool] = False
    ignored: ClassVar[tuple[str, ...]] = ()  # other parts' options that were always allowed

    def __new__(cls, *_: Any, **data: Any) -> Self:
        """Make an object of the class that the name picks."""
        # Pydantic itself makes objects without data, and has picked the class by then.
        return super().__new__((cls._class_for(data) if data else None) or cls)

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_part(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        kind = cls._class_for(data)
        if kind is None:
            return handler(data)
        return handler(_with_others(cls, data)) if kind is cls else kind.model_validate(data)

    @classmethod
    def _class_for(cls, data: Any) -> type[Self] | None:
        """The class for a part's options; None where the part is not installed."""
        if not isinstance(data, dict):
            return None
        name = data.get(cls.names, cls.model_fields[cls.names].default)
        if not isinstance(name, str) or name not in installed(cls.group):
            return None
        kind = options_of(cls.group, name)
        return kind if issubclass(kind, cls) else cls


class OptionsOf(NamedTuple):
    """Marks a field that holds the options of one part of a group; a command names the part."""

    group: str


BLANK = BeforeValidator(lambda value: {} if value is None else value)  # a key without a value


def options_of(group: str, name: str) -> type[Section]:
    """Return the section that holds the options of an installed part.

    Args:
        group: of entry points, as `setbacks.plugins.plugin` takes it.
        name: the part's.
    """
    kind: type[Section] = plugin(group, name).Options
    return kind


def _with_others(cls: type[PartSection], data: dict[str, Any]) -> dict[str, Any]:
    """Sort out the keys that are not a part's own: other parts' options, and mistakes.

    Recipes of earlier versions hold the options of all parts, so another part's default is dropped.

    Raises:
        ValidationError: a key is nobody's, or another part's and not kept.
    """
    kept = {}
    for key, value in data.items():
        if key in cls.model_fields:
            kept[key] = value
            continue
        if key in cls.ignored:
            continue
        owner = _owner(cls, key)
        problem: Any = {"type": "extra_forbidden", "loc": (key,), "input": value}
        if owner is None:
            raise ValidationError.from_exception_data(cls.__name__, [problem])
        if value is None:
            continue
        options = options_of(cls.group, owner)
        value = getattr(options.model_validate({cls.names: owner, key: value}), key)
        if value == options.model_fields[key].get_default(call_default_factory=True):
            continue
        if not cls.keeps_others:
            own = data.get(cls.names, cls.model_fields[cls.names].default)
            problem["type"] = PydanticCustomError(
                "other_part", f"an option of {owner} and not of {own}; leave it out"
            )
            raise ValidationError.from_exception_data(cls.__name__, [problem])
        kept[key] = value
    return kept


def _owner(cls: type[PartSection], key: Any) -> str | None:
    """The installed part that has an option of this name."""
    parts = sorted(installed(cls.group), key=lambda name: (name != key, name))
    return next((n for n in parts if key in options_of(cls.group, n).model_fields), None)


def short_for(key: str) -> BeforeValidator:
    """Let a plain string stand for a section in which only `key` is given."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


def name_problem(name: str, also: str = "-") -> str:
    """Say why a name, which becomes part of file names, is refused; empty where it is not.

    Args:
        name: of an arm, a suite, a judge or a contender.
        also: what it may hold besides letters, digits and "_".
    """
    allowed = f"A-Za-z0-9_{also}"
    if re.fullmatch(rf"(?!\.)[{allowed}]{{1,{LONGEST_NAME}}}", name):
        return ""
    filler = "-" if "-" in also else "_"
    without_accents = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    fit = re.sub(rf"[^{allowed}]+", filler, without_accents).strip(".-")[:LONGEST_NAME]
    signs = ", ".join(f'"{sign}"' for sign in also + "_")
    return (
        f'"{name}" is no name here; use at most {LONGEST_NAME} letters (a to z), digits and {signs}'
        + (f', such as "{fit}"' if fit else "")
    )


def file_name(also: str = "-") -> AfterValidator:
    """Let only names pass that can be part of a file's name."""

    def check(name: str | None) -> str | None:
        if name is not None and (problem := name_problem(name, also)):
            raise ValueError(problem)
        return name

    return AfterValidator(check)


def unique(key: str) -> AfterValidator:
    """Refuse two sections of one name: their records would have the same ids.

    Args:
        key: the attribute that holds a section's name.
    """

    def check(sections: list[Any]) -> list[Any]:
        names = list(map(attrgetter(key), sections))
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f'"{twice[0]}" is there twice; give each a name of its own')
        return sections

    return AfterValidator(check)


Sources = Annotated[
    list[Source],
    BeforeValidator(lambda value: [value] if isinstance(value, str | dict | Source) else value),
]
