"""What a house serves, and to whom."""

import contextlib
import io
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

from prometheus_client.parser import text_string_to_metric_families

from gocept.runner.cli.up import up
from gocept.runner.errors import CannotStart, UsageError
from gocept.runner.house import http, page, web
from gocept.runner.house.web import Desk, Web
from gocept.runner.operation import directory, state
from gocept.runner.tests.house.clients import Polled, Served
from gocept.runner.tests.house.houses import House, house_state, worker_state
from gocept.runner.tests.operation.states import StateCase, own_state
from gocept.runner.tests.support import DEADLINE, replaced_modules
from gocept.runner.tests.victims import until
from gocept.runner.waits.deadline import Deadline


class WebCase(StateCase):

    def put(self, **changes: Any) -> None:
        """Write a state of this process, changed somehow, and register it."""
        run = self.dir / 'run'
        run.mkdir(exist_ok=True)
        state.write(str(run / 'nightly.json'), own_state(**changes))
        directory.register(str(run))

    @contextlib.contextmanager
    def serving(self, *workers: Any, host: str = '127.0.0.1',
                **options: bool) -> Iterator[Served]:
        """The pages of a house with these workers."""
        with Polled() as polled:
            self.house = House(polled.poller, str(self.dir), *(
                workers or [worker_state()]))
            self.web = Web(host, 0, **options)
            self.assertFalse(self.web.ready)
            polled.call(lambda: self.web.start(self.house))
            self.assertTrue(self.web.ready)
            try:
                server = self.web._server
                assert server is not None
                yield Served(polled, server)
            finally:
                polled.call(self.web.kill)
                for thread in threading.enumerate():
                    if thread.name == 'gocept.runner.page':
                        thread.join(DEADLINE)

    def serve(self, *workers: Any, **options: Any) -> Served:
        return self.enterContext(self.serving(*workers, **options))

    def assertStatus(self, status: int, answer: tuple[bytes, bytes]) -> None:
        self.assertEqual(str(status), answer[0][9:12].decode(), answer)


class PagesTests(WebCase):

    def test_the_page(self) -> None:
        self.put()
        served = self.serve()
        answer = served.get('/')
        self.assertStatus(200, answer)
        head, body = answer[0].decode(), answer[1].decode()
        self.assertIn('Content-Type: text/html; charset=utf-8\r\n', head)
        self.assertIn(f'Content-Security-Policy: {page.policy()}', head)
        self.assertIn(os.uname().nodename, body)
        self.assertIn('in 59 min', body)
        self.assertIn('http-equiv="refresh"', body)
        self.assertNotIn('http-equiv="refresh"',
                         served.get('/?still')[1].decode())
        self.assertEqual(
            [('http', f'Serving http://127.0.0.1:{served.port}/')],
            self.house.told)
        self.assertEqual(f'127.0.0.1:{served.port}', self.web.address)

    def test_a_page_that_is_not_there(self) -> None:
        answer = self.serve().get('/x')
        self.assertStatus(404, answer)
        self.assertEqual(b'404 Not Found: there are / /healthz /metrics\n',
                         answer[1])

    def test_another_host(self) -> None:
        served = self.serve()
        for path in '/', '/healthz', '/metrics', '/x':
            self.assertStatus(421, served.get(path, 'evil.example'))

    def test_an_address_that_others_reach(self) -> None:
        self.put(last_error={'tick': 1, 'time': 0.0, 'error': 'secret'})
        served = self.serve(host='0.0.0.0')
        for path in '/', '/?still':
            answer = served.get(path)
            self.assertStatus(403, answer)
            self.assertIn(b'--http-page', answer[1])
        for path in '/healthz', '/metrics':
            answer = served.get(path)
            self.assertStatus(200, answer)
            self.assertNotIn(b'secret', answer[1])
        self.assertIn('--http-page shows it', self.house.told[0][1])

    def test_an_address_that_others_are_to_reach(self) -> None:
        self.put()
        answer = self.serve(host='0.0.0.0', with_page=True).get('/')
        self.assertStatus(200, answer)
        self.assertNotIn('--http-page', self.house.told[0][1])


