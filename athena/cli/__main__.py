"""``python -m athena.cli``."""

from athena.cli import main

main()
