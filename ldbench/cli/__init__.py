"""The command line: parse, call, print."""

from ldbench.cli.app import main

__all__ = ["main"]
