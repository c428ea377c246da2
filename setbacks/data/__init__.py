"""Instructions and answers: from built-in sets, public sets, and your own files."""

from setbacks.data.source import Row, Source
from setbacks.data.sources import load, load_labels, read_once

__all__ = ["Row", "Source", "load", "load_labels", "read_once"]
