"""What a PostgreSQL answers; see test_services for real ones."""

import pathlib
import unittest

from gocept.runner.executor import PostgreSQLExecutor, postgresql, unix
from gocept.runner.executor.conditions.postgresql import _Session
from gocept.runner.tests.executor.conditions.test_answer import (
    AnswerTestCase,
    answering,
)
from gocept.runner.tests.executor.conditions.test_network import HOST


def message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4) + body


def error(state: str, text: str = 'sorry') -> bytes:
    return message(b'E', f'SFATAL\0VFATAL\0C{state}\0M{text}\0\0'.encode())


ADMITTED = message(b'R', bytes(4))

PASSWORD = message(b'R', (10).to_bytes(4) + b'SCRAM-SHA-256\0\0')

PARAMETER = message(b'S', b'TimeZone\0Etc/UTC\0')

READY = message(b'Z', b'I')


class SessionTests(unittest.TestCase):

    def check(self, expected: bool | None, *answers: bytes) -> None:
        for answer in answers:
            with self.subTest(answer):
                self.assertIs(
                    expected, _Session('u', 'd').judge(answer, False))

    def test_a_password_and_the_like_are_asked_for_when_it_serves(
            self) -> None:
        self.check(True, PASSWORD)

    def test_a_session_is_waited_for(self) -> None:
        self.check(None, ADMITTED, ADMITTED + PARAMETER,
                   ADMITTED + READY[:3])
        self.check(True, ADMITTED + PARAMETER + READY)

    def test_errors_of_a_client_are_no_errors_of_the_server(self) -> None:
        self.check(True, error('28000'), error('3D000'), error('53300'),
                   ADMITTED + error('28000'))

    def test_it_may_let_nobody_in(self) -> None:
        self.check(False, error('57P01'), error('57P02'), error('57P03'),
                   ADMITTED + error('57P01'))

    def test_a_message_comes_in_pieces(self) -> None:
        for whole in PASSWORD, error('57P03'), error('28000'):
            self.check(None, *(whole[:end] for end in range(1, len(whole))))

    def test_others_say_something_else(self) -> None:
        self.check(False, b'HTTP/1.1 400 Bad Request', b'-ERR what?', b'x',
                   b'ERROR', b'R\0\0\0\0\0\0', error(''),
                   b'Ecould not fork new process for connection: \n\0')

    def test_an_error_is_shown(self) -> None:
        self.assertEqual(
            r'FATAL 57P03 für\neinen', _Session('u', 'd').shown(
                error('57P03', 'für\neinen')))
        self.assertEqual("'HTTP/1.1'", _Session('u', 'd').shown(b'HTTP/1.1'))

    def test_its_first_message(self) -> None:
        self.assertEqual(
            b'\0\0\0\x1d\0\3\0\0user\0me\0database\0it\0\0',
            _Session('me', 'it').send)

    def test_what_cannot_be_meant(self) -> None:
        for user, dbname in (('', 'd'), ('a\0b', 'd'), ('u', '\0')):
            with self.assertRaises(ValueError):
                postgresql(HOST, user=user, dbname=dbname)
        with self.assertRaisesRegex(ValueError, 'any but 0'):
            postgresql('/run', 0)

    def test_a_directory_stands_for_a_socket_in_it(self) -> None:
        condition = postgresql(pathlib.Path('/run/postgresql'), 5433)
        assert isinstance(condition, unix)
        self.assertEqual('/run/postgresql/.s.PGSQL.5433', condition.path)


class PostgreSQLTests(AnswerTestCase):

    def executor_of(self, *answers: bytes) -> PostgreSQLExecutor:
        """The last answer comes when the child is told to go on."""
        *before, last = answers
        return self.stopping(PostgreSQLExecutor(answering(f'''
            if not conn.recv(1000):
                return
            conn.sendall({last!r} if told() else {before!r}[0])
            say('got', conn.recv(1000))
            '''), HOST, 0))

    def test_it_starts_up(self) -> None:
        self.check_late(self.executor_of(
            error('57P03', 'the database system is starting up'), PASSWORD),
            'answered FATAL 57P03 the database system is starting up')

    def test_a_session_is_ended(self) -> None:
        executor = self.executor_of(
            message(b'E', b'C57P02\0\0'), ADMITTED + READY)
        self.check_late(executor, 'answered 57P02')

    def test_a_stranger(self) -> None:
        self.check_expired(
            self.executor_of(b'HTTP/1.1 400 Bad Request\r\n', b''),
            r"answered 'HTTP/1.1 400 Bad Request\r\n'")

    def test_the_end_of_a_session(self) -> None:
        executor = self.executor_of(ADMITTED + READY, b'').start()
        self.assertEqual(
            "got b'X\\x00\\x00\\x00\\x04'\n", executor.output().readline())
