"""What is done: words are counted.

It stands for all that takes longer than a browser should wait.
"""

from typing import Any

from zope.annotation.interfaces import IAnnotations

KEY = 'gocept.runner.example.queue.words'
"""Of the annotation with the number of words."""


def count(content: Any) -> int:
    """Count the words of its title and text, and note their number."""
    text = getattr(content, 'text', None) or ''
    # Plone's rich text knows what its author has written.
    text = getattr(text, 'raw', text)
    title = getattr(content, 'title', None) or ''
    number = len(f'{title} {text}'.split())
    IAnnotations(content)[KEY] = number
    return number


def counted(content: Any) -> int | None:
    """How many words it has, if they were counted."""
    number: int | None = IAnnotations(content).get(KEY)
    return number
