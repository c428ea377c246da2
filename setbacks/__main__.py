"""`python -m setbacks` is `setbacks`; `accelerate launch -m setbacks train RUN` needs it."""

from setbacks.cli import main

main()
