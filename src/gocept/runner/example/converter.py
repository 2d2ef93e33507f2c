"""A child of the example: makes text of reStructuredText.

Reads requests from standard input, ``{"path": ..., "stamp": ...}`` in a line,
and answers each in its order with ``{"path": ..., "stamp": ..., "text": ...,
"error": ...}``. What cannot be converted has no text, but an error.
"""

import json
import sys
from pathlib import Path

from docutils.core import publish_doctree

LONGEST = 1_000_000
"""How many characters of a text are handed out."""

SETTINGS = {
    'file_insertion_enabled': False,
    'raw_enabled': False,
    'report_level': 5,  # what is wrong in a file is not for our log
    'halt_level': 6,
}


def convert(source: str) -> str:
    """The text, without the markup."""
    text: str = publish_doctree(
        source, settings_overrides=SETTINGS).astext()
    return text[:LONGEST]


def main() -> None:
    """Answer until the input ends."""
    for line in sys.stdin:
        answer = json.loads(line) | {'text': '', 'error': ''}
        try:
            answer['text'] = convert(Path(answer['path']).read_text(
                encoding='utf-8', errors='replace'))
        except Exception as error:  # of the file, or of docutils with it
            answer['error'] = f'{type(error).__name__}: {error}'
        print(json.dumps(answer), flush=True)


if __name__ == '__main__':
    main()
