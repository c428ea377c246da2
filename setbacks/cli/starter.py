"""A starter recipe and the recipe reference, both written from the fields that the code reads."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel

from setbacks.plugins import installed
from setbacks.recipe import PartSection, Recipe, options_of, section_of

_HEAD = """\
# A setbacks recipe: all that a run is told. Every line is a default; delete what you do not change.
# Run it with: setbacks run FILE        One value for once: setbacks run FILE train.epochs=3
"""


def starter() -> str:
    """Return the default recipe as YAML, each field under what it does."""
    return _HEAD + "\n".join(_commented(Recipe(), "")) + "\n"


def _commented(section: BaseModel, indent: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if not indent:
            yield ""
        yield from textwrap.wrap(
            field.description or name,
            100 - len(indent),
            initial_indent=f"{indent}# ",
            subsequent_indent=f"{indent}# ",
        )
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:"
            yield from _commented(value, indent + "  ")
        else:
            yield textwrap.indent(_line(name, value), indent)
    for name, field, owners in _options(type(section)):
        yield textwrap.fill(
            f"{owners}: {field.description}",
            98 - len(indent),
            initial_indent=f"{indent}# ",
            subsequent_indent=f"{indent}# ",
        )
        yield textwrap.indent(_line(name, _default_of(field)), f"{indent}# ")


def _default_of(field: Any) -> Any:
    """A field's default as plain data; of a required one, a place to fill in."""
    default = "..." if field.is_required() else field.get_default(call_default_factory=True)
    return default.model_dump(mode="json") if isinstance(default, BaseModel) else default


def _line(name: str, value: Any) -> str:
    text: str = yaml.safe_dump({name: _brief(value)}, sort_keys=False, allow_unicode=True)
    return text.rstrip("\n")


def _options(section: type[BaseModel]) -> list[tuple[str, Any, str]]:
    """The options that installed parts add to a section: name, field, and whose they are."""
    if not issubclass(section, PartSection):
        return []
    found: dict[tuple[str, str | None], tuple[Any, list[str]]] = {}
    for part in sorted(installed(section.group)):
        for name, field in options_of(section.group, part).model_fields.items():
            if name not in section.model_fields:
                found.setdefault((name, field.description), (field, []))[1].append(f"`{part}`")
    return [(name, field, ", ".join(owners)) for (name, _), (field, owners) in found.items()]


def _brief(value: Any) -> Any:
    """Leave out of list items what is a default: a source is easier to read without ten nulls."""
    if isinstance(value, list):
        return [_brief(item) for item in value]
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_defaults=True) or value.model_dump(mode="json")
    return value


def reference() -> str:
    """Return the recipe reference (docs/recipe.md): a table for each section."""
    lines = [
        "# Recipe reference",
        "",
        "Made from the code by `python docs/generate.py`. A recipe is YAML; it names only what "
        "differs from the defaults below. Unknown keys are refused.",
    ]
    todo: list[tuple[str, type[BaseModel]]] = [("recipe", Recipe)]
    seen = set()
    while todo:
        title, section = todo.pop(0)
        if section in seen:
            continue
        seen.add(section)
        summary = (section.__doc__ or "").strip().split("\n")[0]
        lines += ["", f"## {section.__name__}", "", summary, ""]
        lines += ["| key | type | default | what it does |", "| --- | --- | --- | --- |"]
        rows = [(name, field, "") for name, field in section.model_fields.items()]
        rows += [(name, field, f"{owners}: ") for name, field, owners in _options(section)]
        for name, field, owner in rows:
            inner = section_of(field.annotation)
            if inner is not None:
                todo.append((name, inner))
            kind = f"[{inner.__name__}](#{inner.__name__.lower()})" if inner else _kind(field)
            about = owner + (field.description or "").replace("|", "\\|")
            lines.append(f"| `{name}` | {kind} | {_default(field)} | {about} |")
    return "\n".join(lines) + "\n"


def _kind(field: Any) -> str:
    text = getattr(field.annotation, "__name__", None)
    if text is None or "[" in str(field.annotation) or "|" in str(field.annotation):
        text = str(field.annotation).replace("typing.", "")
    return "`" + text.replace("|", "or") + "`"


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see there"
    text = yaml.safe_dump(_brief(value), default_flow_style=True, width=10**6, sort_keys=False)
    return "`" + text.removesuffix("...\n").strip().replace("|", "\\|") + "`"
