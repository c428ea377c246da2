"""The old name of `setbacks.models.adapters`; it goes after one release."""

from setbacks.models.adapters import *  # noqa: F403
