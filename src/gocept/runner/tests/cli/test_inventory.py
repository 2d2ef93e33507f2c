"""What a kernel holds, as tables and as JSON."""

import json
import os
import time
import unittest

from gocept.runner.cli import inventory


def status(**changes: object) -> dict[str, object]:
    now = time.time()
    return {
        'version': '4.0', 'python': '3.11.2', 'path': '/srv/release-1',
        'pid': 21, 'keeper': 20, 'started': now - 65,
        'kernel_started': now - 90061, 'deaths': 0, 'upgrades': 0,
        'clients': 1, 'buffered': 2048, 'sockets': {}, 'values': {},
        'processes': {}, **changes}


def process(**changes: object) -> dict[str, object]:
    return {'pid': os.getpid(), 'running': True, 'started': time.time() - 7300,
            'status': None, 'buffered': 1536, 'dropped': 0,
            'command': ['sh', '-c', 'echo a b', ''], **changes}


class TextTests(unittest.TestCase):

    def text(self, columns: int | None = None, **changes: object) -> str:
        return '\n'.join(inventory.as_text(
            status(**changes), 'port 20202', columns))

    def test_of_an_empty_kernel(self) -> None:
        self.assertEqual('''\
kernel   port 20202: up 1 d 01 h, the daemon has never died
daemon   pid 21, up 1 min 05 s
keeper   pid 20
code     version 4.0, Python 3.11.2, /srv/release-1
users    its own and root
clients  1
output   2.0 KiB buffered

SOCKETS: none

VALUES: none

PROCESSES: none''', self.text())

    def test_deaths_and_upgrades(self) -> None:
        self.assertIn('the daemon has died once, upgraded 3 times\n',
                      self.text(deaths=1, upgrades=3))
        self.assertIn('the daemon has died 12 times\n', self.text(deaths=12))
        self.assertIn('the daemon has died once, the keeper 2 times\n',
                      self.text(deaths=1, keeper_deaths=2))

    def test_who_may_use_it(self) -> None:
        text = self.text(allow_users=['0', str(2 ** 31 - 2)])
        self.assertIn('its own and root, root, 2147483646\n', text)

    def test_what_an_old_daemon_does_not_tell(self) -> None:
        text = '\n'.join(inventory.as_text({'pid': 3}, '/run/kernel'))
        self.assertIn('/run/kernel: up -, the daemon has died - times', text)
        self.assertIn('version -, Python -, -', text)

    def test_sockets(self) -> None:
        text = self.text(sockets={
            'web': {'family': 'inet', 'type': 'stream', 'host': '127.0.0.1',
                    'port': 8080, 'fileno': 64},
            'six': {'family': 'inet6', 'type': 'stream', 'host': '::1',
                    'port': 81, 'fileno': 65},
            'file': {'family': 'unix', 'type': 'stream', 'fileno': 66,
                     'path': '/run/a\nb'},
            'each': {'family': 'inet', 'type': 'dgram', 'host': '0.0.0.0',
                     'port': 9, 'reuseport': True}})
        self.assertIn('''
SOCKET  FD  TYPE          ADDRESS
each    -   inet dgram    0.0.0.0:9
file    66  unix stream   /run/a\\nb
six     65  inet6 stream  [::1]:81
web     64  inet stream   127.0.0.1:8080
''', text)

    def test_values(self) -> None:
        self.assertIn('''
VALUE  LENGTH  BEGINNING
a          11  hello…
b           5  hello
''', self.text(values={'b': [5, 'hello'], 'a': [11, 'hello']}))

    def test_processes(self) -> None:
        lines = self.text(processes={
            'web': process(),
            'done': process(running=False, status=3, buffered=0,
                            ended=time.time() - 65),
            'killed': process(running=False, status=-9, dropped=5 << 20),
            'odd': process(running=False, status=-99),
            'lost': process(running=False, status=None)}).splitlines()[-6:]
        self.assertEqual(inventory.PROCESSES, tuple(lines[0].split()))
        self.assertRegex(
            lines[1], rf'^done +{os.getpid()}  ended 3, 1 min 0\d s ago +-  '
                      r"+-  +-  +0 B +0 B  sh -c 'echo a b' ''$")
        self.assertRegex(lines[2], r'SIGKILL .* 1.5 KiB  5.0 MiB  sh')
        self.assertRegex(lines[3], r'^lost +\d+  ended \(status unknown\) +- ')
        self.assertRegex(lines[4], r'^odd +\d+  signal 99  ')
        self.assertRegex(
            lines[5], r'^web +\d+  running +2 h 01 min  +[\d.]+ .+ MiB  ')

    def test_a_process_that_is_not_shown_by_this_system(self) -> None:
        *_, line = self.text(processes={
            'gone': process(pid=2 ** 30)}).splitlines()
        self.assertRegex(
            line, r'^gone +\d+  running +2 h 01 min +- +- +1.5 KiB')

    def test_the_width_of_a_terminal(self) -> None:
        text = self.text(100, processes={
            'web': process(command=['x' * 200])})
        self.assertTrue(all(len(line) <= 100 for line in text.splitlines()))
        self.assertIn('xxx…', text)

    def test_hostile_names(self) -> None:
        text = self.text(
            sockets={'\x1b[2J': {}}, values={'a\nb': [1, '\x07']},
            processes={'\udcff': process(command=['\x1b]0;x\x07', '\u202e'])})
        self.assertTrue(all(line.isprintable()
                            for line in text.split('\n')), text)


class JSONTests(unittest.TestCase):

    def test_what_the_system_knows_is_added(self) -> None:
        found = json.loads(inventory.as_json(status(processes={
            'web': process(), 'done': process(running=False)})))
        self.assertEqual('4.0', found['version'])
        web = found['processes']['web']
        self.assertGreater(web['memory'], 1 << 20)
        self.assertGreaterEqual(web['cpu'], 0)
        self.assertEqual(1536, web['buffered'])
        self.assertEqual(None, found['processes']['done']['memory'])

    def test_any_bytes_in_a_name(self) -> None:
        text = inventory.as_json(status(values={'\udcff': [1, 'ü']}))
        self.assertTrue(text.isascii())
        self.assertEqual(['\udcff'], [*json.loads(text)['values']])
