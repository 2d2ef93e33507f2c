"""Whether a worker is healthy: a function of its state and of the facts.

Healthy is a worker whose process is alive and is not stopped; and that is in a
tick that has not run too long, or waits for a tick whose time has not passed.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gocept.runner.operation.state import Moment, State
    from gocept.runner.operation.vitals import Facts

ALLOWANCE = 10.0
"""How long a tick may not have begun after its time, in seconds."""

NOTICED = 4.0
"""Seconds after its time when a tick that was not begun is noted so."""

SETTLED = 2.0
"""Seconds after which a change is in the file: one, and as much for a disk and
a machine that are busy."""

HEALTHY = 'starting', 'waiting', 'ticking', 'late'


class Verdict:
    """What a worker does, as far as one can tell from outside."""

    def __init__(self, word: str, seconds: float | None = None,
                 reason: str = '', beyond: float | None = None) -> None:
        self.word = word
        """One of `HEALTHY`, or overdue, hanging, old, stopped, dead, ended,
        ending or unknown."""
        self.seconds = seconds
        """How long this is so, or will be."""
        self.reason = reason
        """Why somebody believes that, as a part of a sentence."""
        self.beyond = beyond
        """For how many seconds a limit has passed, if this is about one."""
        self.is_doubtful = False
        """Whether a change may not be in the file yet: look again within
        `SETTLED` seconds before you believe it."""

    @property
    def healthy(self) -> bool:
        """Whether all is well."""
        return self.word in HEALTHY


def judge(state: 'State', facts: 'Facts', max_age: float | None = None,
          ) -> Verdict:
    """What to think of a worker with this state.

    With `max_age`, a worker is not healthy whose last successful tick has
    ended more than as many seconds ago. If there was none, the age is that of
    the program. The time of a suspended machine does not count.
    """
    verdict = _of_process(state, facts)
    if verdict is not None:
        return verdict
    verdict = _of_loop(state, facts.now)
    if max_age is not None and verdict.healthy:
        last = state['last_success'] or state['started']
        age = facts.now['monotonic'] - last['monotonic']
        if age > max_age:
            verdict = Verdict('old', age, beyond=age - max_age)
    if not verdict.healthy:
        # The next item has a limit of its own, which may not be written yet.
        verdict.is_doubtful = _may_change(state['written'], facts.now) or (
            verdict.beyond is not None and verdict.beyond < SETTLED)
    return verdict


def _may_change(written: 'Moment', now: 'Moment') -> bool:
    """Whether there may be news that are not in the file yet.

    So it is after a write, and after the clock was set or the machine was
    suspended: then the worker wakes up at this moment, too.
    """
    passed = now['monotonic'] - written['monotonic']
    step = now['realtime'] - written['realtime'] - passed
    return passed < SETTLED or abs(step) > SETTLED


def by(clock: str, moment: 'Moment') -> float:
    """The moment by this clock."""
    return moment['realtime' if clock == 'realtime' else 'monotonic']


def _of_process(state: 'State', facts: 'Facts') -> Verdict | None:
    """The verdict if the process, or what is known of it, is not enough."""
    has_ended = state['phase'] == 'ended'
    process = facts.process
    seen = facts.now['realtime'] - state['written']['realtime']
    if state['boot'] != facts.boot:
        if has_ended:
            return Verdict('ended', seen)
        if state['host'] != facts.host:
            return Verdict('unknown', seen, 'it runs on another machine, '
                           f'{state["host"]}')
        return Verdict('dead', seen, 'the machine was started anew since')
    if state['namespaces'] != facts.namespaces or (
            not facts.namespaces and facts.boot):
        if has_ended:
            return Verdict('ended', seen)
        return Verdict('unknown', seen, 'it runs in another container or PID '
                       f'namespace, on {state["host"]}: ask there')
    if process is None:
        is_there, reason = False, f'there is no process {state["pid"]}'
    elif process.state in 'ZX':
        is_there, reason = False, (
            f'process {state["pid"]} has ended, and its parent does not care')
    elif process.start is not None and process.start != state['start']:
        is_there, reason = False, (
            f'process {state["pid"]} is another one by now')
    else:
        is_there = True
    if has_ended:
        return Verdict('ending' if is_there else 'ended', seen)
    if process is None or not is_there:
        return Verdict('dead', seen, reason)
    if process.start is None and facts.boot:
        return Verdict('unknown', seen, f'the system hides process '
                       f'{state["pid"]}: ask as the user of the worker')
    if process.state in 'Tt':
        return Verdict('stopped', None, 'by a signal' if process.state == 'T'
                       else 'by a debugger')
    return None


def _of_loop(state: 'State', now: 'Moment') -> Verdict:
    """The verdict about a process that runs."""
    passed = now['monotonic'] - state['since']['monotonic']
    timeout = state['tick_timeout']
    due = state['next_tick']
    if state['phase'] == 'pause' and due is not None:
        left = due['at'] - by(due['clock'], now)
        written = by(due['clock'], state['written'])
        beyond = due['at'] - left - _latest(due['at'], written, timeout)
        if beyond > 0:
            return Verdict('overdue', -left, beyond=beyond)
        return Verdict('waiting', max(0.0, left))
    if state['phase'] == 'tick':
        deadline = state['deadline']
        if deadline is not None and now['monotonic'] > deadline:
            return Verdict('hanging', passed,
                           beyond=now['monotonic'] - deadline)
        last = state['last_tick']
        is_late = state['deadline'] is None and last is not None and (
            passed > ALLOWANCE and passed > 2 * last['duration'])
        return Verdict('late' if is_late else 'ticking', passed)
    # At the start, or between a tick and the pause, as where a database is
    # asked. A tick may have begun since, and hold the interpreter. If nothing
    # holds it, the state is written again and again.
    silent = now['monotonic'] - state['written']['monotonic']
    if timeout is not None and silent > timeout:
        return Verdict('hanging', silent, beyond=silent - timeout)
    if passed > ALLOWANCE:
        return Verdict('late', passed)
    return Verdict('starting' if state['phase'] == 'starting' else 'ticking',
                   passed)


def _latest(due: float, written: float, timeout: float | None) -> float:
    """Until when a worker is healthy whose state says that it waits.

    The tick may have begun at its time, and hold the interpreter since, so
    that nothing can be written. Then it has its own time, but not more. If
    nothing holds the interpreter, a tick that has not begun is noted.
    """
    latest = due + ALLOWANCE
    if timeout is None:
        return latest
    running = max(due, written) + timeout
    return min(latest, running) if written > due + NOTICED else running
