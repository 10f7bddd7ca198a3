"""``python -m ldbench``."""

from ldbench.cli import main

main()
