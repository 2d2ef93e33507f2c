"""The keeper: deaths of the daemon, and of itself."""

import os
import shutil
import signal

from gocept.runner.process import procfs
from gocept.runner.process.pidfd import hold
from gocept.runner.tests.kernel.releases import KernelCase
from gocept.runner.tests.support import DEADLINE
from gocept.runner.waits.deadline import Deadline, wait_for


class DeathTests(KernelCase):

    def test_a_successor_has_the_same_descriptors_and_state(self):
        self.start()
        before, table = self.ask('who'), self.ask('table')
        self.assertEqual(1, self.ask('add'))
        inode = self.ask('hold', 'more')
        self.kill(before['pid'])
        self.assertEqual(2, self.ask('add'))
        after = self.ask('who')
        self.assertNotEqual(before['pid'], after['pid'])
        self.assertEqual(before['keeper'], after['keeper'])
        self.assertEqual(1, after['deaths'])
        self.assertEqual({**table, 'more': inode}, self.ask('table'))

    def test_a_daemon_takes_the_place_of_its_keeper(self):
        self.start()
        before, table = self.ask('who'), self.ask('table')
        self.ask('add')
        self.kill(before['keeper'])
        after = self.ask_successor(before)
        self.assertEqual(before['pid'], after['keeper'])
        self.assertEqual(2, self.ask('add'))
        self.assertEqual(1, after['keeper_deaths'])
        self.assertEqual(0, after['deaths'])
        self.assertEqual(table, self.ask('table'))

    def test_both_die_in_turn_many_times(self):
        self.start()
        table = self.ask('table')
        for number in range(1, 21):
            self.assertEqual(number, self.ask('add'))
            who = self.ask('who')
            self.kill(who['keeper' if number % 2 else 'pid'])
            self.ask_successor(who)
        self.assertEqual(table, self.ask('table'))
        self.assertEqual(10, self.ask('who')['keeper_deaths'])
        self.assertEqual(10, self.ask('who')['deaths'])

    def test_deaths_without_code_on_disk(self):
        self.start()
        shutil.rmtree(self.dir / 'one')
        for role in ('pid', 'keeper', 'pid'):
            who = self.ask('who')
            self.kill(who[role])
            self.ask_successor(who)
        self.assertEqual(1, self.ask('add'))

    def test_released_descriptors_are_gone(self):
        self.start()
        table = self.ask('table')
        self.ask('hold', 'one')
        self.ask('hold', 'two')
        self.ask('release', ['one'])
        self.kill(self.ask('who')['pid'])
        after = self.ask('table')
        self.assertEqual({*table, 'two'}, {*after})
        keeper = self.ask('who')['keeper']
        files = [os.readlink(f'/proc/{keeper}/fd/{fd}')
                 for fd in os.listdir(f'/proc/{keeper}/fd')]
        self.assertNotIn('/memfd:one (deleted)', files)

    def test_a_key_that_is_held_again_replaces_the_first(self):
        self.start()
        self.ask('hold', 'one')
        inode = self.ask('hold', 'one')
        self.kill(self.ask('who')['pid'])
        self.assertEqual(inode, self.ask('table')['one'])

    def test_more_descriptors_than_a_message_has(self):
        self.start()
        table = self.ask('table')
        self.assertEqual(500 + len(table), self.ask('hold_many', 500))
        self.kill(self.ask('who')['pid'])
        self.assertEqual(500 + len(table), len(self.ask('table')))

    def test_a_stopped_keeper_does_not_block_the_daemon(self):
        self.start()
        who = self.ask('who')
        os.kill(who['keeper'], signal.SIGSTOP)
        error = self.ask('hold_many', 20_000)
        self.assertIn(
            f'the keeper, process {who["keeper"]}, takes nothing', error)
        self.assertEqual(1, self.ask('add'))
        held = len(self.ask('table'))
        os.kill(who['keeper'], signal.SIGCONT)
        self.ask_until(
            lambda answer: isinstance(answer, int), 'hold', 'last')
        self.kill(who['pid'])
        self.assertEqual(held + 1, len(self.ask('table')))

    def test_the_death_is_logged(self):
        self.start()
        who = self.ask('who')
        self.kill(who['pid'])
        [line] = self.wait_for_log('The daemon')
        self.assertRegex(line, (
            rf'\[{who["keeper"]}\] WARNING gocept.runner.kernel The daemon, '
            rf'process {who["pid"]}, was killed by SIGKILL after [\d.]+ s; a '
            'successor starts now$'))

    def test_an_end_that_nobody_asked_for_is_a_death(self):
        self.start()
        self.ask('exit', 3)
        self.assertEqual(1, self.ask('who')['deaths'])
        [line] = self.wait_for_log('The daemon')
        self.assertIn('ended with status 3', line)


