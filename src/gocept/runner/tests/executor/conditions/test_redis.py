"""What a Redis answers; see test_services for real ones."""

import pathlib
import unittest

from gocept.runner.executor import RedisExecutor, redis, unix
from gocept.runner.executor.conditions.redis import _Ping
from gocept.runner.tests.executor.conditions.test_answer import (
    AnswerTestCase,
    answering,
)
from gocept.runner.tests.executor.conditions.test_network import HOST
from gocept.runner.tests.executors import Starting

LOADING = b'-LOADING Redis is loading the dataset in memory\r\n'


class PingTests(unittest.TestCase):

    def check(self, expected: bool | None, *answers: bytes,
              password: str = '') -> None:
        for answer in answers:
            with self.subTest(answer):
                self.assertIs(expected, _Ping(password).judge(answer, False))

    def test_it_can_be_used(self) -> None:
        self.check(True, b'+PONG\r\n', b'-NOAUTH Authentication required.\r\n',
                   b"-NOPERM this user has no permissions to run 'ping'\r\n")
        self.check(True, b'+OK\r\n+PONG\r\n', b'+OK\r\n-NOPERM no\r\n',
                   password='secret')

    def test_it_cannot_be_used_yet(self) -> None:
        others = (LOADING, b'-MASTERDOWN Link with MASTER is down\r\n',
                  b'-BUSY Redis is busy running a script\r\n',
                  b'-MISCONF Redis is configured to save RDB snapshots\r\n',
                  b'-ERR max number of clients reached\r\n',
                  b'-DENIED Redis is running in protected mode\r\n')
        self.check(False, *others)
        self.check(False, *(b'+OK\r\n' + each for each in others),
                   b'-WRONGPASS invalid username-password pair\r\n',
                   b'-ERR AUTH called without any password\r\n+PONG\r\n',
                   password='secret')

    def test_an_answer_comes_in_pieces(self) -> None:
        for whole, password in ((b'+PONG\r\n', ''), (LOADING, ''),
                                (b'+OK\r\n+PONG\r\n', 'secret')):
            self.check(None, *(whole[:end] for end in range(1, len(whole))),
                       password=password)

    def test_others_say_something_else(self) -> None:
        self.check(False, b'HTTP/1.1 400 Bad Request\r\n', b'x')

    def test_what_it_sends(self) -> None:
        self.assertEqual(b'*1\r\n$4\r\nPING\r\n', _Ping('').send)
        self.assertEqual(
            b'*2\r\n$4\r\nAUTH\r\n$5\r\ns\xc3\xa9c \r\n'
            b'*1\r\n$4\r\nPING\r\n', _Ping('séc ').send)

    def test_a_path_stands_for_a_socket(self) -> None:
        condition = redis(pathlib.Path('/run/redis.sock'))
        assert isinstance(condition, unix)
        self.assertEqual('/run/redis.sock', condition.path)


class RedisTests(AnswerTestCase):

    def test_it_loads_its_data(self) -> None:
        self.check_late(self.stopping(RedisExecutor(answering(
            f"conn.sendall(b'+PONG\\r\\n' if told() else {LOADING!r});"
            'ended(conn)'), HOST, 0)), 'answered ' + repr(LOADING)[1:])

    def test_a_password_is_not_told(self) -> None:
        executor = self.stopping(RedisExecutor(answering(
            r"conn.sendall(b'-WRONGPASS\r\n'); ended(conn)"), HOST, 0,
            password='my secret'))
        starting = Starting(executor)
        starting.expire_when_seen('WRONGPASS')
        with self.assertRaisesRegex(Exception, 'WRONGPASS') as caught:
            starting.wait()
        self.assertNotIn('my secret', str(caught.exception))
