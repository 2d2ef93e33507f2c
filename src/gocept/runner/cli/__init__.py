"""``gocept-runner``, and the command line that each worker has."""

from gocept.runner.cli.subcommands import main

__all__ = ['main']
