import errno
import unittest

from hypothesis import given
from hypothesis import strategies as st

from gocept.runner.channel.outgoing import Outgoing
from gocept.runner.tests.properties import steady

quick = steady(max_examples=100)


class Descriptor:
    """Takes as many bytes as it is told to, or fails."""

    def __init__(self, *answers):
        self.answers = [*answers]
        self.received = b''
        self.outgoing = Outgoing(self.send, high_water=10)

    def send(self, piece):
        answer = self.answers.pop(0) if self.answers else len(piece)
        if isinstance(answer, OSError):
            raise answer
        if not answer and piece:
            raise BlockingIOError
        self.received += bytes(piece[:answer])
        return min(answer, len(piece))


class OutgoingTests(unittest.TestCase):

    @quick
    @given(st.lists(st.binary(max_size=5), max_size=10),
           st.lists(st.integers(0, 5), max_size=30))
    def test_all_is_sent_in_order(self, pieces, answers):
        descriptor = Descriptor(*answers)
        outgoing = descriptor.outgoing
        added = b''
        for piece in pieces:
            outgoing.add(piece)
            added += piece
            self.assertEqual(len(added) - len(descriptor.received),
                             outgoing.size)
            self.assertTrue(added.startswith(descriptor.received))
        while outgoing.size:
            outgoing.send()
        self.assertEqual(added, descriptor.received)

    @quick
    @given(st.lists(st.binary(max_size=5), max_size=10),
           st.lists(st.integers(0, 5)
                    | st.just(OSError(errno.ENOSPC, 'full')), max_size=30))
    def test_an_error_loses_nothing(self, pieces, answers):
        descriptor = Descriptor(*answers)
        for piece in pieces:
            try:
                descriptor.outgoing.add(piece)
            except OSError as error:
                self.assertEqual(errno.ENOSPC, error.errno)
        descriptor.answers = []
        descriptor.outgoing.send()
        self.assertEqual(b''.join(pieces), descriptor.received)
        self.assertEqual(0, descriptor.outgoing.size)

    def test_full(self):
        descriptor = Descriptor(0, 0, 0, 0, 0)
        outgoing = descriptor.outgoing
        outgoing.add(b'a' * 10)
        self.assertFalse(outgoing.is_full())
        outgoing.add(b'b')
        self.assertTrue(outgoing.is_full())
        descriptor.answers = [1]
        self.assertFalse(outgoing.is_full())

    def test_full_while_nothing_can_be_sent(self):
        descriptor = Descriptor(0, OSError(errno.ENOSPC, 'full'),
                                BrokenPipeError())
        descriptor.outgoing.add(b'a' * 11)
        self.assertTrue(descriptor.outgoing.is_full())
        with self.assertRaises(BrokenPipeError):
            descriptor.outgoing.is_full()

    def test_forgotten(self):
        descriptor = Descriptor(0)
        descriptor.outgoing.add(b'abc')
        self.assertEqual(3, descriptor.outgoing.forget())
        self.assertEqual(0, descriptor.outgoing.forget())
        descriptor.outgoing.add(b'd')
        self.assertEqual(b'd', descriptor.received)

    def test_the_rest_of_a_large_piece_is_not_copied(self):
        sizes = []

        def send(piece):
            sizes.append(type(piece))
            return min(1000, len(piece))
        outgoing = Outgoing(send, 0)
        outgoing.add(bytes(100_000))
        while outgoing.size:
            outgoing.send()
        self.assertEqual({bytes, memoryview}, {*sizes})
        self.assertEqual([memoryview] * 99, sizes[1:])
