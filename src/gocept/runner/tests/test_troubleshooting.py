"""docs/troubleshooting.rst has an entry for each message of this package."""

import ast
import builtins
import itertools
import pathlib
import re
import unittest
from collections.abc import Iterator

import gocept.runner
from gocept.runner import errors

PACKAGE = pathlib.Path(gocept.runner.__file__).parent
PAGE = PACKAGE.parents[2] / 'docs/troubleshooting.rst'

# What ends a program is raised or printed here.
PROGRAMS = [*PACKAGE.glob('boot/**/*.py'), *PACKAGE.glob('cli/*.py'),
            PACKAGE / 'errors.py', PACKAGE / 'runner.py',
            PACKAGE / 'operation/exposition.py',
            PACKAGE / 'operation/lock.py', PACKAGE / 'operation/metrics.py',
            PACKAGE / 'zcml/kernels.py', PACKAGE / 'zcml/supervisor.py']

LEVELS = {'warn', 'warning', 'error', 'exception', 'critical'}
LOGGERS = {'log', '_log', 'complaints', 'warnings'}
REPORTS = {'report', '_report', '_failure', '_closed', '_not_utf8'}
"""Functions that log or raise the text that they are called with."""

# These tell of a wrong parameter, or are for Python itself.
PLAIN = {'TypeError', 'ValueError', 'AttributeError', 'DoomedTransaction'}

VARIABLE = re.compile(r'%[-.\d]*[a-zA-Z]|\0')
"""What is filled in: by `logging`, or in an f-string."""


def texts(node: ast.expr) -> Iterator[str]:
    """The texts that an expression stands for, with NUL for variables."""
    match node:
        case ast.Constant(str(text)):
            yield text
        case ast.JoinedStr(parts):
            yield ''.join(
                part.value if isinstance(part, ast.Constant) else '\0'
                for part in parts)
        case ast.BinOp(left, ast.Add(), right):
            yield from (one + other for one in texts(left)
                        for other in texts(right))
        case ast.IfExp(body=one, orelse=other):
            yield from (*texts(one), *texts(other))
        case _:
            yield '\0'


def name_of(node: ast.expr) -> str:
    """The last part of a dotted name."""
    match node:
        case ast.Name(name) | ast.Attribute(attr=name):
            return name
    return ''


def is_log(node: ast.expr) -> bool:
    """Whether it is a method that logs at least a warning."""
    return (isinstance(node, ast.Attribute) and node.attr in LEVELS
            and name_of(node.value) in LOGGERS)


def is_error(name: str) -> bool:
    """Whether it is the name of an exception that people read."""
    kind = getattr(errors, name, None) or getattr(builtins, name, None)
    return name in {'UserError', 'ArgumentTypeError'} or (
        isinstance(kind, type) and issubclass(kind, Exception)
        and name not in PLAIN)


def ends_program(call: ast.Call) -> bool:
    """Whether it makes or shows the line that ends a program."""
    name = name_of(call.func)
    if name == 'print':
        return any(each.arg == 'file' for each in call.keywords)
    return is_error(name) or ast.unparse(call.func) in (
        'parser.error', 'super().__init__')


def said(call: ast.Call, of_program: bool) -> Iterator[ast.expr]:
    """The arguments of a call that are a message."""
    if is_log(call.func) or name_of(call.func) in REPORTS:
        yield from call.args[:1]
    for method, text in itertools.pairwise(call.args):
        if is_log(method):  # called later
            yield text
    if of_program and ends_program(call):
        yield from call.args[:2]  # some errors have something before it


def messages(path: pathlib.Path) -> Iterator[str]:
    """The messages of a module that the page has to have."""
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        found: list[ast.expr] = []
        if isinstance(node, ast.Call):
            found += said(node, path in PROGRAMS)
        elif (path.name in ('messages.py', 'zopeconf.py')
              and isinstance(node, ast.Return) and node.value is not None):
            found.append(node.value)
        for each in found:
            yield from texts(each)


def constant_part(message: str) -> str:
    """The longest part that is always the same; '' if it has no word."""
    part = max((' '.join(each.split()) for each in VARIABLE.split(message)),
               key=len)
    return part if re.search('[a-z]{3}', part) else ''


class TroubleshootingTests(unittest.TestCase):

    def test_each_message_has_an_entry(self) -> None:
        page = ' '.join(PAGE.read_text(encoding='utf-8').split())
        for path in sorted(PACKAGE.rglob('*.py')):
            if not {'tests', 'testing', 'example'}.isdisjoint(
                    path.relative_to(PACKAGE).parts):
                continue
            for message in messages(path):
                with self.subTest(module=path.relative_to(PACKAGE).as_posix(),
                                  message=message.replace('\0', '...')):
                    self.assertTrue(constant_part(message) in page,
                                    f'{PAGE.name} needs an entry for this')
