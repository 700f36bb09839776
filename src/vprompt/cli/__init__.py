"""Cli: what a person types, parsed and printed; every command calls one function of the library.

Nothing here computes, and torch is imported inside the commands alone, so that `--help` is quick.
"""

from vprompt.cli.app import main

__all__ = ["main"]
