"""The house: all workers of a zope.conf, and what lives as long as they do.

`House.run` is a loop in the main thread around one wait, that of the poller. A
callback or a signal handler only notes what has happened; `House._step` looks
at all that is noted, and acts. The processes are three kinds:

* `up`, which this is. It reads no ZCML and opens no database.
* a template, which has read the configuration, and only forks; see `templates`
* the workers, which are our children, since this process is the subreaper of
  what the template forks; see `tenant`
"""

import contextlib
import itertools
import logging
import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from gocept.runner import errors
from gocept.runner.cli.mistakes import UserError
from gocept.runner.errors import RunnerError
from gocept.runner.house import record
from gocept.runner.house.changeover import Changeover
from gocept.runner.house.control import Answer, Control
from gocept.runner.house.end import End
from gocept.runner.house.link import (
    DeclaredWorker,
    Failed,
    Forked,
    Ready,
    Unforked,
)
from gocept.runner.house.marks import JSONMarks, Marks
from gocept.runner.house.part import Part
from gocept.runner.house.plan import Plan
from gocept.runner.house.record import HouseState
from gocept.runner.house.rounds import Rounds
from gocept.runner.house.service import Service
from gocept.runner.house.templates import NAME as TEMPLATE
from gocept.runner.house.templates import Launch, TemplateProcess, Templates
from gocept.runner.house.tenant import UNFORKED, LaunchProgram, Tenant
from gocept.runner.house.workerprocess import Clock
from gocept.runner.house.writer import Writer
from gocept.runner.logs import Log
from gocept.runner.operation import vitals
from gocept.runner.poller import Poller, WallTimer
from gocept.runner.process.adoption import adoption
from gocept.runner.waits.deadline import Deadline

log = Log('gocept.runner.house')

OURS = 'up'
"""What lines of the house itself are marked with."""

_LAST_WORDS = 2.0  # seconds to write the rest of the output

Reply = Callable[[Answer], None]


