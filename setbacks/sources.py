"""The names that other packages import; the code is in `setbacks.data`."""

from setbacks.data import Row, Source, load, load_labels
from setbacks.data.presets import PRESETS
from setbacks.errors import InputError

__all__ = ["PRESETS", "InputError", "Row", "Source", "load", "load_labels"]