class HealthTests(WebCase):

    def test_healthy(self) -> None:
        self.put()
        answer = self.serve().get('/healthz')
        self.assertStatus(200, answer)
        self.assertEqual(b'healthy: 1 worker\n', answer[1])

    def test_several(self) -> None:
        served = self.serve(worker_state('a'), worker_state('b'))
        for workers, expected in (
                (self.house.workers, b'healthy: 2 workers\n'),
                ((), b'healthy: no workers yet\n')):
            self.house.workers = workers
            answer = served.get('/healthz')
            self.assertStatus(200, answer)
            self.assertEqual(expected, answer[1])

    def test_not_healthy(self) -> None:
        self.put(boot='\ud800\n')
        answer = self.serve(
            worker_state(), worker_state('mail'), worker_state(
                'a\nb\ud800', phase='given up', pid=None, failures=3,
                status=1)).get('/healthz')
        self.assertStatus(503, answer)
        self.assertEqual(1, answer[1].count(b'\n'))
        self.assertRegex(answer[1].decode(), (
            r'^not healthy: 2 of 3: nightly \(pid \d+\) is dead, .*; a b.* is '
            'given up: it has failed 3 times, after status 1$'))


class MetricsTests(WebCase):

    def samples(self, served: Served) -> dict[Any, float]:
        answer = served.get('/metrics')
        self.assertStatus(200, answer)
        return {(sample.name, *sorted(sample.labels.values())): sample.value
                for family in text_string_to_metric_families(
                    answer[1].decode()) for sample in family.samples}

    def test_samples(self) -> None:
        self.put(site='shop')
        samples = self.samples(self.serve(
            worker_state(site='/shop', starts=3), worker_state(
                'mail', phase='pausing', pid=None, failures=2)))
        for name, expected in {
                'worker_starts_total': (3, 1), 'worker_running': (1, 0),
                'worker_failures': (0, 2), 'worker_healthy': (1, 0),
                'children': (0, None)}.items():
            self.assertEqual(expected, tuple(
                samples.get((f'gocept_runner_{name}', *labels))
                for labels in [('nightly', 'shop'), ('/', 'mail')]), name)
        self.assertEqual(3, samples[
            'gocept_runner_ticks_total', 'committed', 'nightly', 'shop'])
        self.assertIn(('process_start_time_seconds',), samples)

    def test_a_counter_goes_on_after_a_restart(self) -> None:
        served = self.serve()
        ticks = 'gocept_runner_ticks_total', '/', 'committed', 'nightly'
        for commits, total in (3, 3), (1, 4):
            self.put(counts={'commits': commits}, total={
                'counts': {'commits': total}, 'durations': [],
                'seconds': 1.0})
            self.assertEqual(total, self.samples(served)[ticks])

    def test_openmetrics(self) -> None:
        _, body = self.serve().ask(
            b'GET /metrics HTTP/1.1\r\nHost: localhost\r\n'
            b'Accept: application/openmetrics-text; version=1.0.0\r\n\r\n')
        self.assertTrue(body.endswith(b'# EOF\n'))

    def test_without_the_package(self) -> None:
        served = self.serve()
        with replaced_modules({'prometheus_client': None,
                               'gocept.runner.house.metrics': None}):
            import sys
            del sys.modules['gocept.runner.house.metrics']
            answer = served.get('/metrics')
        self.assertStatus(404, answer)
        self.assertIn(b'pip install "gocept.runner[metrics]"', answer[1])


