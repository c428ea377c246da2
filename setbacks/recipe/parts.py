"""The building blocks of sections: base classes, names, and short forms."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from operator import attrgetter
from typing import Annotated, Any, ClassVar, NamedTuple, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from setbacks.data import Source
from setbacks.plugins import installed, load_all, plugin

Part = TypeVar("Part", bound=BaseModel)

LONGEST_NAME = 100  # two names and an extension fit into the 255 bytes of a file name
# Arms' names may contain dots, as models' names do. Those of judges and suites may not, so that a
# file name such as ARM.JUDGE.jsonl can be split from its end.
DOTTED = ".-"
# Seeds are below it: a comparison counts up from one, and libraries take those below 2**32.
SEED_LIMIT = 2**31
Seeds = Annotated[int, Field(ge=1, le=100)]
LOCAL = "a path on this machine"
# A file or folder; relative paths start from the folder of the recipe.
LocalPath = Annotated[str | None, LOCAL]


class Section(BaseModel):
    """A section of a recipe. Unknown keys are refused, and values cannot be changed.

    A section inside it that sets only some keys keeps the other values of the field's default,
    which can differ from those of the section's class.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        fields = cls.model_fields
        return {
            key: _completed(value, fields[key].default) if key in fields else value
            for key, value in data.items()
        }


