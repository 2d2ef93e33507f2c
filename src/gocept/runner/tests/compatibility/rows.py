"""Rows of a table of uses, and the tests that are made of them.

A use is Python text, as a user of the library writes it; only the names of the
modules are ours. The value of its last line is what comes back.
"""

import ast
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from gocept.runner.tests.support import TestCase

T = TypeVar('T', bound=type[TestCase])


class Raises(NamedTuple):
    """What comes back is an error, the text of which has these words."""

    error: type[BaseException]
    words: str = ''


class Row(NamedTuple):
    """One use of one name."""

    name: str
    use: str
    result: object
    theirs: str = ''
    """What the library itself does, where ours differs on purpose."""


def run(use: str, names: dict[str, Any]) -> object:
    """Run the text; returns the value of its last line."""
    tree = ast.parse(use)
    *_, last = tree.body
    if not isinstance(last, ast.Expr):
        exec(compile(tree, '<use>', 'exec'), names)
        return None
    tree.body.pop()
    exec(compile(tree, '<use>', 'exec'), names)
    return eval(compile(ast.Expression(last.value), '<use>', 'eval'), names)


def table(rows: Iterable[Row]) -> Callable[[T], T]:
    """A decorator: a test for each row, which has the name of the row.

    The class has a method ``names()``, which returns the names that a use may
    take for granted.
    """
    def with_tests(case: T) -> T:
        for number, row in enumerate(rows):
            words = '_'.join(re.findall(r'\w+', row.name))
            setattr(case, f'test_{number:03}_{words}', test_of(row))
        return case
    return with_tests


def test_of(row: Row) -> Callable[..., None]:
    def test(self: Any) -> None:
        names = self.names()
        try:
            if isinstance(row.result, Raises):
                with self.assertRaises(row.result.error) as caught:
                    run(row.use, names)
                self.assertIn(row.result.words, str(caught.exception))
            else:
                self.assertEqual(row.result, run(row.use, names))
        except AssertionError as error:
            raise AssertionError(
                f'{row.name}\n{row.use}\n{error}') from None
        finally:
            names.clear()  # what the use has forgotten ends here
    test.__doc__ = row.name
    return test
