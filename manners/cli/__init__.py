"""The command line: one subcommand a stage, and those around them; each parses its options and calls one function."""

from manners.cli.main import Command, main

__all__ = ["Command", "main"]
