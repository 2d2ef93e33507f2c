"""What programs override, and how those that subclass 3.0 do it."""

import contextlib
import copy
import functools
import io
import logging
import os
import pickle
import signal
import sys
from unittest import mock

import transaction
import zope.component.hooks
from transaction.interfaces import DoomedTransaction
from ZODB.FileStorage import FileStorage
from ZODB.POSException import ConflictError
from zope.security.management import (
    getInteraction,
    newInteraction,
    queryInteraction,
)

import gocept.runner
from gocept.runner import Exit, appmain, errors, once
from gocept.runner.boot import metadata
from gocept.runner.boot.counts import current_items
from gocept.runner.boot.dryrun import dry_run
from gocept.runner.runner import MainLoop, RunnerRequest, init
from gocept.runner.signals import current_shutdown
from gocept.runner.tests.boot.test_attempts import DataManager
from gocept.runner.tests.cli.test_declared import CommandTestCase
from gocept.runner.tests.support import TestCase
from gocept.runner.tests.test_mainloop import LoopCase

LOGGER = 'gocept.runner.runner'
LOG = logging.getLogger(LOGGER)
ITEMS = 'gocept.runner.transaction'

HERE = __name__

seen: list[object] = []


def note_principal():
    """A worker that ends at once."""
    interaction = queryInteraction()
    seen.append(interaction and interaction.participations[0].principal.id)
    return Exit


class as_manager(appmain):

    def get_principal(self):
        return 'zope.mgr'


class once_as_manager(once):

    def get_principal(self):
        return 'zope.mgr'


class as_whoever_is_set(appmain):
    """A decorator with an attribute of its own."""

    def __init__(self, who, **options):
        super().__init__(**options)
        self.who = who

    def get_principal(self):
        return self.who

    def __call__(self, worker):
        @functools.wraps(worker)
        def wrapped():
            seen.append('wrapped')
            return worker()
        return super().__call__(wrapped)


declared = as_whoever_is_set('zope.mgr')(note_principal)


@as_manager()
@gocept.runner.transaction_per_item
def items():
    """Two items."""
    yield note_principal
    yield note_principal
    return Exit


class PrincipalTests(CommandTestCase):

    def setUp(self):
        super().setUp()
        seen.clear()

    def test_an_override_decides(self):
        for decorator in as_manager, once_as_manager:
            for options in {}, {'principal': 'zope.anybody'}:
                decorator(**options)(note_principal)(None, self.zope_conf())
        self.assertEqual(['zope.mgr'] * 4, seen)

    def test_what_is_not_overridden(self):
        for principal in None, 'zope.mgr', lambda: 'zope.mgr':
            decorator = once(principal)
            decorator(note_principal)(None, self.zope_conf())
        self.assertEqual([None, 'zope.mgr', 'zope.mgr'], seen)

    def test_it_extends_the_principal_that_was_given(self):
        class prefixed(appmain):
            def get_principal(self):
                return f'zope.{super().get_principal()}'
        prefixed(principal=lambda: 'mgr')(note_principal)(
            None, self.zope_conf())
        self.assertEqual(['zope.mgr'], seen)

    def test_it_is_called_once_when_the_site_is_set(self):
        class looking(appmain):
            def get_principal(self):
                seen.append(zope.component.hooks.getSite() is not None)
                return 'zope.mgr'

        @looking(ticks=0)
        def worker():
            note_principal()
            return None if len(seen) < 3 else Exit
        worker(None, self.zope_conf())
        self.assertEqual([True, 'zope.mgr', 'zope.mgr'], seen)

    def test_one_that_ends_the_program(self):
        class asking(appmain):
            def get_principal(self):
                raise SystemExit(3)
        with self.assertRaisesRegex(SystemExit, '^3$'), self.assertPutBack():
            asking()(note_principal)(None, self.zope_conf())
        self.assertEqual([], seen)

    def test_an_unknown_one(self):
        class unknown(appmain):
            def get_principal(self):
                return 'nobody'
        program = unknown()(note_principal)
        self.zope_conf()
        output = io.StringIO()
        with (mock.patch('sys.argv', ['worker', '--config',
                                      str(self.dir / 'zope.conf')]),
              contextlib.redirect_stderr(output)):
            self.assertEqual(67, program.main())
        self.assertIn('knows the principal nobody', output.getvalue())

    def test_a_dry_run(self):
        conf = self.zope_conf()
        with init(None, conf):
            pass
        with mock.patch('sys.argv', ['x', '--dry-run', '--config', conf]):
            self.assertEqual(0, as_manager()(note_principal).main())
        self.assertEqual(['zope.mgr'], seen)

    def test_items(self):
        items(None, self.zope_conf())
        self.assertEqual(['zope.mgr'] * 2, seen)

    def test_zcml_keeps_the_decorator_of_a_program(self):
        self.conf(f'''
            <runner:worker name="w" handler="{HERE}:declared" />
            <runner:worker name="i" handler="{HERE}:items"
                           principal="zope.anybody" />
            ''')
        self.assertEqual(0, self.command('run', 'w'), self.errors)
        self.assertEqual(0, self.command('run', 'i', '--dry-run'), self.errors)
        self.assertEqual(['wrapped', *['zope.mgr'] * 3], seen)
        self.assertEqual(0, self.command('list'), self.errors)
        self.assertIn('with a principal', self.output)
        self.assertNotIn('as zope.anybody', self.output)


