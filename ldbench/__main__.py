"""``python -m ldbench``."""

from ldbench.cli.app import main

main()
