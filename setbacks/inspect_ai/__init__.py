"""For Inspect AI: the suites as tasks, the judges as scorers, and a run's responses as logs.

Inspect finds these through its entry point, so ``inspect eval setbacks/harmful --model ...`` works
wherever both are installed (the extra ``inspect``). `tasks` has the prompts, `scorers` the judges,
and `logs` writes the responses of a finished run.

Source: https://inspect.aisi.org.uk/extensions.html
"""

from setbacks.inspect_ai.scorers import (
    compliance,
    compliant,
    harmless,
    harmless_rate,
    helpful_score,
    helpfulness,
)
from setbacks.inspect_ai.tasks import guidance, harmful, helpful, hijacking, safe, system_prompt

__all__ = [
    "compliance",
    "compliant",
    "guidance",
    "harmful",
    "harmless",
    "harmless_rate",
    "helpful",
    "helpful_score",
    "helpfulness",
    "hijacking",
    "safe",
    "system_prompt",
]