class Recorded(MainLoop):
    """Notes which of its methods are called."""

    def begin(self):
        seen.append('begin')
        super().begin()

    def commit(self):
        seen.append('commit')
        super().commit()

    def abort(self):
        seen.append('abort')
        super().abort()


class Careless(MainLoop):
    """Swallows what a commit raises, as 3.0 itself has done."""

    def commit(self):
        try:
            super().commit()
        except ConflictError:
            LOG.info('swallowed')
            self.abort()


class HookTests(LoopCase):

    kind = Recorded

    def setUp(self):
        super().setUp()
        seen.clear()

    def loop(self, *results, **options):
        plain = super().loop(*results, **options)
        return self.kind(self.app, 0, plain.worker, **options)

    def test_they_are_called_around_each_tick(self):
        self.define_principal()

        def conflict():
            seen.append(getInteraction().participations[0].principal.id)
            raise ConflictError
        with self.assertLogs(LOGGER), self.assertLogs(ITEMS):
            loop = self.loop(conflict, None, ValueError, principal='zope.mgr')
            with self.assertPutBack():
                loop()
        self.assertEqual([
            'begin', 'zope.mgr', 'abort', 'begin', 'commit',
            'begin', 'abort', 'begin', 'commit'], seen)
        self.assertEqual(0, loop.status)

    def test_a_method_that_only_one_loop_has(self):
        loop = super().loop(lambda: setattr(self.app, 'done', 1) or Exit)
        with mock.patch.object(loop, 'commit',
                               side_effect=loop.commit) as commit:
            loop()
        commit.assert_called_once_with()
        self.assertEqual(1, self.committed('done'))

    def test_a_begin_that_is_all_its_own(self):
        class Marked(MainLoop):
            def begin(self):
                transaction.begin()
                if self.interaction:
                    request = RunnerRequest()
                    request.setPrincipal(self.principal)
                    newInteraction(request)
        self.kind = Marked
        self.define_principal()
        with self.assertLogs(ITEMS), self.assertPutBack():
            self.loop(ConflictError(), note_principal,
                      principal='zope.mgr')()
        self.assertEqual(['zope.mgr'], seen)

    def test_an_error_of_begin_is_one_of_the_tick(self):
        class Failing(MainLoop):
            def begin(self):
                raise ValueError('not now')
        self.kind = Failing
        loop = self.loop(once=True)
        self.assertIn('ValueError: not now', self.run_logged(loop)[0])
        self.assertEqual((0, 1), (self.calls, loop.status))

    def change(self):
        self.app.changed = self.calls

    def change_and_fail(self, **errors):
        self.change()
        DataManager(**errors)

    def test_what_commit_swallows_is_no_success(self):
        self.kind = Careless

        with self.assertLogs(LOGGER, 'INFO'), \
                self.assertLogs(ITEMS, 'WARNING') as logs:
            loop = self.loop(
                lambda: self.change_and_fail(commit=ConflictError()),
                once=True)
            loop()
        self.assertEqual((1, True, None), (
            loop.status, loop.failed, self.committed('changed')))
        self.assertEqual(1, self.calls)
        self.assertIn("Nothing of worker 'worker' is stored",
                      logs.records[-1].getMessage())

    def test_what_it_swallows_without_an_abort(self):
        class Silent(MainLoop):
            def commit(self):
                try:
                    super().commit()
                except Exception:
                    LOG.info('swallowed')
        self.kind = Silent
        for error in ConflictError(), ValueError():
            with self.assertLogs(ITEMS, 'WARNING'):
                loop = self.loop(
                    lambda e=error: self.change_and_fail(commit=e), once=True)
                loop()
            self.assertEqual(1, loop.status)
        loop = self.loop(lambda: self.change() or Exit)
        loop()
        self.assertEqual((0, 1), (loop.status, self.committed('changed')))

    def test_a_second_phase_that_it_swallows(self):
        for error in ConflictError(), OSError():
            class Hiding(MainLoop):
                def commit(self):
                    try:
                        transaction.commit()
                    except Exception:
                        transaction.abort()
                        if self.raises:
                            raise
            self.kind = Hiding
            for raises in False, True:
                Hiding.raises = raises
                with self.assertLogs(LOGGER, 'ERROR'):
                    loop = self.loop(
                        lambda e=error: self.change_and_fail(tpc_finish=e),
                        once=True)
                    loop()
                self.assertEqual((errors.PARTLY_COMMITTED, 1),
                                 (loop.status, self.calls))

    def test_what_has_finished_is_not_aborted(self):
        class Stored(DataManager):
            def __init__(self):
                super().__init__()
                self.calls = []

            def _call(self, name):
                self.calls.append(name)
        made = []
        self.loop(lambda: made.append(Stored()), once=True)()
        self.assertEqual('tpc_finish', made[0].calls[-1])

    def test_an_exit_after_a_failure_is_no_success(self):
        class Ending(MainLoop):
            def commit(self):
                try:
                    super().commit()
                except ValueError:
                    if self.aborts:
                        self.abort()
                    raise SystemExit(0) from None

        class EndingInAbort(MainLoop):
            def abort(self):
                raise SystemExit(0)
        self.kind = Ending
        for Ending.aborts in False, True:
            loop = self.loop(
                lambda: self.change_and_fail(tpc_finish=ValueError()))
            self.run_logged(loop, logging.INFO)
            self.assertEqual(errors.PARTLY_COMMITTED, loop.status)
        self.kind = EndingInAbort
        for failed in ConflictError, ValueError:
            loop = self.loop(failed)
            messages = self.run_logged(loop, logging.INFO)
            self.assertIn('SystemExit(0) raised by abort(), so the loop ends',
                          messages)
            self.assertEqual((errors.WORKER_FAILED, True, 1),
                             (loop.status, loop.failed, self.calls))

    def test_a_commit_that_aborts_and_raises_is_tried_again(self):
        class Aborting(MainLoop):
            def commit(self):
                try:
                    super().commit()
                except ConflictError:
                    self.abort()
                    raise
        self.kind = Aborting
        with self.assertLogs(ITEMS, 'WARNING'):
            loop = self.loop(
                lambda: self.change_and_fail(commit=ConflictError()),
                self.change, once=True)
            loop()
        self.assertEqual((0, 2), (loop.status, self.committed('changed')))

    def test_a_commit_that_commits_nothing(self):
        class Lazy(MainLoop):
            def commit(self):
                pass
        self.kind = Lazy
        with self.assertLogs(ITEMS, 'WARNING') as logs:
            loop = self.loop(self.change, once=True)
            loop()
        self.assertEqual((1, None), (loop.status, self.committed('changed')))
        self.assertIn('was not committed', logs.records[0].getMessage())

    def test_a_commit_that_fails_when_all_is_stored(self):
        class Noisy(Recorded):
            def commit(self):
                super().commit()
                raise ValueError('too late')
        self.kind = Noisy
        with self.assertLogs(ITEMS, 'ERROR') as logs:
            loop = self.loop(self.change, once=True)
            loop()
        self.assertEqual((0, 1), (loop.status, self.committed('changed')))
        self.assertIn('Committed, but', logs.records[0].getMessage())
        self.assertEqual(['begin', 'commit'], seen)

    def test_several_commits(self):
        class Audited(MainLoop):
            def commit(self):
                super().commit()
                self.begin()
                self.app.audited = True
                super().commit()
        self.kind = Audited
        loop = self.loop(self.change, once=True)
        loop()
        self.assertEqual((0, 1, True), (
            loop.status, self.committed('changed'), self.committed('audited')))

    def test_doomed(self):
        class Forgiving(MainLoop):
            def commit(self):
                try:
                    super().commit()
                except DoomedTransaction:
                    self.abort()
        for self.kind in Recorded, Forgiving:
            with self.assertLogs(ITEMS, 'WARNING') as logs:
                loop = self.loop(transaction.doom, once=True)
                loop()
            self.assertEqual(1, loop.status)
            self.assertIn('doomed', logs.records[0].getMessage())

    def test_a_dry_run_is_a_success(self):
        for self.kind in Recorded, Careless:
            with self.assertLogs(ITEMS, 'INFO') as logs, dry_run():
                loop = self.loop(self.change, once=True)
                loop()
            self.assertEqual(
                (0, None), (loop.status, self.committed('changed')))
            self.assertEqual(1, len(logs.records), logs.output)

    def test_an_abort_that_does_nothing_or_fails(self):
        class Idle(MainLoop):
            def abort(self):
                pass

        class Failing(MainLoop):
            def abort(self):
                raise ValueError('cannot')
        for self.kind in Idle, Failing:
            def fail():
                self.change()
                raise RuntimeError
            messages = self.run_logged(self.loop(fail, None))
            self.assertEqual(
                ["Error in worker 'worker': RuntimeError"],
                messages[:1])
            self.assertEqual(self.kind is Failing,
                             'abort() of the loop has failed' in messages)
            self.assertIsNone(self.committed('changed'))

    def test_an_exit_in_them_ends_the_loop(self):
        class Ending(MainLoop):
            def commit(self):
                raise SystemExit(4)
        self.kind = Ending
        loop = self.loop(self.change)
        self.run_logged(loop, logging.INFO)
        self.assertEqual(4, loop.status)
        self.assertIsNone(self.committed('changed'))

    def test_the_class_of_the_loop_of_a_program(self):
        class recorded(once):
            main_loop = Recorded
        conf = TestCase.zope_conf(self)
        recorded()(note_principal)(None, conf)
        self.assertEqual(['begin', None, 'commit'], seen)


