"""Metrics as Prometheus reads them."""

import json
import os
import pathlib
import re
import signal
import socket
import textwrap
import threading
import unittest
import urllib.request
from unittest import mock

from prometheus_client.parser import text_string_to_metric_families

from gocept.runner.errors import CannotStart
from gocept.runner.house.census import Resident
from gocept.runner.house.metrics import Residents
from gocept.runner.operation import exposition
from gocept.runner.operation.exposition import PREFIX, Collector, serving
from gocept.runner.operation.numbers import BUCKETS, Numbers
from gocept.runner.tests.house.houses import worker_state
from gocept.runner.tests.support import (
    DEADLINE,
    TestCase,
    end_background,
)
from gocept.runner.tests.victims import until


def key(name, worker='expire', site='shop', **labels):
    """What `fetch` knows a sample by."""
    return name, worker, site, *labels.values()


def fetch(port, host='127.0.0.1'):
    """The samples there: values by name and labels."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f'http://{host}:{port}/metrics',
                     timeout=DEADLINE) as answer:
        text = answer.read().decode()
    return {key(sample.name.removeprefix(PREFIX), **sample.labels):
            sample.value for family in text_string_to_metric_families(text)
            for sample in family.samples}


class ServingTests(unittest.TestCase):

    def setUp(self):
        self.numbers = Numbers('expire', 'shop', 1.5, '4.0')
        self.addCleanup(self.end_threads)

    def end_threads(self):
        for thread in threading.enumerate():
            if thread.name == 'gocept.runner.metrics':
                thread.join(DEADLINE)
        end_background()

    def serve(self, *numbers):
        """Serve; returns the port."""
        server = self.enterContext(serving(
            lambda: numbers or [self.numbers], '127.0.0.1', 0))
        return server.socket.getsockname()[1]

    def test_samples(self):
        numbers = self.numbers
        numbers.ticks['committed'] = 3
        numbers.items['failed'] = 2
        numbers.timed_out = numbers.conflicts = 4
        for seconds in .02, .02, 20000:
            numbers.durations.add(seconds)
        numbers.last_success = 1e9
        samples = fetch(self.serve())
        for expected, value in {
                key('info', version='4.0'): 1, key('start_time_seconds'): 1.5,
                key('ticks_total', outcome='committed'): 3,
                key('ticks_total', outcome='aborted'): 0,
                key('items_total', outcome='failed'): 2,
                key('ticks_timed_out_total'): 4, key('conflicts_total'): 4,
                key('retries_total'): 0,
                key('last_success_timestamp_seconds'): 1e9,
                key('tick_duration_seconds_bucket', le='0.01'): 0,
                key('tick_duration_seconds_bucket', le='0.05'): 2,
                key('tick_duration_seconds_bucket', le=str(BUCKETS[-1])): 2,
                key('tick_duration_seconds_bucket', le='+Inf'): 3,
                key('tick_duration_seconds_count'): 3,
                key('tick_duration_seconds_sum'): 20000.04,
                key('children'): 0}.items():
            self.assertEqual(value, samples.get(expected), expected)
        for name in ('tick_start_timestamp_seconds',
                     'next_tick_timestamp_seconds',
                     'last_tick_duration_seconds'):
            self.assertNotIn(key(name), samples)
        if os.path.exists('/proc/self/stat'):
            self.assertLess(0, samples[key('process_resident_memory_bytes')])

    def test_several_workers(self):
        samples = fetch(self.serve(self.numbers, Numbers('mail', '/', 0)))
        for of in {}, {'worker': 'mail', 'site': '/'}:
            self.assertEqual(0, samples[
                key('ticks_total', **of, outcome='committed')])

    def test_a_port_that_is_taken(self):
        port = self.serve()
        with (self.assertRaisesRegex(
                CannotStart, f'cannot be served at 127.0.0.1:{port}: Address '
                             'already in use; name another place'),
                serving(list, '127.0.0.1', port)):
            self.fail('it was served')
        fetch(port)

    def test_a_host_that_is_unknown(self):
        error = socket.gaierror(socket.EAI_NONAME, 'Name not known')
        with (mock.patch('socket.getaddrinfo', side_effect=error),
              self.assertRaisesRegex(
                  CannotStart, 'served at nohost:9: Name not known; name '),
              serving(list, 'nohost', 9)):
            self.fail('it was served')

    def test_a_name_that_no_host_can_have(self):
        with (self.assertRaisesRegex(CannotStart, 'No host can have this na'),
              serving(list, 'x' * 300, 9)):
            self.fail('it was served')

    def connect(self, port):
        return self.enterContext(socket.create_connection(
            ('127.0.0.1', port), timeout=DEADLINE))

    def ask(self, client):
        """The answer that a client gets."""
        client.sendall(b'GET / HTTP/1.0\r\n\r\n')
        with client.makefile('rb') as answer:
            return answer.read()

    def test_nobody_waits_for_a_client(self):
        with serving(lambda: [self.numbers], '127.0.0.1', 0) as server:
            port = server.socket.getsockname()[1]
            silent = self.connect(port)
            fetch(port)
            silent.sendall(b'GET')
            fetch(port)
            until(lambda: len(server._clients) == 1)
        self.assertIn(b'gocept_runner_info', self.ask_rest(silent))

    def ask_rest(self, client):
        client.sendall(b' / HTTP/1.0\r\n\r\n')
        with client.makefile('rb') as answer:
            return answer.read()

    def test_too_many_clients(self):
        self.enterContext(mock.patch.object(exposition, '_MOST_CLIENTS', 1))
        with serving(lambda: [self.numbers], '127.0.0.1', 0) as server:
            port = server.socket.getsockname()[1]
            first = self.connect(port)
            until(lambda: server._clients)
            fetch(port)
            self.assertEqual(b'', first.recv(1))

    def test_an_address_that_is_none(self):
        port = self.serve()
        with (self.assertNoLogs('gocept.runner.operation'),
              self.connect(port) as client):
            client.sendall(b'GET http://[ HTTP/1.0\r\n\r\n')
            with client.makefile('rb') as answer:
                self.assertIn(b' 400 ', answer.readline())

    def test_no_thread_can_be_started(self):
        port = self.serve()
        with (mock.patch.object(threading.Thread, 'start',
                                side_effect=RuntimeError('too many')),
              self.assertLogs('gocept.runner.operation', 'WARNING')):
            self.assertEqual(b'', self.connect(port).recv(1))
        fetch(port)

    def test_what_cannot_be_read(self):
        fail = threading.Event()

        def read():
            if fail.is_set():
                raise ValueError('no numbers')
            return [self.numbers]
        server = self.enterContext(serving(read, '127.0.0.1', 0))
        port = server.socket.getsockname()[1]
        fail.set()
        with self.assertLogs('gocept.runner.operation', 'ERROR'):
            self.assertEqual(b'', self.ask(self.connect(port)))
        fail.clear()
        fetch(port)

    def test_the_port_is_free_at_the_end(self):
        with serving(lambda: [self.numbers], '127.0.0.1', 0) as server:
            port = server.socket.getsockname()[1]
        with serving(lambda: [self.numbers], '127.0.0.1', port):
            fetch(port)

    def test_a_fork_does_not_keep_the_port(self):
        ours, theirs = socket.socketpair()
        with serving(lambda: [self.numbers], '127.0.0.1', 0) as server:
            port = server.socket.getsockname()[1]
            pid = os.fork()
            if not pid:
                ours.close()
                theirs.sendall(b'.')
                theirs.recv(1)
                os._exit(0)
        self.addCleanup(os.waitpid, pid, 0)
        with theirs, ours:
            theirs.close()
            self.assertEqual(b'.', ours.recv(1))  # it is there
            with self.assertRaises(ConnectionRefusedError):
                socket.create_connection(('127.0.0.1', port)).close()


class PageTests(unittest.TestCase):
    """What docs/ says about the metrics; a wheel does not have it."""

    docs = pathlib.Path(__file__).parents[5] / 'docs'

    def setUp(self):
        full = Numbers('expire', 'shop', 0, '4.0', last_duration=0,
                       last_success=0, tick_started=0, next_tick=0)
        self.metrics = [
            *Collector(lambda: [full]).collect(),
            *Residents([Resident(worker_state(), None)]).collect()]
        self.known = {sample.name for metric in self.metrics
                      for sample in metric.samples}

    def assertKnown(self, text):
        for name in set(re.findall(r'gocept_runner_\w+', text)) - {
                'gocept_runner_tick_duration_seconds'}:  # the histogram
            self.assertIn(name, self.known)

    def test_the_page_has_each_metric(self):
        text = (self.docs / 'prometheus.rst').read_text()
        rules = text.partition('rules:\n')[2]
        self.assertTrue(rules)
        self.assertKnown(rules)
        for metric in self.metrics:
            counter = '_total' * (metric.type == 'counter')
            self.assertIn(f'\n``{metric.name}{counter}``', text)
            for sample in metric.samples:
                if 'outcome' in sample.labels:
                    self.assertIn(f"``{sample.labels['outcome']}``", text)

    def test_the_dashboard(self):
        text = (self.docs / 'grafana.json').read_text()
        self.assertKnown(text)
        dashboard = json.loads(text)
        self.assertLessEqual(39, dashboard['schemaVersion'])
        variables = {each['name'] for each
                     in dashboard['templating']['list']}
        for panel in dashboard['panels']:
            with self.subTest(panel['title']):
                self.assertTrue(panel['targets'])
                place = panel['gridPos']
                self.assertLessEqual(place['x'] + place['w'], 24)
                for target in panel['targets']:
                    used = set(re.findall(r'\$(\w+)', target['expr']))
                    self.assertLessEqual(
                        used, variables | {'__rate_interval'})
                    self.assertEqual(target['expr'].count('('),
                                     target['expr'].count(')'))
        numbers = [panel['id'] for panel in dashboard['panels']]
        self.assertEqual(len(numbers), len(set(numbers)))


class CommandTests(TestCase):

    def test_a_worker_that_logs_in_json(self):
        self.zope_conf('')
        program = self.program(textwrap.dedent('''
            import logging
            import gocept.runner

            @gocept.runner.appmain(ticks=1000, principal='zope.mgr')
            def work():
                logging.getLogger('shop').warning(
                    'two\\nlines', extra={'order': 7})

            raise SystemExit(work())
            '''), '--metrics', '0', '--log-format', 'json')
        program.wait_for('"two')
        lines = [*map(json.loads, program.output.splitlines())]
        [port] = [line['message'].split(':')[-1].split('/')[0]
                  for line in lines
                  if line['message'].startswith('Metrics are')]
        self.assertEqual(
            ['shop', 'two\nlines', 'work', 1, 1, 'zope.mgr', {'order': 7}],
            [lines[-1][name] for name in (
                'logger', 'message', 'worker', 'tick', 'attempt', 'principal',
                'extra')])
        of = {'worker': 'work', 'site': '/'}
        until(lambda: fetch(port)[
            key('ticks_total', **of, outcome='committed')])
        until(lambda: key('next_tick_timestamp_seconds', **of) in fetch(port))
        program.send(signal.SIGTERM)
        self.assertEqual(0, program.end())

    def test_a_port_that_is_taken(self):
        self.zope_conf('')
        with socket.create_server(('127.0.0.1', 0)) as taken:
            port = taken.getsockname()[1]
            program = self.program(textwrap.dedent('''
                import gocept.runner

                @gocept.runner.appmain()
                def work():
                    raise SystemExit('it ran')

                raise SystemExit(work())
                '''), '--metrics', str(port))
            self.assertEqual(71, program.end())
        self.assertEqual(
            f'program.py: error: metrics cannot be served at 127.0.0.1:{port}:'
            ' Address already in use; name another place with --metrics '
            '[HOST:]PORT',
            program.output.splitlines()[-1])
