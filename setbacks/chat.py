"""The old name of `setbacks.models.chat_template`; it goes after one release."""

from setbacks.models.chat_template import *  # noqa: F403