class OwnLoop(MainLoop):
    """A loop as the largest user of 3.0 has it."""

    def __call__(self):
        before = zope.component.hooks.getSite()
        zope.component.hooks.setSite(self.app)
        self._is_running = True
        while self._is_running:
            ticks = None
            self.begin()
            try:
                ticks = self.worker()
            except (KeyboardInterrupt, SystemExit):
                self.abort()
                break
            except Exception:
                self.abort()
                LOG.error('Own error', exc_info=True)
            else:
                try:
                    self.commit()
                except transaction.interfaces.TransientError:
                    self.abort()
                    LOG.warning('Own conflict')
            if self.once or ticks is gocept.runner.Exit:
                self._is_running = False
        zope.component.hooks.setSite(before)


class Asking(OwnLoop):
    """Asks whether it goes on, and keeps nothing of its own."""

    def __call__(self):
        with zope.component.hooks.site(self.app):
            while self.running:
                self.begin()
                try:
                    result = self.worker()
                    self.commit()
                except Exception:
                    self.abort()
                else:
                    if result is Exit:
                        break


class OwnLoopTests(LoopCase):

    kind = OwnLoop

    def setUp(self):
        super().setUp()
        seen.clear()

    def loop(self, *results, **options):
        plain = super().loop(*results, **options)
        return self.kind(self.app, 0, plain.worker, **options)

    def work(self):
        note_principal()
        self.app.count = getattr(self.app, 'count', 0) + 1

    def test_it_runs_as_the_principal(self):
        self.define_principal()
        for self.kind in OwnLoop, Asking:
            with self.assertPutBack():
                self.loop(self.work, self.work, principal='zope.mgr')()
        self.assertEqual(['zope.mgr'] * 4, seen)
        self.assertEqual(4, self.committed('count'))
        self.loop(self.work)()
        self.assertIsNone(seen[-1])

    def test_errors_and_conflicts(self):
        def fail():
            self.work()
            raise ValueError

        def conflict():
            self.work()
            DataManager(commit=ConflictError())
        with self.assertPutBack():
            messages = self.run_logged(self.loop(fail, conflict, self.work))
        self.assertEqual(['Own error', 'Own conflict'], messages)
        self.assertEqual(1, self.committed('count'))

    def test_its_status(self):
        def partly():
            DataManager(tpc_finish=ConflictError())
        for status, result in {
                0: lambda: None, 1: ValueError, 3: SystemExit(3),
                errors.INTERRUPTED: KeyboardInterrupt,
                errors.PARTLY_COMMITTED: partly}.items():
            loop = self.loop(result, once=True)
            logger = logging.getLogger(LOGGER)
            with mock.patch.object(logger, 'disabled', True):
                loop()
            self.assertEqual(status, loop.status)
            self.assertEqual(result in (ValueError, partly), loop.failed)
        loop = self.loop(ValueError, None)
        with self.assertLogs(LOGGER):
            loop()
        self.assertEqual((0, False), (loop.status, loop.failed))

    def test_items(self):
        def fail():
            raise ValueError

        def note():
            seen.append(transaction.get().description)

        @gocept.runner.transaction_per_item
        def steps():
            yield from (note, fail, note)
        for self.kind in MainLoop, OwnLoop:
            loop = self.loop(steps, once=True)
            with self.assertLogs(ITEMS):
                loop()
            self.assertEqual(errors.WORKER_FAILED, loop.status)
            self.assertEqual((2, 1), (loop.counts.done, loop.counts.failed))
            self.assertEqual(['worker', 'worker'], seen)
            seen.clear()
        self.assertIsNot(loop.counts, current_items().counts)
        metadata.begin_item()
        self.assertEqual('', transaction.get().description)

    def test_a_signal_between_two_items(self):
        for self.kind in MainLoop, OwnLoop:
            @gocept.runner.transaction_per_item(attempts=2)
            def steps():
                yield lambda: signal.raise_signal(signal.SIGTERM)
                yield self.work
                yield self.work
            loop = self.loop(steps, once=True)
            before = signal.signal(signal.SIGTERM, loop.stopMainLoop)
            try:
                with self.assertLogs(ITEMS):
                    loop()
            finally:
                signal.signal(signal.SIGTERM, before)
            self.assertEqual(errors.SIGNALLED + signal.SIGTERM, loop.status)
            self.assertEqual(1, loop.counts.done)
            with current_shutdown() as shutdown:
                self.assertFalse(shutdown.requested)

    def test_a_fork_that_comes_back_ends(self):
        statuses = []

        def fork(error):
            pid = os.fork()
            if not pid:
                if error is not None:
                    raise error
            else:
                statuses.append(
                    os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                self.work()
        for error in None, ValueError():
            self.loop(lambda error=error: fork(error), once=True)()
        self.assertEqual([0, 1], statuses)
        self.assertEqual(2, self.committed('count'))

    def test_items_of_a_tick_that_is_tried_again(self):
        class Trying(MainLoop):
            def __call__(self):
                for _ in range(2):
                    self.begin()
                    try:
                        self.worker()
                        self.commit()
                    except ConflictError:
                        self.abort()
        attempts = []

        @gocept.runner.transaction_per_item
        def steps():
            attempts.append(1)
            if len(attempts) == 1:
                yield lambda: 1 / 0
                raise ConflictError
        self.kind = Trying
        loop = self.loop(steps, steps, once=True)
        with self.assertLogs(ITEMS):
            loop()
        self.assertEqual((0, 2), (loop.status, len(attempts)))

    def test_a_signal_ends_it(self):
        for self.kind in OwnLoop, Asking:
            loop = self.loop(
                *[lambda: signal.raise_signal(signal.SIGTERM)] * 9)
            before = signal.signal(signal.SIGTERM, loop.stopMainLoop)
            try:
                messages = self.run_logged(loop, logging.INFO)
            finally:
                signal.signal(signal.SIGTERM, before)
                signal.signal(signal.SIGINT, signal.default_int_handler)
            self.assertEqual(['Received signal 15, terminating.'], messages)
            self.assertEqual(1, self.calls)
            self.assertFalse(loop.running)

    def test_stop_ends_it(self):
        for self.kind in OwnLoop, Asking:
            loop = self.loop(lambda: loop.stop(), None)
            self.assertTrue(loop.running)
            loop()
            self.assertEqual(1, self.calls)

    def test_it_can_run_again(self):
        loop = self.loop(once=True)
        loop()
        loop()
        self.assertEqual(2, self.calls)

    def test_an_exit_that_the_loop_itself_handles(self):
        loop = super().loop(Exit)
        loop()
        self.assertTrue(loop.running)

    def test_of_a_program(self):
        class own(once):
            main_loop = OwnLoop

        def work(fails):
            note_principal()
            if fails:
                raise ValueError
        program = own(principal='zope.mgr')(work)
        conf = TestCase.zope_conf(self)
        self.assertIsNone(program(None, conf, False))
        with self.assertLogs(LOGGER):
            self.assertEqual(1, program(None, conf, True))
        self.assertEqual(['zope.mgr'] * 2, seen)

    def test_a_connection_of_another_thread(self):
        connection = self.db.open(transaction.TransactionManager())
        self.addCleanup(connection.close)
        self.app = connection.root()['Application']
        with self.assertRaisesRegex(RuntimeError, 'belongs to another thread'):
            self.loop()()


class RunnerOfZeit(appmain):
    """A decorator whose programs boot in their own way."""

    def __init__(self, ticks=1, principal=None, once=True):
        super().__init__(ticks=ticks, principal=principal)
        self.once = once

    def __call__(self, worker_method):
        def run(conf, loop=MainLoop):
            with gocept.runner.runner.init(None, conf) as app:
                mloop = loop(
                    app, self.ticks, worker_method,
                    principal=self.get_principal(), once=self.once)
                before = [signal.signal(signum, mloop.stopMainLoop)
                          for signum in (signal.SIGHUP, signal.SIGTERM)]
                mloop()
                signal.signal(signal.SIGHUP, before[0])
                signal.signal(signal.SIGTERM, before[1])
                return mloop
        return run


class ProgramsOf30Tests(TestCase):

    def setUp(self):
        super().setUp()
        seen.clear()

    def test_a_program_that_boots_in_its_own_way(self):
        for loop in MainLoop, OwnLoop:
            program = RunnerOfZeit(principal='zope.mgr')(note_principal)
            program(self.zope_conf(), loop)
        self.assertEqual(['zope.mgr'] * 2, seen)

    def test_items_that_mark_the_request(self):
        # The argument says "once", though the decorator is told otherwise.
        for loop in MainLoop, OwnLoop:
            @gocept.runner.transaction_per_item
            def importer():
                getInteraction().participations[0]._referrer = 'http://x'
                for _ in range(2):
                    yield lambda: seen.append(
                        getInteraction().participations[0]._referrer)
            program = RunnerOfZeit(
                ticks=Exit, principal='zope.mgr', once=False)(importer)
            self.assertTrue(program(self.zope_conf(), loop).once)
        self.assertEqual(['http://x'] * 4, seen)

    def test_a_principal_of_the_command_line(self):
        def from_args():
            self.assertEqual('--user', sys.argv.pop(1))
            return sys.argv.pop(1)
        with mock.patch('sys.argv', ['program', '--user', 'zope.mgr', 'more']):
            appmain(principal=from_args)(note_principal)(
                None, self.zope_conf())
            self.assertEqual(['program', 'more'], sys.argv)
        self.assertEqual(['zope.mgr'], seen)

    def test_a_subclass_that_calls_the_base_class_by_position(self):
        class NdoMain(gocept.runner.appmain):
            def __init__(self, ticks=1, principal=None):
                gocept.runner.appmain.__init__(self, ticks, principal)
        NdoMain(ticks=1.0, principal='zope.mgr')(note_principal)(
            None, self.zope_conf())
        self.assertEqual(['zope.mgr'], seen)


class RequestTests(LoopCase):

    def test_it_takes_attributes(self):
        self.define_principal()

        def mark():
            request = getInteraction().participations[0]
            self.assertIsInstance(request, RunnerRequest)
            self.assertFalse(hasattr(request, 'mark'))
            request.mark = 1
            return 0
        loop = self.loop(mark, mark, principal='zope.mgr', once=False)
        loop()
        self.assertFalse(loop.failed)

    def test_its_arguments(self):
        self.assertEqual((1, 2), RunnerRequest(1, 2).getPositionalArguments())


class ExitTests(LoopCase):

    def test_ticks_that_are_exit(self):
        loop = MainLoop(self.app, Exit, mock.Mock(return_value=None))
        loop()
        self.assertEqual((1, True), (loop.worker.call_count, loop.once))
        with self.assertLogs(LOGGER):
            loop = MainLoop(self.app, Exit, mock.Mock(side_effect=ValueError))
            loop()
        self.assertEqual(1, loop.status)

    def test_a_program(self):
        seen.clear()
        decorator = appmain(ticks=Exit)

        @decorator
        def worker():
            seen.append(1)
            raise ValueError
        self.assertIs(Exit, decorator.ticks)
        with self.assertLogs(LOGGER, 'ERROR'):
            self.assertEqual(1, worker(None, TestCase.zope_conf(self)))
        self.assertEqual([1], seen)
        self.assertFalse(appmain().once)

    def test_a_copy_is_the_same(self):
        for other in (copy.copy(Exit), copy.deepcopy([Exit])[0],
                      pickle.loads(pickle.dumps(Exit))):
            self.assertIs(Exit, other)


class MetadataTests(LoopCase):

    def setUp(self):
        super().setUp()
        seen.clear()

    def carried(self):
        """Note what the current transaction carries."""
        txn = transaction.get()
        seen.append((txn.user, txn.description))

    def test_each_attempt(self):
        self.define_principal()

        def conflict():
            self.carried()
            raise ConflictError
        with self.assertLogs(ITEMS):
            self.loop(conflict, self.carried, principal='zope.mgr')()
        self.assertEqual([('/ zope.mgr', 'worker')] * 2, seen)

    def test_without_a_principal(self):
        self.loop(self.carried)()
        self.assertEqual([('', 'worker')], seen)

    def test_a_note_of_the_worker_follows(self):
        def work():
            transaction.get().note('all prices')
            self.carried()
        self.loop(work)()
        self.assertEqual([('', 'worker\nall prices')], seen)

    def test_a_loop_of_a_subclass(self):
        self.define_principal()
        OwnLoop(self.app, 0, self.carried, 'zope.mgr', once=True)()
        self.assertEqual([('/ zope.mgr', 'carried')], seen)

    def test_items(self):
        self.define_principal()

        def conflict():
            self.carried()
            if len(seen) == 2:
                raise ConflictError

        @gocept.runner.transaction_per_item(attempts=2)
        def prices():
            yield self.carried
            yield conflict
            yield self.carried
            return Exit
        with self.assertLogs(ITEMS):
            MainLoop(self.app, 0, prices, 'zope.mgr')()
        self.assertEqual([('/ zope.mgr', 'prices')] * 4, seen)

    def test_a_loop_within_a_loop(self):
        def inner():
            self.carried()
            return Exit

        @gocept.runner.transaction_per_item
        def outer():
            yield lambda: MainLoop(self.app, 0, inner)()
            yield self.carried
            return Exit
        MainLoop(self.app, 0, outer)()
        self.assertEqual([('', 'inner'), ('', 'outer')], seen)

    def test_the_undo_log(self):
        conf = TestCase.zope_conf(self)

        @once('zope.mgr')
        def import_file(path):
            zope.component.hooks.getSite().path = path
        import_file(None, conf, 'a.csv')
        storage = FileStorage(f'{self.dir}/Data.fs', read_only=True)
        self.addCleanup(storage.close)
        last = storage.undoLog(0, 1)[0]
        self.assertEqual((b'/ zope.mgr', b'import_file'),
                         (last['user_name'], last['description']))


class NamesTests(TestCase):

    def test_modules_without_an_import_of_their_own(self):
        program = self.program('''
            import gocept.runner
            print(gocept.runner.runner.MainLoop.__name__,
                  gocept.runner.runner.RunnerRequest.__name__,
                  gocept.runner.transaction.transaction_per_item.__name__)
            ''')
        self.assertEqual(0, program.end(), program.output)
        self.assertEqual('MainLoop RunnerRequest transaction_per_item\n',
                         program.output)

    def test_names_of_the_module(self):
        module = gocept.runner.runner
        self.assertIn('RunnerRequest', dir(module))
        with self.assertRaisesRegex(AttributeError, "no attribute 'other'"):
            module.other

    def test_decorators_in_the_wrong_order(self):
        program = as_manager()(note_principal)
        with self.assertRaisesRegex(
                TypeError, 'put @transaction_per_item below @appmain'):
            gocept.runner.transaction_per_item(program)
