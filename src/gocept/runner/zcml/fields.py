"""The types of attributes in ZCML, which may take their text from zope.conf.

``${product-config:SECTION:KEY}`` in an attribute stands for the value of that
key in the ``<product-config SECTION>``.
"""

import contextlib
import math
import os
import re
import shlex
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import zope.configuration.fields
import zope.schema

from gocept.runner.boot.productconfig import setting
from gocept.runner.errors import NoSuchSetting
from gocept.runner.process.keywords import STREAMS

_REFERENCE = re.compile(r'\$\{product-config(?::([^{}]+):([^{}:]+)\})?')


class Wrong(zope.schema.ValidationError):  # type: ignore[misc]
    """Raised when a text has no meaning as the value of a field."""

    def __str__(self) -> str:
        return str(self.args[0])


def _value(reference: re.Match[str]) -> str:
    if not reference[1]:
        raise Wrong(f'a reference in {reference.string!r} has no section and '
                    'key: write ${product-config:SECTION:KEY}')
    # ZConfig has made these names lower-case.
    try:
        return str(setting(reference[1].lower(), reference[2].lower()))
    except NoSuchSetting as error:
        raise Wrong(f'{reference[0]}: {error}') from error


class _Attribute(zope.schema.Field):  # type: ignore[misc]
    """The base: ZCML may leave it out, and may take it from zope.conf."""

    def __init__(self, description: str = '', *, required: bool = False,
                 **options: Any) -> None:
        super().__init__(
            description=description, required=required, **options)

    def fromUnicode(self, value: str) -> object:
        """See `zope.schema.interfaces.IFromUnicode`."""
        try:
            return self.convert(_REFERENCE.sub(_value, value))
        except (ValueError, LookupError) as error:
            raise Wrong(str(error)) from error

    def convert(self, text: str) -> object:
        """The value; ValueError or LookupError if there is none."""
        return super().fromUnicode(text)  # type: ignore[misc]


class Text(_Attribute, zope.schema.TextLine):  # type: ignore[misc]
    """A line of text, which is not empty."""

    unicode_normalization = None  # as it may be a path

    def convert(self, text: str) -> object:
        if not text:
            raise ValueError('the value is empty')
        return super().convert(text)


class Name(_Attribute, zope.schema.TextLine):  # type: ignore[misc]
    """A name, which may be empty."""


class AbsolutePath(Text):
    """A path, seen from where ZCML is read, as the program may go away."""

    def convert(self, text: str) -> object:
        return os.path.abspath(str(super().convert(text)))


class Choice(_Attribute, zope.schema.Choice):  # type: ignore[misc]
    """One of several words."""

    def _validate(self, value: str) -> None:
        if value not in self.vocabulary:
            words = ', '.join(each.value for each in self.vocabulary)
            raise Wrong(f'{value!r} is none of {words}')


class Number(_Attribute, zope.schema.Int):  # type: ignore[misc]
    """A whole number."""

    def convert(self, text: str) -> object:
        try:
            return super().convert(text)
        except zope.schema.interfaces.TooSmall:
            raise ValueError(f'{text} is less than {self.min}') from None
        except zope.schema.interfaces.TooBig:
            raise ValueError(f'{text} is more than {self.max}') from None
        except ValueError:
            raise ValueError(f'{text!r} is no whole number') from None


class NumberOrNone(_Attribute):
    """A whole number of 0 or more, or ``none``."""

    def convert(self, text: str) -> int | None:
        if not text.isdecimal() and text.lower() != 'none':
            raise ValueError(f'{text!r} is neither a whole number >= 0 nor '
                             '"none"')
        return int(text) if text.isdecimal() else None


class Pattern(Text):
    """A regular expression."""

    def convert(self, text: str) -> object:
        try:
            re.compile(text)
        except re.error as error:
            raise ValueError(
                f'{text!r} is no regular expression: {error}') from None
        return super().convert(text)


class PatternOrNumber(Pattern):
    """A regular expression, or a number in its place."""

    def convert(self, text: str) -> object:
        return int(text) if text.isdecimal() else super().convert(text)


class Bytes(_Attribute):
    r"""Bytes: ASCII, and escapes such as ``\r\n`` or ``\x00``."""

    def convert(self, text: str) -> bytes:
        try:
            return text.encode('ascii').decode('unicode_escape').encode(
                'latin-1')
        except ValueError:
            raise ValueError(f'{text!r} is not written in ASCII, with escapes '
                             r'such as \r\n or \x00 for other bytes') from None


