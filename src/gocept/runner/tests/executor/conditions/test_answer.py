"""Executors that ask a server, and wait for the right answer."""

import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gocept.runner.executor import (
    AlreadyRunning,
    ConditionExecutor,
    ExecutorError,
    ProcessExitedWithError,
    TCPExecutor,
    TimeoutExpired,
    UnixSocketExecutor,
    all_of,
    output,
    tcp,
    unix,
)
from gocept.runner.executor.conditions import answer
from gocept.runner.tests.executor.conditions.test_network import (
    HOST,
    listening,
)
from gocept.runner.tests.executors import ExecutorTestCase, Starting, server
from gocept.runner.tests.support import DEADLINE
from gocept.runner.tests.victims import until

SERVE = '''
import select, threading, time

def told():
    """Whether it is to go on."""
    return bool(select.select([0], [], [], 0)[0])

def ended(conn):
    """Read until the client has gone."""
    while conn.recv(4096):
        pass

def serve(handle, where={port}):
    sock = listen(where)
    for number in range(10000):
        try:
            conn, _ = sock.accept()
        except OSError:  # one of the connections has ended this
            pause()
        threading.Thread(
            target=serve_one, args=(handle, sock, conn, number)).start()

def serve_one(handle, sock, conn, number):
    with conn:
        try:
            handle(sock, conn, number)
        except OSError:  # the client has gone
            pass

'''


def answering(handling: str, where: object = '{port}') -> list[str]:
    """A victim that does so with each connection."""
    return server('\n'.join([
        SERVE.replace('{port}', str(where)),
        'def handle(sock, conn, number):',
        textwrap.indent(textwrap.dedent(handling), '    '),
        'serve(handle)']))


class AnswerTestCase(ExecutorTestCase):

    def executor(self, handling: str, **options: Any) -> TCPExecutor:
        return self.stopping(TCPExecutor(
            answering(handling), HOST, 0,
            **{'expect': r'^\+PONG', **options}))

    def check_expired(self, executor: ConditionExecutor, seen: str) -> None:
        """Its deadline passes when that has been seen."""
        starting = Starting(executor)
        starting.expire_when_seen(seen)
        with self.assertRaises(TimeoutExpired) as caught:
            starting.wait()
        self.assertIn('; seen last: ', str(caught.exception))
        self.assertIsNone(executor.child)

    def check_late(self, executor: ConditionExecutor, seen: str) -> None:
        """Ready when it is told to go on, not before."""
        starting = Starting(executor)
        starting.until_seen(seen)
        starting.go_on()
        starting.wait()
        self.assertTrue(executor.running())
        executor.stop()


