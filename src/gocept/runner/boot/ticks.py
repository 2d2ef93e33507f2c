"""What a worker returns: how long the pause after a tick is."""

import contextlib
import numbers
import types

from gocept.runner.boot.texts import text


class ExitType:
    """What a worker returns to end the loop."""

    __module__ = 'gocept.runner'  # where pickle finds `Exit`

    def __repr__(self) -> str:
        return 'gocept.runner.Exit'

    def __reduce__(self) -> str:
        return 'Exit'


Exit = ExitType()


def seconds(value: object, argument: str = '') -> float:
    """`value`, if it is a number of seconds that can be slept.

    It is that of an argument, or else the result of a worker.
    """
    if isinstance(value, numbers.Number) and not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            number = float(value)  # type: ignore[arg-type]
            if number >= 0:
                return value if isinstance(value, int) else number
    if argument:
        raise ValueError(f'{argument}: needs a number of seconds >= 0, not '
                         f'{text(value, repr)}')
    hint = ''
    if isinstance(value, types.GeneratorType):
        hint = ' (a generator function needs @transaction_per_item)'
    raise ValueError(
        'expected None, a number of seconds >= 0 or Exit, '
        f'not {text(value, repr)}{hint}')
