import json
import os
import socket
import threading

from gocept.runner.house import control
from gocept.runner.house.control import Control, ask
from gocept.runner.house.rounds import Rounds
from gocept.runner.tests.house.test_record import STATE
from gocept.runner.tests.support import (
    DEADLINE,
    TestCase,
    open_descriptors,
)
from gocept.runner.waits.deadline import Deadline


class FakeHouse:

    def __init__(self, poller):
        self.poller = poller
        self.answers = [{'step': 'booting'},
                        {'step': 'done', 'text': '1 worker'}]

    def state(self):
        return STATE

    def reload(self, answer):
        for each in self.answers:
            answer(each)


class ControlTests(TestCase):

    def setUp(self):
        super().setUp()
        self.before = open_descriptors()
        self.poller = self.enterContext(Rounds())
        self.house = FakeHouse(self.poller)
        self.control = Control(str(self.dir), self.house)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()
        self.addCleanup(self.stop)

    def serve(self):
        while not self.ended.is_set():
            self.poller.poll()

    def stop(self):
        self.ended.set()
        self.poller.wakeup()
        self.thread.join()
        if self.control is not None:
            self.control.close()
            self.control = None

    def ask(self, wish):
        return [*ask(str(self.dir), wish, Deadline(DEADLINE))]

    def send(self, data):
        """Send something of our own; returns all that is answered."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(DEADLINE)
            sock.connect(str(self.dir / control.NAME))
            sock.sendall(data)
            answer = b''
            while data := sock.recv(1000):
                answer += data
        return answer

    def test_a_reload(self):
        self.assertEqual(self.house.answers, self.ask('reload'))

    def test_the_state(self):
        self.assertEqual([{'step': 'state', 'state': STATE}],
                         self.ask('state'))

    def test_what_cannot_be_asked_for(self):
        refused = [{'step': 'refused', 'text': 'no such request'}]
        self.assertEqual(refused, self.ask('explode'))
        for data in b'\n', b'[]\n', b'{}\n', b'{"do": []}\n', b'\xff\n':
            with self.subTest(data=data):
                self.assertEqual(refused[0], json.loads(self.send(data)))

    def test_what_is_no_request(self):
        self.assertEqual(b'', self.send(b'x' * 2000))

    def test_there_is_no_house(self):
        self.stop()
        with self.assertRaises(FileNotFoundError):
            self.ask('state')
        self.assertFalse(os.listdir(self.dir))

    def test_the_socket_of_one_that_has_died(self):
        other = self.dir / 'other'
        other.mkdir()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(other / control.NAME))
        with self.assertRaises(ConnectionRefusedError):
            [*ask(str(other), 'state', Deadline(DEADLINE))]
        with Rounds() as poller:
            Control(str(other), FakeHouse(poller)).close()
        self.assertFalse(os.listdir(other))

    def test_no_answer_comes(self):
        self.house.answers = [{'step': 'booting'}]
        answers = ask(str(self.dir), 'reload', Deadline(0.2))
        self.assertEqual({'step': 'booting'}, next(answers))
        with self.assertRaisesRegex(TimeoutError, 'no answer in 0.2 s'):
            next(answers)

    def test_a_long_path(self):
        deep = self.dir / ('d' * 100)
        deep.mkdir()
        with Rounds() as poller:
            Control(str(deep), FakeHouse(poller)).close()

    def test_it_serves_a_bounded_number(self):
        socks = []
        self.addCleanup(lambda: [sock.close() for sock in socks])
        for _ in range(control._MOST + 1):
            sock = socket.socket(socket.AF_UNIX)
            socks.append(sock)
            sock.settimeout(DEADLINE)
            sock.connect(str(self.dir / control.NAME))
        self.assertEqual(b'', socks[-1].recv(1))
        socks.pop(0).close()  # the others go on
        socks[0].sendall(b'{"do": "state"}\n')
        self.assertIn(b'"state"', socks[0].recv(1000))

    def test_nothing_is_left(self):
        self.ask('reload')
        self.stop()
        self.poller.close()
        self.assertEqual(self.before, open_descriptors())
