"""What may take long, such as names that servers know, asked by a helper.

The helper is a fork of the daemon that calls one function and ends.
"""

import contextlib
import json
import os
import signal
from collections.abc import Callable

from gocept.runner.kernel.wire.frames import Json
from gocept.runner.poller.poller import Poller
from gocept.runner.poller.timer import Timer
from gocept.runner.process.direct import Question, Reports

PATIENCE = 10.0  # seconds


def ask(poller: Poller, function: Callable[[], Json], noun: str,
        done: Callable[[Json], None], failed: Callable[[str], None],
        seconds: float = PATIENCE) -> None:
    """Call `function` in a helper, and `done` with what it returned.

    Or else `failed` with one line, in which `noun` says what was asked for.
    """
    question = Question(function, seconds)
    timer = Timer(seconds)

    def tell(said: bytes) -> None:
        poller.unregister(timer)
        try:
            answer = json.loads(said)
        except ValueError:
            failed(f'{noun}: the helper that asks has died')
            return
        if 'error' in answer:
            failed(f'{noun}: {answer["error"]}')
        else:
            done(answer['answer'])

    def give_up(*result: object) -> None:
        # It is our child, and not reaped before its report has ended.
        with contextlib.suppress(ProcessLookupError):
            os.kill(question.pid, signal.SIGKILL)
        poller.unregister(reports)
        reports.close()
        failed(f'{noun}: there was no answer within {seconds:g} s')

    reports = Reports(question.report_fd, tell)
    poller.register(reports)
    poller.register(timer, give_up)
