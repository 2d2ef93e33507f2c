"""How much of each thing a kernel keeps for its clients."""

from collections.abc import Iterable
from typing import NamedTuple

from gocept.runner.errors import KernelError

_UNITS = {'k': 2 ** 10, 'm': 2 ** 20, 'g': 2 ** 30}


class Limits(NamedTuple):
    """Each is set by ``--limit NAME=VALUE``, with k, m or g for bytes."""

    line: int = 2 ** 20
    frame: int = 16 * 2 ** 20
    requests: int = 256
    connections: int = 2000
    traffic: int = 256 * 2 ** 20
    processes: int = 10_000
    memory: int = 2 ** 30
    sockets: int = 1000
    values: int = 10_000
    value: int = 2 ** 20
    storage: int = 64 * 2 ** 20

    @classmethod
    def meanings(cls) -> dict[str, str]:
        """What each limit counts, by its name."""
        return _MEANINGS

    @classmethod
    def parse(cls, settings: Iterable[str]) -> 'Limits':
        """Make limits of words like ``line=2m``; `KernelError` for others."""
        return cls(**dict(map(cls._parse_one, settings)))

    @classmethod
    def _parse_one(cls, setting: str) -> tuple[str, int]:
        name, _, value = setting.partition('=')
        names = cls.meanings()
        if name not in names:
            raise KernelError(f'there is no limit {name!r}: name one of '
                              f'{", ".join(names)}')
        return name, parse_size(value, f'the limit {name}')

    def check(self, name: str, wanted: int) -> None:
        """Refuse `wanted` things of a kind, if these are too many."""
        limit: int = getattr(self, name)
        if wanted > limit:
            raise KernelError(
                f'the limit is {limit} {self.meanings()[name]}, and these '
                f'would be {wanted}: start the kernel with --limit '
                f'{name}={wanted} to allow more')


_MEANINGS = {
    'line': 'bytes in a line of the text protocol',
    'frame': 'bytes in a frame, or in a text answer',
    'requests': 'requests of a client that wait for their answers at once',
    'connections': 'clients that are connected at once',
    'traffic': 'bytes kept for all clients: half sent requests, and answers '
               'that nobody reads; and of writes that wait for room',
    'processes': 'processes',
    'memory': 'bytes of output kept for all processes',
    'sockets': 'sockets',
    'values': 'values',
    'value': 'bytes in a value',
    'storage': 'bytes of all values together, with their names',
}


def parse_size(text: str, noun: str) -> int:
    """The number that is written in `text`, with k, m or g behind it.

    `noun` says in the error what the number is.
    """
    factor = _UNITS.get(text[-1:].lower(), 1)
    digits = text[:-1] if factor > 1 else text
    if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
        raise KernelError(f'{noun} is a number, such as 4096, 64k, 1m or 1g, '
                          f'not {text!r}')
    return int(digits) * factor
