"""The requests of all clients, in order of receipt."""

import json
import unittest
from collections.abc import Sequence

from gocept.runner.background.frames import (
    AWAIT,
    ERROR,
    EXEC,
    FAILURE,
    RECEIPT,
    RESPONSE,
    Piece,
)
from gocept.runner.background.limits import Account
from gocept.runner.background.queue import Queue, Request


class Client:
    """Keeps what it is sent."""

    address = '127.0.0.1:1'
    python = 3, 11
    key_number = 0

    def __init__(self) -> None:
        self.heard: list[tuple[int, int, int, bytes]] = []

    def send(self, kind: int, flags: int, number: int,
             pieces: Sequence[Piece] = ()) -> bool:
        self.heard.append((kind, flags, number, b''.join(pieces)))
        return True


def request(number: int, client: Client | None = None) -> Request:
    """A request without a payload."""
    return Request(client or Client(), EXEC, AWAIT, number, [])


class RequestTests(unittest.TestCase):

    def test_answers(self) -> None:
        client = Client()
        asked = request(7, client)
        self.assertTrue(asked.receipt())
        self.assertTrue(asked.respond([b'a', b'b'], ERROR))
        self.assertTrue(asked.fail('task', 'No', 'KeyError', 'Trace'))
        self.assertEqual([(RECEIPT, 0, 7, b''), (RESPONSE, ERROR, 7, b'ab')],
                         client.heard[:2])
        kind, flags, number, payload = client.heard[2]
        self.assertEqual((FAILURE, 0, 7), (kind, flags, number))
        self.assertEqual(
            {'error': 'task', 'message': 'No', 'type': 'KeyError',
             'traceback': 'Trace'}, json.loads(payload))

    def test_what_is_no_text(self) -> None:
        client = Client()
        request(1, client).fail('task', '\udcff')
        self.assertEqual('\udcff', json.loads(client.heard[0][3])['message'])


class QueueTests(unittest.TestCase):

    def test_order(self) -> None:
        queue = Queue(3, Account(100))
        for number in range(3):
            self.assertTrue(queue.put(request(number), 1))
        self.assertEqual([0, 1, 2], [queue.take().id for _ in range(3)])
        self.assertRaises(IndexError, queue.take)

    def test_the_number(self) -> None:
        queue = Queue(2, Account(100))
        for number in range(4):
            self.assertEqual(number < 2, queue.put(request(number), 0))
        self.assertIn('queue_size', queue.refusal(0)[1])
        queue.take()
        self.assertTrue(queue.put(request(5), 0))

    def test_the_bytes(self) -> None:
        account = Account(100)
        queue = Queue(10, account)
        self.assertTrue(queue.put(request(1), 50))
        account.add(30)  # for something else
        self.assertFalse(queue.put(request(2), 21))
        word, reason = queue.refusal(21)
        self.assertEqual('busy', word)
        self.assertIn('queue_bytes', reason)
        self.assertTrue(queue.put(request(3), 20))
        self.assertEqual(70, queue.bytes)
        queue.take()
        self.assertEqual(20, queue.bytes)
        self.assertTrue(queue.put(request(4), 50))

    def test_the_end(self) -> None:
        queue = Queue(10, Account(100))
        queue.put(request(1), 0)
        queue.close()
        self.assertFalse(queue.put(request(2), 0))
        self.assertEqual('ending', queue.refusal(0)[0])
        self.assertEqual(1, queue.take().id)