class House:
    """See the module. `names` are the workers that are to run; none are all.

    `words` are options of ``gocept-runner run`` that all workers get. `launch`
    starts a template, and `launch_program` a worker as a program. `parts` are
    driven as `part` says. `writer` gets all output. After `shutdown_timeout`
    seconds, what has not ended is killed; None: as long as the workers may
    need.
    """

    def __init__(self, config: str, directory: str, launch: Launch,
                 launch_program: LaunchProgram, writer: Writer, marks: Marks,
                 *,
                 names: Sequence[str] = (), words: Sequence[str] = (),
                 parts: Sequence[Part] = (),
                 shutdown_timeout: float | None = None,
                 clock: Clock | None = None) -> None:
        self.config = config
        self.directory = directory
        self.poller: Poller = Rounds()
        self.status = errors.SUCCESS
        self.error: UserError | None = None
        """The mistake of the user that has ended the house."""
        self.plan: Plan | None = None
        self.tenants: dict[str, Tenant] = {}
        """The workers, in the order of their start."""
        self._names = names
        self._words = words
        self._parts = parts
        self._shutdown_timeout = shutdown_timeout
        self._writer = writer
        self._marks = marks
        self._clock = clock or Clock()
        self._started = self._clock.moment()
        self._templates = Templates(launch, self)
        self._launch_program = launch_program
        self._forks = True
        """Whether workers are forked, and not started as programs."""
        self._generation = 0
        self._numbers = itertools.count(1)
        self._wishes: dict[int, Tenant] = {}
        """Who waits for an answer of the template."""
        self._started_parts: list[Part] = []
        self._changeover: Changeover | None = None
        self._control: Control | None = None
        self._end: End | None = None
        self._reloading: Reply | None = None
        self._signals: list[int] = []
        self._wall: WallTimer | None = None
        self._service = Service()
        self._written: HouseState | None = None
        self._cannot_write = False
        self.has_terminal = _has_terminal()
        marks.add([OURS, TEMPLATE, *(each.name for each in parts)], dim=True)

    # What parts use; see `Premises`.

    def state(self) -> HouseState:
        """See `Premises`."""
        current, successor = (
            self._templates.current, self._templates.successor)
        return {
            'pid': os.getpid(),
            'start': (process.start if (process := vitals.process(
                os.getpid())) else None),
            'boot': vitals.boot(), 'config': self.config,
            'started': self._started,
            'phase': ('ending' if self._end else 'starting'
                      if self.plan is None else 'reloading'
                      if successor or self._changeover else 'running'),
            'template': None if current is None else current.state(),
            'successor': (
                None if successor is None else successor.state()),
            'parts': [each.name for each in self._started_parts
                      if each.ready],
            'workers': [each.life.state() for each in self.tenants.values()]}

    def tell(self, name: str, text: str) -> None:
        """See `Premises`."""
        for line in text.splitlines():
            self.tell_line(name, line.encode('utf-8', 'backslashreplace'))

    def fail(self, error: RunnerError) -> None:
        """See `Premises`."""
        self._fail(UserError(str(error), getattr(error, 'status', 1)))

    def wakeup(self) -> None:
        """See `Premises`."""
        self.poller.wakeup()

    # What tenants tell; see `Landlord`.

    def tell_line(self, name: str, line: bytes) -> None:
        """Write a line with its mark."""
        self._writer.write(self._marks.line(name, line))

    def note_running(self, tenant: Tenant) -> None:
        """See `Landlord`."""
        tenant.life.note_running()

    def note_lost(self, tenant: Tenant) -> None:
        """See `Landlord`."""
        tenant.tenancy = None
        tenant.life.note_failed_start()

    def note_end(self, tenant: Tenant, status: int) -> None:
        """See `Landlord`."""
        tenant.tenancy = None
        said = tenant.life.note_end(status)
        if said:
            level = logging.INFO if not status else logging.ERROR
            log.log(level, '%s %s', tenant.name, said)

    # What templates tell; see `templates.Owner`.

    def note_ready(self, template: TemplateProcess, ready: Ready) -> None:
        """See `Owner`."""
        if self._end is not None:
            return
        try:
            plan = Plan(ready.workers, self._names, ready.children)
        except UserError as error:
            self.note_failed(template, Failed(error.status, str(error)))
            return
        is_first = self.plan is None
        self._templates.promote(template)
        self._lose_wishes(template)
        self._generation = template.generation
        self._choose(template, ready.threads)
        self._settle_in(plan)
        if is_first:
            log.info('%d worker%s: %s', len(plan.workers),
                     's' * (len(plan.workers) != 1), ', '.join(plan.workers))
        if self._reloading is not None:
            self._change_over(template)

    def _choose(self, template: TemplateProcess, threads: Sequence[str],
                ) -> None:
        """Fork workers from the template, or start them as programs."""
        self._forks = not threads
        if threads:
            # What these threads do, each of the programs does.
            self._templates.drop(template)
            log.warning(
                'ZCML has started threads, which a fork does not have, so '
                'each worker is a program of its own and shares no memory: '
                '%s. Start them with the worker, when its database is open',
                ', '.join(threads))

    def _settle_in(self, plan: Plan) -> None:
        """Have the workers of this plan, and no others."""
        self.plan = plan
        for name in plan.unused_apps():
            log.warning('The app %r belongs to no worker, so nobody starts '
                        'it: name it in the "apps" of a worker', name)
        for name, tenant in self.tenants.items():
            if name not in plan.workers:
                log.info('%s is not declared any more, and ends', name)
                tenant.life.end()
                tenant.tell_to_end()
        self._marks.add(plan.workers)
        for declared in plan:
            known = self.tenants.get(declared.name)
            if known is None or known.life.ending:
                self._move_in(declared, known)
            else:
                known.redeclare(declared)

    def _move_in(self, declared: DeclaredWorker,
                 former: Tenant | None) -> None:
        if former is not None and former.life.has_process:
            # Declared again before it has ended: its successor waits for it.
            former.life.ending = False
            former.life.replacing = True
            former.redeclare(declared)
            return
        self.tenants[declared.name] = Tenant(
            declared, self._words, clock=self._clock)

    def _change_over(self, template: TemplateProcess) -> None:
        for tenant in self.tenants.values():
            tenant.life.renew()
        self._changeover = Changeover(
            self.tenants.values(), template.generation, self._clock.monotonic)
        log.info('The new code has booted: the workers change over, each '
                 'after its tick')
        count = self._changeover.count
        self._answer({'step': 'done', 'text': (
            '1 worker changes over after its tick' if count == 1 else
            f'{count} workers change over, each after its tick')})

    def note_failed(self, template: TemplateProcess, failed: Failed) -> None:
        """See `Owner`."""
        self._templates.drop(template)
        if self._end is not None:
            return
        if self.plan is None:
            self._fail(UserError(failed.error, failed.status))
        elif self._reloading is not None:
            log.error('The new code cannot boot, so the workers go on with '
                      'the old: %s', failed.error)
            self._answer({'step': 'failed', 'text': failed.error})
        if self._end is None and self._templates.current is None and (
                self.plan is not None and self._forks):
            self._templates.boot_again(
                f'The template cannot boot: {failed.error}')

    def note_forked(self, told: Forked | Unforked) -> None:
        """See `Owner`."""
        tenant = self._wishes.pop(told.number, None)
        tenancy = None if tenant is None else tenant.tenancy
        if tenant is None or tenancy is None:
            return
        if isinstance(told, Unforked):
            tenancy.note_unborn()
            log.error('%s cannot be forked: %s', tenant.name, told.error)
            self.note_end(tenant, UNFORKED)
            return
        tenancy.note_birth(told)
        tenant.life.note_start(told.pid)
        if tenant.life.ending or tenant.life.replacing:
            tenant.tell_to_end()

    def note_template_end(self, template: TemplateProcess) -> None:
        """See `Owner`."""
        self._templates.drop(template)
        self._lose_wishes(None)
        if self._end is None and self._templates.successor is None:
            self._templates.boot_again('The workers go on')

    def _lose_wishes(self, template: TemplateProcess | None) -> None:
        """Nobody answers what was asked of others than this template."""
        for number, tenant in [*self._wishes.items()]:
            if template is None or (
                    tenant.life.generation != template.generation):
                del self._wishes[number]
                if tenant.tenancy is not None:
                    tenant.tenancy.lose()

    # The loop.

    def run(self) -> int:
        """Run until a signal, or until there is nothing left to do.

        Returns the status; `UserError` for what ends it at the start.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(
                lambda: self._writer.close(Deadline(_LAST_WORDS)))
            stack.callback(self.poller.close)
            stack.enter_context(self._logging())
            stack.enter_context(self._service.told())
            stack.enter_context(self._handling_signals())
            stack.enter_context(adoption.subreaping())
            self._control = Control(self.directory, self)
            stack.callback(self._control.close)
            stack.callback(self._forget_wall)
            try:
                self._templates.boot()
            except OSError as error:
                self._fail(UserError(f'the template cannot be started: '
                                     f'{error}', errors.CANNOT_START))
            while not self._step():
                self.poller.poll(self._left())
            self._write_record()
        if self.error is not None:
            raise self.error
        return self._final_status()

    def _final_status(self) -> int:
        failed = [each.name for each in self.tenants.values()
                  if each.life.status and each.life.phase in (
                      'done', 'given up')]
        return self.status or (
            errors.WORKER_FAILED if failed else errors.SUCCESS)

    def _step(self) -> bool:
        """Act on what has happened; returns whether the house is empty."""
        self._attend_signals()
        if self._end is None:
            self._start_parts()
        if self._end is None:
            self._start_workers()
        if self._end is None and self._changeover is not None:
            self._changeover.step()
            if self._changeover.over:
                self._changeover = None
                log.info('All workers run the new code')
        if self._end is None and self._is_empty():
            self.end()
        over = self._end is not None and self._end.step()
        self._write_record()
        return over

    def _is_empty(self) -> bool:
        return self.plan is not None and all(
            each.life.is_over for each in self.tenants.values()) and (
                self._templates.successor is None)

    def _start_parts(self) -> None:
        for part in self._parts:
            if part not in self._started_parts:
                self._started_parts.append(part)
                try:
                    part.start(self)
                except RunnerError as error:
                    self.fail(error)
            if self._end is not None or not part.ready:
                return

    def _start_workers(self) -> None:
        if not self._can_start():
            return
        due = [tenant for tenant in self.tenants.values()
               if tenant.life.is_due() and tenant.tenancy is None]
        prepared = [tenant for tenant in due if self._tried(
            tenant, lambda it: it.prepare(self._generation, self))]
        if prepared:
            self._write_record()
        for tenant in prepared:
            self._tried(tenant, self._start)

    def _tried(self, tenant: Tenant, step: Callable[[Tenant], object],
               ) -> bool:
        """Whether a step of a start has worked."""
        try:
            step(tenant)
        except (OSError, RunnerError) as error:
            log.error('%s cannot be started: %s', tenant.name, error)
            self.note_end(tenant, UNFORKED)
            return False
        return True

    def _can_start(self) -> bool:
        return self.plan is not None and not (
            self._forks and self._templates.current is None) and all(
                part.ready for part in self._parts)

    def _start(self, tenant: Tenant) -> None:
        template = self._templates.current
        if template is None:
            tenant.start(self._launch_program)
            return
        number = next(self._numbers)
        self._wishes[number] = tenant
        tenant.ask(number, template.link.fork)

    def _left(self) -> float | None:
        """Seconds until `_step` has to be called, whatever happens."""
        if self._end is not None:
            left = self._end.left()
            return None if left == math.inf else left
        starts = [each.life.next_start for each in self.tenants.values()
                  if each.life.next_start is not None
                  and each.tenancy is None]
        if self._changeover is not None and self._changeover.next_step:
            starts.append(self._changeover.next_step)
        if not self._can_start():
            return None  # that of the template, or a part, comes first
        now = self._clock.monotonic()
        self._arm(min((each.at for each in starts
                       if each.clock == 'realtime'), default=None))
        return min((max(0.0, each.at - now) for each in starts
                    if each.clock == 'monotonic'), default=None)

    def _arm(self, at: float | None) -> None:
        """Wait until this instant by the clock on the wall."""
        if self._wall is not None and self._wall.at == at and (
                not self._wall.closed):
            return
        self._forget_wall()
        if at is not None:
            self._wall = WallTimer(at)
            self.poller.register(self._wall, self._note_wall)

    def _note_wall(self, *result: object) -> None:
        """A worker is due, or the clock was set."""
        self._forget_wall()
        for tenant in self.tenants.values():
            tenant.life.note_clock()

    def _forget_wall(self) -> None:
        if self._wall is not None:
            wall, self._wall = self._wall, None
            self.poller.unregister(wall)
            wall.close()

    # Signals, reloads and the end.

    @contextlib.contextmanager
    def _handling_signals(self) -> Iterator[None]:
        """Note signals; a nohup keeps SIGHUP ignored."""
        def note(signum: int, frame: FrameType | None) -> None:
            self._signals.append(signum)
        wanted = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            wanted.append(signal.SIGHUP)
        before = {signum: signal.signal(signum, note) for signum in wanted}
        # So that one that comes just before the wait ends it.
        fd = signal.set_wakeup_fd(
            self.poller.wakeup_fd, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(fd)
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _attend_signals(self) -> None:
        while self._signals:
            signum = self._signals.pop(0)
            if signum == signal.SIGUSR2:
                self.reopen_logs()
            elif signum == signal.SIGHUP and not self.has_terminal:
                log.info('Received SIGHUP, reloading')
                self.reload()
            elif self._end is None:
                log.info('Received %s, ending: %s', signal.Signals(
                    signum).name, self._what_ends())
                self.end()
            else:
                log.warning('Received %s again: what has not ended is killed',
                            signal.Signals(signum).name)
                self.status = errors.SIGNALLED + signum
                self._end.hurry()

    def _what_ends(self) -> str:
        count = sum(each.life.has_process for each in self.tenants.values())
        if not count:
            return 'no worker runs'
        return (f'{count} worker{"s" * (count != 1)} complete'
                f'{"s" * (count == 1)} the tick first; another signal kills '
                'what is left')

    def end(self) -> None:
        """Begin the end, in order."""
        if self._end is not None:
            return
        seconds = self._shutdown_timeout
        if seconds is None:
            seconds = 60.0 if self.plan is None else (
                self.plan.shutdown_timeout)
        self._changeover = None
        self._answer({'step': 'failed', 'text': 'the house ends'})
        self._end = End([*self.tenants.values()], self._templates,
                        self._started_parts, seconds)
        self._lose_wishes(None)

    def _fail(self, error: UserError) -> None:
        if self._end is None:
            self.error = error
            self.status = error.status
            self.end()

    def reload(self, answer: Reply | None = None) -> None:
        """Boot the new code; if that works, the workers change over to it."""
        reply = answer or (lambda answer: None)
        if self._end is not None:
            reply({'step': 'failed', 'text': 'the house ends'})
            return
        if self.plan is None:
            reply({'step': 'failed', 'text': 'the house has not started yet'})
            return
        self._answer({'step': 'failed', 'text': 'there was another reload'})
        self._reloading = reply
        try:
            self._templates.boot()
        except OSError as error:
            log.error('The new code cannot boot, so the workers go on with '
                      'the old: %s', error)
            self._answer({'step': 'failed', 'text': str(error)})
            return
        reply({'step': 'booting'})

    def _answer(self, answer: Answer) -> None:
        reply, self._reloading = self._reloading, None
        if reply is not None:
            reply(answer)

    def reopen_logs(self) -> None:
        """Pass SIGUSR2 on, so that log files can be rotated."""
        self._templates.reopen()
        for tenant in self.tenants.values():
            if tenant.tenancy is not None:
                tenant.tenancy.reopen(tenant.life.phase == 'running')

    # What is told.

    @contextlib.contextmanager
    def _logging(self) -> Iterator[None]:
        """Have the loggers of this process write to the output, marked."""
        handler = _Handler(self)
        if isinstance(self._marks, JSONMarks):
            # It takes several milliseconds, and few need it.
            from gocept.runner.boot.jsonlines import JSONFormatter
            handler.setFormatter(JSONFormatter())
        root = logging.getLogger()
        level = root.level
        root.addHandler(handler)
        root.setLevel(min(level, logging.INFO))
        try:
            yield
        finally:
            root.removeHandler(handler)
            root.setLevel(level)

    def _status_text(self) -> str:
        """What people are told in a line."""
        lives = [each.life for each in self.tenants.values()]
        running = sum(each.has_process for each in lives)
        bad = [each.name for each in lives
               if each.phase in ('pausing', 'given up')]
        return f'{running} of {len(lives)} workers run' + (
            f'; failed: {", ".join(bad)}' if bad else '')

    def _write_record(self) -> None:
        """Write the state to its file, if it has changed."""
        state = self.state()
        if state == self._written:
            return
        self._written = state
        self._service.tell(state['phase'], self._status_text())
        try:
            record.write(self.directory, state)
        except OSError as error:
            if not self._cannot_write:
                self._cannot_write = True
                log.warning('The state of the house cannot be written to %s: '
                            '%s', self.directory, error.strerror or error)
        else:
            self._cannot_write = False


class _Handler(logging.Handler):
    """Writes the log of this process."""

    def __init__(self, house: House) -> None:
        super().__init__()
        self._house = house
        self.setFormatter(logging.Formatter(
            '%(asctime)s %(levelname)s %(name)s %(message)s'))

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        self._house.tell(OURS, self.format(record))


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal."""
    try:
        os.close(os.open('/dev/tty', os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


