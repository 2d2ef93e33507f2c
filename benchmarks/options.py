"""The options that all benchmarks have."""

import argparse
from collections.abc import Sequence


def make_parser(name: str, description: str, measures: Sequence[str],
                rounds: str) -> argparse.ArgumentParser:
    """A parser; `rounds` says which measures have more of them."""
    def names(value: str) -> list[str]:
        """The names in a list with commas."""
        found = value.split(',')
        for each in found:
            if each not in measures:
                raise argparse.ArgumentTypeError(f'not known: {each!r}')
        return found

    parser = argparse.ArgumentParser(
        prog=f'bench {name}', description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--runs', metavar='N', type=int, default=5,
        help=f'how many rounds (default: %(default)s); {rounds}')
    parser.add_argument(
        '--only', metavar='NAME,...', type=names, default=list(measures),
        help=f'what to measure, of {", ".join(measures)} (default: all)')
    return parser
