"""Class labels: a schema of the `datasets` library has the names, and the data only their codes.

A code has no meaning by itself: in one data set 0 is "unsafe", in another it is "safe". So codes
are replaced by names before anything else reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from setbacks.data.source import Record

Names = Callable[[Any], Any]


def by_name(records: Iterable[Record], features: Mapping[str, Any]) -> list[Record]:
    """Return records with the name of every class label in place of its code.

    Args:
        records: as they are in the data.
        features: column -> feature, as `datasets.Features.to_dict` has them, and the schema of a
            Parquet file that was written with `datasets`.
    """
    readers = {column: read for column, feature in features.items() if (read := _reader(feature))}
    if not readers:
        return list(records)
    return [
        Record(at, value | {c: read(value[c]) for c, read in readers.items() if c in value})
        for at, value in records
    ]


def _reader(feature: Any) -> Names | None:
    """Return a function that names the class labels in a feature's value; None if it has none."""
    if isinstance(feature, list) and feature:  # how older releases write a list
        feature = {"_type": "List", "feature": feature[0]}
    if not isinstance(feature, Mapping):
        return None
    kind = feature.get("_type")
    if kind == "ClassLabel":
        names = feature.get("names")
        return _class_label(names if isinstance(names, list) else [])
    inner = feature.get("feature")
    if not isinstance(kind, str):
        return _struct({name: read for name, part in feature.items() if (read := _reader(part))})
    if isinstance(inner, Mapping) and not isinstance(inner.get("_type"), str):
        # An older Sequence of objects is kept as an object of lists.
        columns = {name: _reader([part]) for name, part in inner.items()}
        objects = _struct({name: read for name, read in columns.items() if read})
        items = _list(_reader(inner))
        if objects and items:
            return lambda value: objects(value) if isinstance(value, dict) else items(value)
        return None
    return _list(_reader(inner))


def _class_label(names: list[str]) -> Names:
    def read(code: Any) -> Any:
        if not isinstance(code, int) or isinstance(code, bool):
            return code  # already a name, or missing
        if code < 0:
            return None  # a missing label in `datasets`
        return names[code] if code < len(names) else f"class {code}, which has no name"

    return read


def _struct(readers: dict[str, Names]) -> Names | None:
    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return value | {name: of(value[name]) for name, of in readers.items() if name in value}

    return read if readers else None


def _list(item: Names | None) -> Names | None:
    def read(value: Any) -> Any:
        assert item is not None
        return [item(entry) for entry in value] if isinstance(value, list) else value

    return read if item else None