class Mode(_Attribute):
    """A mask of file modes, in octal digits."""

    def convert(self, text: str) -> int:
        if not re.fullmatch('[0-7]{1,4}', text) or int(text, 8) > 0o777:
            raise ValueError(
                f'{text!r} is no mask of up to 777 in octal digits')
        return int(text, 8)


class Bool(_Attribute, zope.configuration.fields.Bool):  # type: ignore[misc]
    """``true`` or ``false``."""

    def convert(self, text: str) -> object:
        try:
            return super().convert(text)
        except zope.schema.interfaces.InvalidValue:
            raise ValueError(f'{text!r} is neither true nor false') from None


class Seconds(_Attribute):
    """A number of seconds, whole or not."""

    def convert(self, text: str) -> float:
        number = math.nan
        with contextlib.suppress(ValueError):
            number = float(text)
        if not number >= 0:
            raise ValueError(f'{text!r} is no number of seconds >= 0')
        return int(number) if number.is_integer() else number


class Signal(_Attribute):
    """A signal: its name, with or without SIG, or its number."""

    def convert(self, text: str) -> signal.Signals | bool:
        try:
            return (signal.Signals(int(text)) if text.isdecimal() else
                    signal.Signals[f'SIG{text.upper().removeprefix("SIG")}'])
        except (LookupError, ValueError):
            raise ValueError(f'there is no signal {text!r}') from None


class SignalOrBool(Signal):
    """``true``, ``false`` or a signal."""

    def convert(self, text: str) -> signal.Signals | bool:
        if text.lower() in ('true', 'yes', 'on'):
            return True
        if text.lower() in ('false', 'no', 'off'):
            return False
        try:
            return super().convert(text)
        except ValueError as error:
            raise ValueError(f'{error}, and it is neither true nor false'
                             ) from None


class NameOrNumber(_Attribute):
    """A name, or a number in its place."""

    @staticmethod
    def convert(text: str) -> str | int:
        return int(text) if text.isdecimal() else text


class Words(_Attribute):
    """Words, which may be quoted as in a shell; `word` converts each."""

    def __init__(self, description: str = '', *,
                 word: Callable[[str], object] = str, **options: Any) -> None:
        super().__init__(description, **options)
        self._word = word

    def convert(self, text: str) -> Sequence[object]:
        return [self._word(word) for word in shlex.split(text)]


class Pairs(_Attribute):
    """Pairs of a name and a value: ``NAME=VALUE OTHER='A VALUE'``."""

    def convert(self, text: str) -> Mapping[str, object]:
        pairs = {}
        for word in shlex.split(text):
            name, equals, value = word.partition('=')
            if not (name and equals):
                raise ValueError(f'{word!r} is not written NAME=VALUE')
            pairs[name] = self._value(word, value)
        return pairs

    def _value(self, word: str, text: str) -> object:
        return text


class Limits(Pairs):
    """Resource limits: ``nofile=1024 core=0:-1``, soft and hard."""

    def _value(self, word: str, text: str) -> int | tuple[int, int]:
        if not re.fullmatch(r'-?\d+(:-?\d+)?', text):
            raise ValueError(f'the limit {word} is no number, nor two with a '
                             'colon between them')
        soft, colon, hard = text.partition(':')
        return (int(soft), int(hard)) if colon else int(soft)


class PopenErrorStream(_Attribute):
    """Standard error as Popen knows it, or a path with a slash."""

    known = STREAMS

    def convert(self, text: str) -> str | int | None:
        if text not in self.known and '/' not in text:
            raise ValueError(f'{text!r} is none of {", ".join(self.known)}, '
                             'nor a path with a slash')
        return self.known.get(text, text)


class PopenStream(PopenErrorStream):
    """Another stream, which cannot be merged into standard output."""

    known = {name: stream for name, stream in STREAMS.items()
             if name != 'merge'}


class Object(_Attribute,
             zope.configuration.fields.GlobalObject):  # type: ignore[misc]
    """Something in a module: ``my.package:name`` or ``my.package.name``."""

    def convert(self, text: str) -> object:
        return super().convert(text.replace(':', '.'))


class Function(Object):
    """The name of a function, ``my.package:name``, which can be imported."""

    def convert(self, text: str) -> str:
        text = text.strip()
        found = super().convert(text)
        if not callable(found):
            raise ValueError(f'{text} is no function, but {found!r}')
        if text.startswith('.'):
            text = self.context.package.__name__ + text
        return text if ':' in text else ':'.join(text.rpartition('.')[::2])
