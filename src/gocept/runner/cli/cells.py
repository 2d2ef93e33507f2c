"""Colours of what stands in a table, for people."""

import os

RED, GREEN, YELLOW, DIM = 31, 32, 33, 2


def coloured(colour: int, text: str) -> str:
    """The text in a colour, for a terminal."""
    return f'\x1b[{colour}m{text}\x1b[0m'


def wants_colour(choice: str, is_terminal: bool) -> bool:
    """Whether to use colours: `choice` is auto, always or never.

    See https://no-color.org for NO_COLOR.
    """
    if choice != 'auto':
        return choice == 'always'
    return (is_terminal and not os.environ.get('NO_COLOR')
            and os.environ.get('TERM', 'dumb') != 'dumb')
