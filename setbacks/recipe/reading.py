"""Reading a recipe: from a YAML file and overrides to plain data, and errors in one line."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from setbacks.data import Source
from setbacks.errors import InputError, nearest
from setbacks.files import expanded
from setbacks.plugins import installed, load_all
from setbacks.recipe.models import Engine
from setbacks.recipe.parts import LOCAL, OptionsOf, PartSection, Section, options_of
from setbacks.recipe.sections import Contender, Train
from setbacks.text import quoted


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the data of a recipe's file.

    Raises:
        InputError: the file cannot be read, or is not a mapping in YAML.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        siblings = path.parent.glob("*.y*ml") if path.parent.is_dir() else ()
        hint = nearest(path.name, [other.name for other in siblings])
        raise InputError(
            f"{path}: no such recipe.{hint} `setbacks new {quoted(path.name)}` writes one."
        ) from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; a recipe is a YAML file{_resume(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text: {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise InputError(f"{path}:{line} not YAML: {' '.join(problem.split())}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(
            f"{path}: not a recipe, which is a YAML file of `key: value` lines; `setbacks new` "
            "writes one with every key"
        )
    return data


def _resume(folder: Path) -> str:
    """Return how to resume the run of a folder; empty if it has none."""
    if not (folder / "environment.json").is_file():  # a study's folder has none
        return ""
    return f"; to resume this run: `setbacks report {quoted(folder)}`"


def parse_overrides(overrides: Sequence[str]) -> Any:
    """Turn ``key.path=value`` strings into nested mappings."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for item in overrides:
        key, equals, _ = item.partition("=")
        if not equals or not key:
            raise InputError(f'"{item}" is not an override; write key.path=value, such as seed=1')
    try:
        # Interpolations stay text: a recipe is data and must not read the environment.
        return OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)), resolve=False)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        problem = getattr(error, "problem", None) or str(error)
        raise InputError(f"{' '.join(overrides)}: {' '.join(problem.split())}") from None


def merge(old: Any, new: Any) -> Any:
    """Merge nested mappings; values of `new` win."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return {**old, **{key: merge(old.get(key), value) for key, value in new.items()}}


def written_out(section: type[BaseModel], data: Any) -> Any:
    """Expand an engine's short form, a string, so that overrides can set keys beside its model."""
    if not isinstance(data, dict):
        return {"model": data} if section is Engine and isinstance(data, str) else data
    fields = section.model_fields
    inner = {key: section_of(fields[key].annotation) for key in data if key in fields}
    return {key: written_out(s, v) if (s := inner.get(key)) else v for key, v in data.items()}


def explain(error: ValidationError, root: type[BaseModel], prefix: str = "") -> str:
    """Return one line that says what is wrong with the data of a section, and where.

    Args:
        error: what pydantic found.
        root: the section.
        prefix: begins every key, such as "study.".
    """
    problems = []
    for problem in error.errors(include_url=False):
        where = prefix + _dotted(problem["loc"])
        if problem["type"] == "extra_forbidden":
            *path, key = problem["loc"]
            section = prefix + (f"{where}." if (where := _dotted(path)) else "")
            problems.append(f'unknown key "{section}{key}".{_valid(key, root, path, section)}')
        else:
            problems.append(f"{where or 'recipe'}: {_message(problem)}")
    line = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
    return " ".join(line.split())  # a key can contain a line break


def _valid(key: int | str, root: type[BaseModel], path: Sequence[int | str], prefix: str) -> str:
    """Return the valid key that is most similar, or all of them if none is and they are few."""
    known = _fields_at(root, path)
    if not known:
        return " Remove it: there are no options"
    if hint := nearest(str(key), known, prefix):
        return hint
    full = ", ".join(f"{prefix}{name}" for name in known)
    return f" Available: {full}" if len(known) <= MOST_KEYS else ""


def _dotted(path: Sequence[int | str]) -> str:
    """Join a path of pydantic's without the union members and validators that it adds."""
    return ".".join(str(part) for part in path if "[" not in str(part))


# By the type of pydantic's error up to its "_".
_EXPECTED = {
    "bool": "must be true or false",
    "int": "must be a whole number",
    "float": "must be a number",
}
# By the type of pydantic's error.
_REASONS = {
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "missing": "is missing",
    "string_too_short": "must not be empty",
}
MOST_KEYS = 25  # that fit into a message