class NonsenseTests(KernelCase):
    """A daemon that does not say what it should."""

    def make_release(self, name, version='fake 1', code=''):
        return super().make_release(name, version, code + '''
def do_nonsense(self, size, client):
    self.link._end.send_data(b'x' * size, [0])
    return 'said'

def do_leave(self, argument, client):
    self.answer(client, 'leaving')
    self.link.is_upgrading = True
    self.finish('ended')

Daemon.do_nonsense, Daemon.do_leave = do_nonsense, do_leave
''')

    def test_a_message_that_cannot_be_read_is_lost(self):
        self.start()
        who = self.ask('who')
        for size in (1, 100_000):
            self.ask('nonsense', size)
        inode = self.ask('hold', 'more')
        self.assertEqual(who, self.ask('who'))
        self.kill(who['pid'])
        self.assertEqual(inode, self.ask('table')['more'])
        self.wait_for_log('has lost a message', 2)

    def test_a_daemon_that_leaves_and_has_not_told_for_what(self):
        self.start()
        who = self.ask('who')
        self.ask('leave')
        self.assertEqual(who['keeper'], self.ask_successor(who)['keeper'])


class FinalizerTests(KernelCase):
    """Objects of a daemon that are collected when it is the keeper."""

    def make_release(self, name, version='fake 1', code=''):
        return super().make_release(name, version, code + '''
class Owner:
    def __init__(self, fd):
        self.fd = fd
        self.cycle = self

    def __del__(self):
        os.close(self.fd)

real_run = run

def run(table, link, options):
    link.hold({f'more:{key}': os.dup(fd) for key, fd in table.items()})
    for fd in table.values():
        Owner(fd)
    gc.disable()
    gc.freeze()
    return real_run(table, link, options)

import gc
''')

    def test_they_close_nothing_of_their_successor(self):
        self.start()
        before, table = self.ask('who'), self.ask('table')
        self.kill(before['keeper'])
        after = self.ask_successor(before)
        self.assertEqual(before['pid'], after['keeper'])
        self.assertLessEqual(table.items(), self.ask('table').items())


class ChildTests(KernelCase):

    def setUp(self):
        super().setUp()
        self.start()
        self.addCleanup(self.end_children)
        self.children = []

    def spawn(self, kind=None):
        pids = self.ask('spawn', kind)
        self.children += [hold(pid) for pid in pids if pid]
        return pids

    def end_children(self):
        for handle in self.children:
            handle.signal(signal.SIGKILL)
            handle.close()

    def test_the_status_of_a_child_that_died_without_a_daemon(self):
        pid, _ = self.spawn()
        who = self.ask('who')
        os.kill(who['keeper'], signal.SIGSTOP)
        self.kill(who['pid'])
        self.kill(pid, signal.SIGUSR1)
        os.kill(who['keeper'], signal.SIGCONT)
        self.ask_until([[pid, 7]].__eq__, 'statuses')

    def test_the_status_of_an_adopted_child(self):
        first, second = self.spawn()[0], self.spawn()[0]
        self.kill(self.ask('who')['pid'])
        self.assertEqual([], self.ask('statuses'))
        self.kill(first, signal.SIGUSR1)
        self.kill(second)
        self.ask_until(
            sorted([[first, 7], [second, -9]]).__eq__, 'sorted_statuses')
        # Known by now, so they are reaped.
        self.ask_until([].__eq__, 'adopted')

    def test_many_statuses_at_once(self):
        pids = [self.spawn()[0] for _ in range(20)]
        who = self.ask('who')
        os.kill(who['keeper'], signal.SIGSTOP)
        self.kill(who['pid'])
        for pid in pids:
            self.kill(pid, signal.SIGUSR1)
        os.kill(who['keeper'], signal.SIGCONT)
        self.ask_until(
            sorted([pid, 7] for pid in pids).__eq__, 'sorted_statuses')
        self.ask_until([].__eq__, 'adopted')

    def test_an_orphan_is_reaped_and_not_told(self):
        parent, orphan = self.spawn('orphan')
        self.kill(parent)
        keeper = self.ask('who')['keeper']
        self.assertEqual(keeper, procfs.look(orphan).parent)
        self.kill(orphan)
        self.ask_until([].__eq__, 'adopted')
        self.assertEqual([], self.ask('statuses'))

    def test_children_stay_children_of_a_daemon_that_becomes_keeper(self):
        pid, _ = self.spawn()
        who = self.ask('who')
        self.kill(who['keeper'])
        self.ask_successor(who)
        self.assertEqual(who['pid'], procfs.look(pid).parent)
        self.kill(pid, signal.SIGUSR1)
        self.ask_until([[pid, 7]].__eq__, 'statuses')


