"""Regular expressions for text whose end has not come yet."""

import re


def compiled(pattern: str) -> re.Pattern[str]:
    """In `pattern`, ``^`` and ``$`` are the ends of lines."""
    # Such a pattern matches from the beginning of a line, or not at all. To
    # try it everywhere takes time with the square of the line's length.
    if pattern.startswith('.*'):
        pattern = f'^{pattern}'
    return re.compile(pattern, re.MULTILINE)


def find(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """Search text whose last line goes on, so that ``$`` is not there."""
    # With something behind it, there is no end. What matches that is no match.
    for match in pattern.finditer(f'{text}\0'):
        if found := pattern.match(text, match.start()):
            return found
    return None