class DiskTests(WebCase):

    def test_a_disk_that_hangs(self) -> None:
        # Nobody else waits, and no memory is used up.
        hangs, goes_on = threading.Event(), threading.Event()

        def read(path: str) -> Any:
            hangs.set()
            goes_on.wait(DEADLINE)
            return own_state()
        self.put()
        self.enterContext(mock.patch.object(web, 'MOST_CONNECTIONS', 3))
        served = self.serve()
        self.addCleanup(goes_on.set)
        self.enterContext(mock.patch.object(state, 'read', read))
        self.enterContext(mock.patch.object(http, 'PATIENCE', 0.2))
        answer = served.get('/healthz')
        self.assertTrue(hangs.is_set())
        self.assertStatus(503, answer)
        self.assertIn(b'there was no answer within', answer[1])
        self.assertStatus(404, served.get('/x'))
        desk = self.web._desk
        assert desk is not None
        for _ in range(desk._questions.maxsize):
            self.assertStatus(503, served.get('/healthz'))
        answer = served.get('/healthz')
        self.assertStatus(503, answer)
        self.assertIn(b'does the disk hang?', answer[1])
        goes_on.set()
        until(desk._questions.empty)
        self.assertStatus(200, served.get('/healthz'))

    def test_a_mistake_of_ours(self) -> None:
        served = self.serve()
        with (mock.patch.object(page, 'page', side_effect=ValueError('no')),
              self.assertLogs('gocept.runner.house', 'ERROR')):
            self.assertStatus(500, served.get('/'))
        self.assertStatus(200, served.get('/'))

    def test_no_thread_can_be_started(self) -> None:
        served = self.serve()
        with mock.patch.object(threading.Thread, 'start',
                               side_effect=RuntimeError('too many')):
            answer = served.get('/')
        self.assertStatus(503, answer)
        self.assertIn(b'too many', answer[1])
        self.assertStatus(200, served.get('/'))

    def test_a_house_that_has_ended_meanwhile(self) -> None:
        with Polled() as polled:
            desk = Desk(polled.poller)
        question = web.Question(
            lambda *args: http.Answer(b''), http.Request('GET', '/'),
            house_state(), mock.Mock())
        with self.assertLogs('gocept.runner.house', 'DEBUG'):
            desk._send(question, http.Answer(b''))
        desk.close()


class EndTests(WebCase):

    def test_the_end(self) -> None:
        with Polled() as polled:
            part = Web('127.0.0.1', 0)
            house = House(polled.poller, str(self.dir))
            polled.call(lambda: part.start(house))
            server = part._server
            assert server is not None
            served = Served(polled, server)
            served.get('/')
            until(lambda: part.ended)
            polled.call(lambda: part.stop(Deadline(5)))
            self.assertTrue(part.ended)
            with self.assertRaises(ConnectionRefusedError):
                served.connect()
            until(lambda: 'gocept.runner.page' not in [
                thread.name for thread in threading.enumerate()])

    def test_a_house_that_was_not_started(self) -> None:
        part = Web('127.0.0.1', 0)
        self.assertTrue(part.ended)
        part.stop(Deadline(5))
        part.kill()
        self.assertEqual(-1, part._socket.fileno())

    def test_the_options(self) -> None:
        part = web.web_of('0')
        self.addCleanup(part.kill)
        self.assertRegex(part.address, r'^127\.0\.0\.1:\d+$')
        for where in '', 'here', 'localhost:', ':80':
            with self.assertRaisesRegex(UsageError, '^--http: not .*PORT'):
                web.web_of(where)

    def test_a_place_that_is_taken(self) -> None:
        with socket.create_server(('127.0.0.1', 0)) as taken:
            port = taken.getsockname()[1]
            with self.assertRaisesRegex(
                    CannotStart, f'^the page cannot be served at 127.0.0.1:'
                    f'{port}: Address already in use; name another place with '
                    r'--http \[HOST:\]PORT$'):
                Web('127.0.0.1', port)


class CommandTests(WebCase):
    """What ``gocept-runner up`` says before it starts anything."""

    def up(self, *argv: str) -> tuple[object, str]:
        """The status, and the last line that was written to the error output.
        """
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            try:
                status: object = up(['--config', 'zope.conf', *argv])
            except SystemExit as error:
                status = error.code
        return status, stderr.getvalue().splitlines()[-1]

    def test_no_place(self) -> None:
        status, line = self.up('--http', 'here')
        self.assertEqual(2, status)
        self.assertIn('error: --http: not [HOST:]PORT, such as 9100', line)

    def test_a_page_that_is_served_nowhere(self) -> None:
        status, line = self.up('--http-page')
        self.assertEqual((2, True), (
            status, line.endswith('error: --http-page needs --http')))

    def test_a_place_that_is_taken(self) -> None:
        with socket.create_server(('127.0.0.1', 0)) as taken:
            port = taken.getsockname()[1]
            self.assertEqual((71, (
                'gocept-runner up: error: the page cannot be served at '
                f'127.0.0.1:{port}: Address already in use; name another '
                'place with --http [HOST:]PORT')), self.up(
                    '--http', str(port)))