def _message(problem: ErrorDetails) -> str:
    """Return what is wrong with a value, in plain words where pydantic's are technical."""
    kind, value = problem["type"], problem["input"]
    if kind == "too_short":
        least = problem["ctx"]["min_length"]
        return f"name at least {'one' if least == 1 else least}"
    single = "" if isinstance(value, dict | list | None) else textwrap.shorten(str(value), 40)
    if kind == "list_type":
        if isinstance(value, dict) and all(str(key).isdigit() for key in value):
            return "must be a list; no item is set by its number: write the whole list"
        return "must be a list" + (f"; write [{single}]" if single else "")
    if kind in ("model_type", "dict_type"):
        return "must be a section, such as {name: VALUE}" + (f', not "{single}"' if single else "")
    expected = _EXPECTED.get(kind.partition("_")[0])
    if expected and kind.endswith(("_parsing", "_type", "_from_float")):
        return expected + (f', not "{single}"' if single else "")
    if kind in _REASONS:
        return _REASONS[kind].format_map(problem.get("ctx", {}))
    message = problem["msg"].removeprefix("Value error, ")
    return re.sub("^Input should be ", "must be ", message)


def _fields_at(section: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """Return the field names of the section at the path of a validation error."""
    for part in path:
        field = _fields(section).get(str(part))
        if field is not None:
            section = section_of(field.annotation) or section
    return list(_fields(section))


def _fields(section: type[BaseModel]) -> dict[str, Any]:
    """Return a section's fields, including those of all installed parts."""
    fields: dict[str, Any] = dict(section.model_fields)
    if issubclass(section, PartSection):
        usable, _ = load_all(section.group)
        for part in usable.values():
            fields = part.Options.model_fields | fields
    return fields


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a field's type holds: itself, in a list, or beside None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (section_of(part) for part in getattr(annotation, "__args__", ()))
    return next((section for section in inner if section), None)


def rebase(value: Any, base: Path) -> Any:
    """Return a part of a recipe with its relative paths resolved from `base`."""
    if isinstance(value, Source):
        return _absolute(value, base)
    if isinstance(value, Section):
        parts = {key: rebase(inner, base) for key, inner in value}
        for key, field in type(value).model_fields.items():
            if LOCAL in field.metadata and parts[key] is not None:
                parts[key] = _local(parts[key], base)
            for mark in field.metadata:
                if isinstance(mark, OptionsOf):  # of one part, which a command names later
                    for name in installed(mark.group) if parts[key] else ():
                        parts[key] = _rebased_data(parts[key], options_of(mark.group, name), base)
        if isinstance(value, Contender):
            parts["train"] = _rebased_data(value.train, _train_of(value), base)
        if isinstance(value, Engine) and value.on_disk and _is_folder(value.model, base):
            parts["model"] = _from(base, value.model)
        return value.model_copy(update=parts)
    return [rebase(item, base) for item in value] if isinstance(value, list) else value


def _train_of(contender: Contender) -> type[Section]:
    """Return the section that holds the options of a contender's method."""
    known = contender.method in installed("methods")
    return options_of("methods", contender.method) if known else Train


def _rebased_data(data: dict[str, Any], kind: type[BaseModel], base: Path) -> dict[str, Any]:
    """Return plain data of a section, not yet checked, with its relative paths resolved.

    Only values with a relative path change: all others stay as they are written.
    """
    rebased = dict(data)
    for key, value in data.items():
        if (field := kind.model_fields.get(key)) is None or value is None:
            continue
        inner = section_of(field.annotation)
        if LOCAL in field.metadata:
            rebased[key] = _local(value, base)
        elif inner is Source:
            with suppress(ValidationError, InputError):  # refused where the section is made
                sources = TypeAdapter(field.rebuild_annotation()).validate_python(value)
                if (moved := rebase(sources, base)) != sources:
                    rebased[key] = [source.model_dump(mode="json") for source in moved]
        elif inner is not None and isinstance(value, dict):
            rebased[key] = _rebased_data(value, inner, base)
    return rebased


def _local(value: Any, base: Path) -> Any:
    """Resolve a path, or each of several."""
    if isinstance(value, list):
        return [_local(path, base) for path in value]
    return _from(base, value) if isinstance(value, str) else value


def _absolute(source: Source, base: Path) -> Source:
    """Resolve a source's path from `base`; names such as builtin:redteam stay as they are."""
    update = {}
    if not source.source.startswith(("builtin:", "preset:", "hub:")):
        update["source"] = _from(base, source.source)
    if source.path is not None:
        update["path"] = _from(base, source.path)
    return source.model_copy(update=update)


def _from(base: Path, path: str) -> str:
    return os.path.normpath(base / expanded(path))


def _is_folder(model: str, base: Path) -> bool:
    """Whether a model is a folder, not a hub id: it is written like one, or it exists."""
    return model.startswith((".", "~", os.sep)) or (base / model).is_dir()
