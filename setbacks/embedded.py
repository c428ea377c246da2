"""The old name of `setbacks.models.embedded`; it goes after one release."""

from setbacks.models.embedded import *  # noqa: F403