class PartSection(Section):
    """A section that names a part, such as a method, and has the part's options beside the name.

    The name picks the class: a part's `Options` is a subclass of the section that adds its fields,
    so that they are checked, documented and completed like all others. An option of another part is
    kept if `keeps_others` is set (a comparison's methods share one section), and refused otherwise.
    If the named part is not installed, its options are kept as they are.
    """

    model_config = ConfigDict(extra="allow")  # `_of_its_part` refuses unknown keys

    group: ClassVar[str]  # of entry points, as `setbacks.plugins.plugin` takes it
    names: ClassVar[str]  # the field that names the part
    keeps_others: ClassVar[bool] = False
    ignored: ClassVar[tuple[str, ...]] = ()  # options of other parts to accept and drop

    def __init__(self, **data: Any) -> None:
        """Make an object of the class that the name picks."""
        object.__setattr__(self, "__class__", self._class_for(data) or type(self))
        super().__init__(**data)

    # Pydantic calls an `__init__` that is not marked on top of validating, which picks the class.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def defaults(self) -> Self:
        """Return the section of the same part with nothing else set."""
        return type(self)(**{self.names: getattr(self, self.names)})

    def unused(self) -> list[tuple[str, str]]:
        """Return (option, parts that have it) for each option of other parts that was kept."""
        return [
            (key, ", ".join(owners))
            for key in self.model_extra or {}
            if (owners := _owners(type(self), key))
        ]

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_part(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        kind = cls._class_for(data)
        if kind is None:
            return handler(data)
        return handler(_with_others(cls, data)) if kind is cls else kind.model_validate(data)

    @classmethod
    def _class_for(cls, data: Any) -> type[Self] | None:
        """The class for a part's options; None if the part is not installed."""
        if not isinstance(data, dict):
            return None
        name = data.get(cls.names, cls.model_fields[cls.names].default)
        if not isinstance(name, str) or name not in installed(cls.group):
            return None
        kind = options_of(cls.group, name)
        return kind if issubclass(kind, cls) else cls


def _completed(value: Any, default: Any) -> Any:
    """Add to a mapping the keys of a default that it does not set.

    A part's section stays as it is: the name in it picks the class, which has its defaults.
    """
    if not isinstance(value, dict) or not isinstance(default, Section):
        return value
    if isinstance(default, PartSection):
        return value
    kept = dict(default)
    return kept | {key: _completed(inner, kept.get(key)) for key, inner in value.items()}


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
    """Return the data of a part without other parts' options.

    Recipes of earlier versions hold the options of all parts, so another part's default is dropped.

    Raises:
        ValidationError: a key is unknown, or an option of another part that is not kept.
    """
    kept = {}
    for key, value in data.items():
        if key in cls.model_fields:
            kept[key] = value
            continue
        if key in cls.ignored:
            continue
        owners = _owners(cls, key)
        problem: Any = {"type": "extra_forbidden", "loc": (key,), "input": value}
        if not owners:
            raise ValidationError.from_exception_data(cls.__name__, [problem])
        if value is None:
            continue
        options = options_of(cls.group, owners[0])
        value = getattr(options.model_validate({cls.names: owners[0], key: value}), key)
        if value == options.model_fields[key].get_default(call_default_factory=True):
            continue
        if not cls.keeps_others:
            own = data.get(cls.names, cls.model_fields[cls.names].default)
            problem["type"] = PydanticCustomError(
                "other_part", f"an option of {', '.join(owners)}, not of {own}; remove it"
            )
            raise ValidationError.from_exception_data(cls.__name__, [problem])
        kept[key] = value
    return kept


def _owners(cls: type[PartSection], key: Any) -> list[str]:
    """The installed parts that have an option of this name; a part of the same name comes first."""
    usable, _ = load_all(cls.group)
    names = sorted(usable, key=lambda name: (name != key, name))
    return [name for name in names if key in usable[name].Options.model_fields]


def short_for(key: str) -> BeforeValidator:
    """Accept a plain string as the short form of a section with one key."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


def name_problem(name: str, also: str = "-") -> str:
    """Return why a name cannot be part of file names; empty if it can.

    Args:
        name: the name of an arm, a suite, a judge or a contender.
        also: the characters that it may contain besides letters, digits and "_".
    """
    allowed = f"A-Za-z0-9_{also}"
    if re.fullmatch(rf"(?!\.)[{allowed}]{{1,{LONGEST_NAME}}}", name):
        return ""
    filler = "-" if "-" in also else "_"
    without_accents = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    fit = re.sub(rf"[^{allowed}]+", filler, without_accents).strip(".-")[:LONGEST_NAME]
    signs = ", ".join(f'"{sign}"' for sign in also + "_")
    example = f', such as "{fit}"' if fit else ""
    return (
        f'"{name}" is not a valid name; use at most {LONGEST_NAME} letters (a to z), digits and '
        f"{signs}{example}"
    )


def file_name(also: str = "-") -> AfterValidator:
    """Refuse names that cannot be part of a file name."""

    def check(name: str | None) -> str | None:
        if name is not None and (problem := name_problem(name, also)):
            raise ValueError(problem)
        return name

    return AfterValidator(check)


def unique(key: str | None = None) -> AfterValidator:
    """Refuse sections with the same name, or equal values: their records would have the same ids.

    Args:
        key: the attribute that holds a section's name; None for a list of values.
    """
    what = "value" if key is None else "name"

    def check(items: list[Any] | None) -> list[Any] | None:
        names = (items or []) if key is None else list(map(attrgetter(key), items or []))
        seen: dict[str, Any] = {}
        for name in names:
            # Some file systems make one file of two names that differ in case.
            alike = str(name).casefold()
            if alike in seen and seen[alike] == name:
                raise ValueError(f'duplicate {what} "{name}"; {what}s must be unique')
            if alike in seen:
                raise ValueError(
                    f'"{seen[alike]}" and "{name}" differ only in case; {what}s must be unique'
                )
            seen[alike] = name
        return items

    return AfterValidator(check)


Sources = Annotated[
    list[Source],
    BeforeValidator(lambda value: [value] if isinstance(value, str | dict | Source) else value),
]


def parts_of(value: Any, kind: type[Part]) -> Iterator[Part]:
    """Yield every object of a kind, such as `Source` or `Engine`, in a part of a recipe."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, BaseModel):
        for _, inner in value:
            yield from parts_of(inner, kind)
    elif isinstance(value, list):
        for item in value:
            yield from parts_of(item, kind)