class LostStatusTests(ChildTests):
    """The daemon dies each time before it has recorded a status."""

    def make_release(self, name, version='fake 1', code=''):
        return super().make_release(name, version, code + f'''
Before = Daemon

class Daemon(Before):
    def hear(self, item, link):
        mark = {str(self.dir)!r} + '/' + '-'.join(map(str, item))
        if item[0] == 'status' and not os.path.exists(mark):
            open(mark, 'w').close()
            os.kill(os.getpid(), 9)
        super().hear(item, link)
''')


class FailingTests(KernelCase):

    def make_release(self, name, version='fake 1', code=''):
        return super().make_release(name, version, code + '''
def run(table, link, options):
    raise ZeroDivisionError('a bug')
''')

    def end(self):
        """The keeper writes to the log, and nobody answers."""

    def test_the_keeper_backs_off_and_tells(self):
        self.start()
        lines = self.wait_for_log('The daemon, process', 4)
        for line, end in zip(lines, ('now', 'in 0.1 s', 'in 0.2 s', 'in 0.4 s'
                                     ), strict=False):
            self.assertIn('ended with status 70', line)
            self.assertTrue(line.endswith(f'a successor starts {end}'), line)
        self.wait_for_log("ZeroDivisionError: a bug")
        keeper = int(lines[0].partition('[')[2].partition(']')[0])
        handle = hold(keeper)
        try:
            handle.signal(signal.SIGTERM)
            handle.signal(signal.SIGTERM)
            self.assertTrue(wait_for(handle.fileno(), 1, Deadline(DEADLINE)))
        finally:
            handle.close()
        self.assertFalse(os.path.exists(self.path))


class StopTests(KernelCase):

    def assert_stopped(self, who):
        for role in ('keeper', 'pid'):
            try:
                handle = hold(who[role])
            except ProcessLookupError:
                continue
            self.assertTrue(wait_for(handle.fileno(), 1, Deadline(DEADLINE)))
            handle.close()
        self.assertFalse(os.path.exists(self.path))
        self.assertFalse(os.path.exists(self.path + '.lock'))
        self.assertEqual([], [line for line in self.logged()
                              if 'successor' in line or 'place' in line])

    def test_the_daemon_stops(self):
        self.start()
        who = self.ask('who')
        self.ask('stop')
        self.assert_stopped(who)
        self.start()
        self.assertEqual(1, self.ask('add'))

    def test_a_signal_to_the_keeper(self):
        for signum in (signal.SIGTERM, signal.SIGINT):
            self.start()
            who = self.ask('who')
            os.kill(who['keeper'], signum)
            self.assert_stopped(who)

    def test_two_signals_at_once(self):
        self.start()
        who = self.ask('who')
        os.kill(who['keeper'], signal.SIGSTOP)
        os.kill(who['keeper'], signal.SIGTERM)
        os.kill(who['keeper'], signal.SIGINT)
        os.kill(who['keeper'], signal.SIGCONT)
        self.assert_stopped(who)

    def test_sigterm_to_the_daemon(self):
        self.start()
        who = self.ask('who')
        os.kill(who['pid'], signal.SIGTERM)
        self.assert_stopped(who)

    def test_sighup_does_nothing(self):
        self.start()
        who = self.ask('who')
        os.kill(who['keeper'], signal.SIGHUP)
        os.kill(who['pid'], signal.SIGHUP)
        self.assertEqual(who, self.ask('who'))

    def test_a_stopped_daemon_is_left_at_the_second_signal(self):
        self.start()
        who = self.ask('who')
        os.kill(who['pid'], signal.SIGSTOP)
        os.kill(who['keeper'], signal.SIGTERM)
        self.wait_for_log('the kernel stops')
        os.kill(who['keeper'], signal.SIGTERM)
        self.wait_until_gone(self.path)
        os.kill(who['pid'], signal.SIGCONT)
        self.assert_stopped(who)  # it was told before the keeper's end