class AnswerTests(AnswerTestCase):

    def test_what_is_sent_is_answered(self) -> None:
        executor = self.executor(
            r"if conn.recv(100) == b'PING\r\n': conn.sendall(b'+PONG\r\n')",
            send=b'PING\r\n')
        for _ in range(2):
            executor.start().stop()

    def test_a_greeting(self) -> None:
        self.executor(r"conn.sendall(b'hello\r\n+PONG\r\n')",
                      expect='^hello$').start()

    def test_any_answer_to_what_is_sent(self) -> None:
        self.check_late(self.executor(
            "if told(): conn.sendall(conn.recv(1))", send=b'x', expect=None),
            'without an answer')

    def test_a_function_tells(self) -> None:
        answers = []

        def expect(answer: bytes) -> bool:
            answers.append(answer)
            return answer == b'\0\xff'
        self.executor(r"conn.sendall(b'\0\xff')", expect=expect).start()
        self.assertEqual(b'\0\xff', answers[-1])

    def test_nothing_is_no_answer(self) -> None:
        self.check_late(self.executor("if told(): conn.sendall(b'x')",
                                      expect=''), 'without an answer')

    def test_a_function_that_fails_ends_the_start(self) -> None:
        executor = self.executor(
            "conn.sendall(b'what'); ended(conn)",
            expect=lambda answer: {}[answer])
        with self.assertRaisesRegex(KeyError, 'what'):
            executor.start()
        self.assertIsNone(executor.child)

    def test_who_looks_meanwhile_does_not_wait(self) -> None:
        looks = []

        def expect(answer: bytes) -> bool:
            with ThreadPoolExecutor(1) as threads:
                looks.append(threads.submit(
                    executor.after_start_check).result(DEADLINE))
            return True
        executor = self.executor("conn.sendall(b'x')", expect=expect)
        executor.start()
        self.assertEqual([False], looks)

    def test_who_looks_later_asks_again(self) -> None:
        executor = self.executor(
            "conn.sendall(b'-NO' if told() else b'+PONG'); ended(conn)")
        executor.start()
        self.assertTrue(executor.after_start_check())
        executor.child.channel.write(b'\n')
        until(lambda: not executor.after_start_check())

    def test_it_says_nothing(self) -> None:
        self.check_expired(self.executor('ended(conn)'), ', no answer yet')

    def test_it_says_nothing_until_it_serves(self) -> None:
        self.check_late(self.executor(
            r'sys.stdin.readline(); conn.sendall(b"+PONG\r\n")'),
            ', no answer yet')

    def test_it_answers_only_a_later_question(self) -> None:
        self.executor(
            r"if number: conn.sendall(b'+PONG\r\n')" '\n'
            'ended(conn)').start()

    def test_the_answer_to_an_earlier_question_counts(self) -> None:
        for before in b'', b'-LOADING':
            executor = self.executor(fr'''
                conn.sendall({before!r})
                if not number:
                    sys.stdin.readline()
                    conn.sendall(b'\r\n+PONG\r\n')
                say('asked', number)
                ended(conn)
                ''')
            starting = Starting(executor)
            until(executor.output)
            self.assertEqual('asked 1\n', executor.output().readline())
            starting.go_on()
            starting.wait()

    def test_only_some_connections_are_kept(self) -> None:
        executor = self.executor(
            "conn.sendall(b'x'); ended(conn); say('closed', number)")
        starting = Starting(executor)
        until(executor.output)
        self.assertEqual('closed 0\n', executor.output().readline())
        run = executor._run
        self.assertLessEqual(len(run.check._attempts), answer._MOST)
        executor.kill()
        self.assertRaises(ExecutorError, starting.wait)

    def test_half_an_answer(self) -> None:
        self.check_late(
            self.executor(r'conn.sendall(b"+PONG\r\n" if told() else b"+PO");'
                          'ended(conn)'), "answered '+PO'")

    def test_single_bytes(self) -> None:
        self.executor(r'''
            for each in b'+PONG\r\n':
                conn.sendall(bytes([each]))
                time.sleep(0.01)
            ended(conn)
            ''', expect=r'^\+PONG$').start()

    def test_an_endless_answer(self) -> None:
        self.check_expired(self.executor('''
            while True:
                conn.sendall(bytes(1000))
            '''), f'and went on after {answer.LIMIT} bytes')

    def test_after_an_endless_answer_it_is_asked_again(self) -> None:
        self.check_late(self.executor(r'''
            if told():
                conn.sendall(b'+PONG')
            while True:
                conn.sendall(bytes(1000))
            '''), 'went on after')

    def test_it_closes_the_connection(self) -> None:
        self.check_late(
            self.executor(r'if told(): conn.sendall(b"+PONG\r\n")'),
            'server closed the connection without an answer')

    def test_it_resets_the_connection(self) -> None:
        self.check_late(self.executor(r'''
            conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes(
                [1, 0, 0, 0, 0, 0, 0, 0]))
            if told():
                conn.sendall(b"+PONG\r\n")
                ended(conn)
            '''), 'without an answer')

    def test_it_closes_after_a_wrong_answer(self) -> None:
        self.check_late(
            self.executor(r'conn.sendall(b"+PONG" if told() else b"-NO")'),
            "answered '-NO', and closed the connection")

    def test_wrong_and_then_right_on_one_connection(self) -> None:
        self.check_late(self.executor(r'''
            conn.sendall(b'-LOADING\r\n')
            if not number:
                sys.stdin.readline()
                conn.sendall(b'+PONG\r\n')
            ended(conn)
            '''), r"answered '-LOADING\r\n'")

    def test_the_end_of_a_line_that_goes_on_is_no_end(self) -> None:
        self.check_late(self.executor(r'''
            conn.sendall(b'+PONG')
            if told():
                conn.sendall(b'\r\n')
            ended(conn)
            ''', expect='PONG$'), "answered '+PONG'")

    def test_the_end_of_the_connection_is_that_of_a_line(self) -> None:
        self.executor("conn.sendall(b'+PONG')", expect='PONG$').start()

    def test_a_long_answer_is_shown_in_short(self) -> None:
        executor = self.executor("conn.sendall(bytes(1000)); ended(conn)")
        starting = Starting(executor)
        starting.until_seen('...')
        assert executor._run is not None and executor._run.check is not None
        self.assertLess(len(executor._run.check.seen), 1000)
        self.assertTrue(executor._run.check.seen.isprintable())
        executor.kill()
        self.assertRaises(ExecutorError, starting.wait)

    def test_the_answer_before_is_told(self) -> None:
        executor = self.executor('''
            sock.shutdown(socket.SHUT_RDWR)
            conn.sendall(b'no')
            ''')
        self.check_expired(
            executor, f"answered 'no', and closed the connection; then {HOST}:"
            f'{executor.port}: Connection refused')

    def test_what_it_does_not_read_is_no_hindrance(self) -> None:
        with self.assertNoLogs('gocept.runner', 'WARNING'):
            self.executor(r"conn.sendall(b'+PONG'); pause()",
                          send=bytes(2 ** 24)).start()

    def test_the_connection_is_closed_though_others_are_waited_for(
            self) -> None:
        port = tcp(HOST, 0, expect='PONG')
        executor = self.stopping(ConditionExecutor(
            answering("conn.sendall(b'+PONG'); ended(conn); say('gone')"),
            all_of(port, output('gone'))))
        executor.start()

    def test_a_child_that_fails_is_not_waited_for(self) -> None:
        executor = self.executor(
            "conn.sendall(b'-ERR'); say('sorry'); os._exit(3)")
        with self.assertRaisesRegex(
                ProcessExitedWithError,
                r'non-zero code: 3; waited \d+\.\d\d s '
                r"for an answer that matches '\^\\\\\+PONG' from 127.0.0.1 "
                r'port \d+; (?s:.*)sorry$'):
            executor.start()

    def test_a_stranger_is_in_the_way(self) -> None:
        with listening() as port:
            executor = TCPExecutor('sleep 100', HOST, port, expect='x')
            self.assertRaises(AlreadyRunning, executor.start)

    def test_a_unix_socket(self) -> None:
        path = str(self.dir / 'a socket')
        self.check_late(self.stopping(UnixSocketExecutor(
            answering("conn.sendall(b'+PONG' if told() else conn.recv(1))",
                      where=repr(path)),
            path, send=b'?', expect='PONG')),
            "answered '?', and closed the connection")

    def test_a_unix_socket_that_is_not_there(self) -> None:
        path = str(self.dir / 'socket')
        self.check_expired(self.stopping(UnixSocketExecutor(
            server('pause()'), path, expect='PONG')), 'No such file')

    def test_what_cannot_be_meant(self) -> None:
        make: Callable[..., object]
        for make in lambda **it: tcp(HOST, 1, **it), lambda **it: unix(
                '/x', **it):
            for keywords, message in (
                    ({'send': 'PING'}, '"send" must be bytes'),
                    ({'expect': b'PONG'}, 'as text')):
                with self.subTest(keywords), self.assertRaisesRegex(
                        TypeError, message):
                    make(**keywords)
