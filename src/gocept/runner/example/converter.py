"""A child of the example: turns reStructuredText into plain text.

The first line of the output is ``{"ready": PID}``. Each line of the input is a
request, ``{"path": ..., "stamp": ...}``. The answers follow in the same order:
``{"path": ..., "stamp": ..., "text": ..., "error": ...}``. A file that cannot
be converted has an error and no text.
"""

import json
import os
import sys
from pathlib import Path

from docutils.core import publish_doctree

LONGEST = 1_000_000
"""The most characters of a text in an answer."""

SETTINGS = {
    'file_insertion_enabled': False,
    'raw_enabled': False,
    'report_level': 5,  # errors in a file do not belong into our log
    'halt_level': 6,
}


def convert(source: str) -> str:
    """The text, without the markup."""
    text: str = publish_doctree(
        source, settings_overrides=SETTINGS).astext()
    return text[:LONGEST]


def main() -> None:
    """Answer until the input ends."""
    print(json.dumps({'ready': os.getpid()}), flush=True)
    for line in sys.stdin:
        answer = json.loads(line) | {'text': '', 'error': ''}
        try:
            answer['text'] = convert(Path(answer['path']).read_text(
                encoding='utf-8', errors='replace'))
        except Exception as error:  # the file's, or one of docutils
            answer['error'] = f'{type(error).__name__}: {error}'
        print(json.dumps(answer), flush=True)


if __name__ == '__main__':
    main()
