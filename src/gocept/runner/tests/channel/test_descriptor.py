import errno
import gc
import hashlib
import os
import pty
import resource
import select
import socket
import tempfile
import threading
import tty
import warnings

import zope.interface.verify

from gocept.runner.channel import LineChannel, PipeChannel, SocketChannel
from gocept.runner.errors import (
    DeadlineExceeded,
    EndpointClosedException,
    WriteBufferFull,
)
from gocept.runner.interfaces import (
    IChannel,
    ILineChannel,
    IPipeChannel,
    ISocketChannel,
)
from gocept.runner.poller import Poller
from gocept.runner.tests.streams import (
    Alarms,
    Peer,
    StreamTestCase,
    listening_tcp,
    read_to_end,
    wait_readable,
)
from gocept.runner.tests.support import DEADLINE, TestCase
from gocept.runner.waits.deadline import Deadline, wait_for

LOGGER = 'gocept.runner.channel'

LARGE = bytes(range(256)) * 2 ** 14  # 4 MiB: more than any system keeps


def digest(pieces):
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()


class ReadTests(StreamTestCase):
    """Of pipes; the other kinds are below."""

    # Returns a channel and the other side.
    open = StreamTestCase.open_pipes

    def test_keeps_its_contract(self):
        zope.interface.verify.verifyObject(IChannel, self.open()[0])

    def test_nothing_yet(self):
        channel, _ = self.open()
        self.assertEqual(b'', channel.read())
        self.assertEqual(b'', channel.read())

    def test_all_that_there_is(self):
        channel, peer = self.open()
        peer.send(b'abc')
        peer.send(b'\0\xff\n')
        wait_readable(channel)
        data = channel.read()
        while len(data) < 6:
            wait_readable(channel)
            data += channel.read()
        self.assertEqual(b'abc\0\xff\n', data)
        self.assertEqual(b'', channel.read())

    def test_the_end_comes_after_everything_else(self):
        channel, peer = self.open()
        thread = self.start(lambda: (peer.send(LARGE), peer.close()))
        self.assertEqual(digest([LARGE]), digest(read_to_end(channel)))
        thread.join()
        for _ in range(2):
            with self.assertRaises(EndpointClosedException):
                channel.read()

    def test_the_other_side_sends_no_more_but_reads(self):
        channel, peer = self.open()
        peer.send(b'last')
        peer.shut()
        self.assertEqual([b'last'], read_to_end(channel))
        channel.write(b'still')
        self.assertEqual(b'still', peer.receive(5))

    def test_lines(self):
        channel, peer = self.open(buffering='line')
        peer.send(b'a\nb\nc')
        wait_readable(channel)
        self.assertEqual([b'a\n', b'b\n', b''],
                         [channel.read() for _ in range(3)])
        peer.send(b'\nd')
        wait_readable(channel)
        self.assertEqual(b'c\n', channel.read())
        peer.close()
        self.assertEqual([b'd'], read_to_end(channel))

    def test_text(self):
        channel, peer = self.open(encoding='utf-8')
        text = '\xe4\u20ac\U0001f600'
        for byte in text.encode():
            peer.send(bytes([byte]))
        peer.send(b'\xff')
        peer.close()
        self.assertEqual(text + r'\xff', ''.join(read_to_end(channel)))

    def test_text_that_ends_within_a_character(self):
        for buffering in (None, 'line'):
            channel, peer = self.open(encoding='utf-8', buffering=buffering)
            peer.send('a\xe4'.encode()[:-1])
            peer.close()
            self.assertEqual(r'a\xc3', ''.join(read_to_end(channel)))

    def test_closed_with_lines_left(self):
        channel, peer = self.open(buffering='line')
        peer.send(b'a\nb\nc')
        wait_readable(channel)
        self.assertEqual(b'a\n', channel.read())
        channel.close()
        self.assertEqual([b'b\n', b'c'], read_to_end(channel))
        with self.assertRaises(EndpointClosedException):
            channel.read()

    def test_signals_do_not_disturb(self):
        channel, peer = self.open()
        self.start(lambda: (peer.send(LARGE), peer.close()))
        with Alarms() as alarms:
            self.assertEqual(digest([LARGE]), digest(read_to_end(channel)))
            while not alarms.count:
                pass


class WriteTests(StreamTestCase):

    open = StreamTestCase.open_pipes

    def test_chunks(self):
        channel, peer = self.open()
        channel.write(b'a', bytearray(b'b'), memoryview(b'c'))
        channel.write()
        channel.write(b'')
        channel.write(b'd')
        self.assertEqual(b'abcd', peer.receive(4))
        self.assertEqual(0, channel.kept)

    def test_what_is_no_bytes(self):
        channel, _ = self.open()
        for data in ('a', 1, None, [1]):
            with self.assertRaises(TypeError):
                channel.write(data)
        self.assertEqual(0, channel.kept)

    def test_text(self):
        channel, peer = self.open(encoding='utf-16')
        channel.write('a\xe4', b'\0\n')
        channel.write('\n')
        channel.write_eof()
        self.assertEqual('a\xe4'.encode('utf-16') + b'\0\n'
                         + '\n'.encode('utf-16')[2:], peer.receive_all())

    def test_text_that_cannot_be_encoded(self):
        channel, peer = self.open(encoding='utf-16')
        with self.assertRaises(UnicodeEncodeError):
            channel.write('a', '\ud800')
        channel.write('b')
        channel.write_eof()
        self.assertEqual('b'.encode('utf-16'), peer.receive_all())

    def test_a_slow_reader_gets_everything(self):
        channel, peer = self.open(high_water=len(LARGE))
        seen = []
        thread = self.start(
            lambda: seen.append(digest(peer.pieces(size=4093))))
        for start in range(0, len(LARGE), 10_007):
            channel.write(LARGE[start:start + 10_007])
        channel.flush(DEADLINE)
        self.assertEqual(0, channel.kept)
        channel.write_eof()
        thread.join(DEADLINE)
        self.assertEqual([digest([LARGE])], seen)

    def test_never_waits(self):
        channel, peer = self.open(high_water=1000)
        channel.write(LARGE)  # begins below
        self.assertGreater(channel.kept, 1000)
        for _ in range(2):
            with self.assertRaisesRegex(WriteBufferFull, r'\d+ bytes'):
                channel.write(b'not this')
        self.start(peer.receive, len(LARGE))
        channel.flush(DEADLINE)
        channel.write(b'end')

    def test_nothing_of_what_is_refused_is_sent(self):
        channel, peer = self.open(high_water=0, encoding='utf-16')
        channel.write(LARGE)
        with self.assertRaises(WriteBufferFull):
            channel.write('no')
        seen = []
        thread = self.start(lambda: seen.append(peer.receive_all()))
        channel.flush(DEADLINE)
        channel.write('yes')
        channel.write_eof()
        channel.flush(DEADLINE)
        thread.join(DEADLINE)
        self.assertEqual(LARGE + 'yes'.encode('utf-16'), seen[0])

    def test_kept_bytes_go_with_later_calls(self):
        for call in (lambda: channel.read(), lambda: channel.write(b'x')):
            channel, peer = self.open(high_water=2 * len(LARGE))
            channel.write(LARGE)
            received = []
            thread = self.start(lambda: received.extend(peer.pieces()))
            while channel.kept:
                if not wait_for(channel.sink_fd, select.POLLOUT,
                                Deadline(DEADLINE)):
                    self.fail('It takes no more.')
                call()
            channel.write_eof()
            thread.join(DEADLINE)
            self.assertEqual(LARGE, b''.join(received).rstrip(b'x'))

    def test_the_caller_changes_his_buffer(self):
        channel, peer = self.open(high_water=len(LARGE))
        data = bytearray(LARGE)
        channel.write(data)
        data[:] = bytes(len(data))
        channel.write(memoryview(data)[:1])
        self.start(channel.flush, DEADLINE)
        self.assertEqual(digest([LARGE, b'\0']),
                         digest([peer.receive(len(LARGE) + 1)]))

    def test_flush_has_a_deadline(self):
        channel, peer = self.open()
        channel.write(LARGE)
        for timeout in (0, 0.01):
            with self.assertRaisesRegex(DeadlineExceeded,
                                        rf'\d+ bytes .* {timeout} s'):
                channel.flush(timeout)
        self.assertGreater(channel.kept, 0)
        self.start(channel.flush)
        self.assertEqual(digest([LARGE]), digest([peer.receive(len(LARGE))]))

    def test_flush_of_nothing(self):
        channel, _ = self.open()
        channel.flush(0)

    def test_signals_do_not_end_flush(self):
        channel, peer = self.open()
        with Alarms() as alarms:
            channel.write(LARGE)

            def read_after_a_signal():
                while not alarms.count:
                    pass
                for piece in peer.pieces(size=1021):
                    received.append(piece)
            received = []
            thread = self.start(read_after_a_signal)
            channel.flush(DEADLINE)
            channel.write_eof()
            thread.join(DEADLINE)
        self.assertEqual(digest([LARGE]), digest(received))

    def test_the_other_side_is_gone(self):
        channel, peer = self.open()
        peer.close()
        self.run_until_dead(lambda: channel.write(b'x'), channel.sink_fd)
        with self.assertRaises(EndpointClosedException):
            channel.write(b'x')
        self.assertEqual(0, channel.kept)

    def test_the_other_side_goes_with_bytes_kept(self):
        for call in (lambda: channel.write(b'x'),
                     lambda: channel.flush(DEADLINE),
                     lambda: channel.write_eof()):
            channel, peer = self.open(high_water=len(LARGE))
            channel.write(LARGE)
            peer.close()
            with self.assertRaisesRegex(EndpointClosedException,
                                        r'\d+ bytes could not be sent'):
                call()
            self.assertEqual(0, channel.kept)

    def test_read_says_what_was_lost(self):
        channel, peer = self.open()
        channel.write(LARGE)
        peer.close()
        with self.assertLogs(LOGGER, 'WARNING') as logs:
            self.assertEqual([], read_to_end(channel))
        self.assertEqual(1, len(logs.output))
        self.assertRegex(logs.output[0], r'\d+ bytes could not be sent')

    def test_the_end_is_written_after_everything_else(self):
        channel, peer = self.open()
        channel.write(LARGE)
        channel.write_eof()
        with self.assertRaisesRegex(EndpointClosedException, 'write_eof'):
            channel.write(b'x')
        self.start(channel.flush, DEADLINE)
        self.assertEqual(digest([LARGE]), digest(peer.pieces()))
        peer.send(b'reply')
        wait_readable(channel)
        self.assertEqual(b'reply', channel.read())

    def test_the_end_is_written_once(self):
        channel, peer = self.open()
        channel.write_eof()
        self.assertEqual(b'', peer.receive(1))
        channel.write_eof()
        channel.flush(0)
        self.assertEqual(b'', channel.read())

    def test_two_threads_write(self):
        channel, peer = self.open(high_water=10 ** 9)

        def write(letter):
            for number in range(2000):
                channel.write(b'%c%06d' % (letter, number) * 10, b'\n')
        threads = [self.start(write, letter) for letter in b'ab']
        self.start(lambda: (
            [thread.join(DEADLINE) for thread in threads],
            channel.flush(DEADLINE), channel.write_eof()))
        lines = peer.receive_all().splitlines()
        self.assertEqual(4000, len(lines))
        for letter in b'ab':
            self.assertEqual(
                [b'%c%06d' % (letter, number) * 10 for number in range(2000)],
                [line for line in lines if line[0] == letter])


class CloseTests(StreamTestCase):

    open = StreamTestCase.open_pipes

    def test_closed(self):
        channel, peer = self.open()
        self.assertEqual(channel.get_fd(), channel.fileno())
        self.assertFalse(channel.closed)
        channel.close()
        self.assertTrue(channel.closed)
        self.assertEqual(-1, channel.fileno())
        self.assertIn('closed', repr(channel))
        for call in (channel.read, channel.flush, channel.get_fd,
                     channel.write_eof, lambda: channel.write(b'x'),
                     lambda: channel.read_until(b'x')):
            with self.assertRaises(EndpointClosedException):
                call()
        self.assertEqual(b'', peer.receive(1))

    def test_the_end_comes_once_after_what_is_kept(self):
        channel, peer = self.open()
        channel.write(LARGE)
        for _ in range(2):
            channel.write_eof()
        self.start(channel.flush, DEADLINE)
        self.assertEqual(len(LARGE), len(peer.receive_all()))
        channel.write_eof()
        channel.flush(DEADLINE)

    def test_closing_again_closes_nothing_else(self):
        channel, _ = self.open()
        channel.close()
        with tempfile.TemporaryFile() as first, \
                tempfile.TemporaryFile() as second:
            channel.close()
            del channel
            gc.collect()
            os.fstat(first.fileno())
            os.fstat(second.fileno())

    def test_what_is_kept_is_tried_once_more(self):
        channel, peer = self.open()
        channel.write(LARGE)
        peer.receive(len(LARGE) - channel.kept)
        with self.assertLogs(LOGGER, 'WARNING') as logs:
            channel.close()
        rest = peer.receive_all()
        self.assertTrue(rest)
        self.assertEqual(1, len(logs.output))
        self.assertRegex(logs.output[0], r' closed with \d+ bytes unsent')
        self.assertEqual(0, channel.kept)

    def test_closed_with_all_sent_is_silent(self):
        channel, peer = self.open()
        channel.write(b'x')
        with self.assertNoLogs():
            channel.close()
        self.assertEqual(b'x', peer.receive_all())

    def test_the_other_side_is_gone_already(self):
        channel, peer = self.open()
        channel.write(LARGE)
        peer.close()
        with self.assertLogs(LOGGER, 'WARNING') as logs:
            channel.close()
        self.assertEqual(1, len(logs.output))
        self.assertRegex(logs.output[0], r'\d+ bytes could not be sent')

    def test_dropped(self):
        channel, peer = self.open()
        shown = repr(channel)
        self.streams.remove(channel)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            del channel
        self.assertEqual([(ResourceWarning, f'unclosed {shown}')],
                         [(w.category, str(w.message)) for w in caught])
        self.assertEqual(b'', peer.receive(1))

    def test_is_a_context_manager(self):
        channel, _ = self.open()
        with channel as entered:
            self.assertIs(channel, entered)
        self.assertTrue(channel.closed)

    def test_while_others_open_and_close_files(self):
        # A descriptor that is closed by who does not own it any more is that
        # of somebody else, who notices.
        stop = threading.Event()
        failures = []

        def open_and_close():
            while not stop.is_set():
                faucet, sink = os.pipe()
                try:
                    tag = os.urandom(8)
                    os.write(sink, tag)
                    if os.read(faucet, 100) != tag:
                        failures.append('foreign bytes')
                except OSError as error:
                    failures.append(error)
                for fd in (faucet, sink):
                    try:
                        os.close(fd)
                    except OSError as error:
                        failures.append(error)
        threads = [self.start(open_and_close) for _ in range(2)]
        self.addCleanup(stop.set)
        for _ in range(200):
            channel, peer = self.open()
            peer.send(b'there')
            channel.write(b'back')
            wait_readable(channel)
            self.assertEqual(b'there', channel.read())
            self.assertEqual(b'back', peer.receive(4))
            channel.write_eof()
            closing = [threading.Thread(target=channel.close)
                       for _ in range(2)]
            for thread in closing:
                thread.start()
            peer.close()
            channel.close()
            for thread in closing:
                thread.join()
            channel.close()
            with self.assertRaises(EndpointClosedException):
                channel.read()
        stop.set()
        for thread in threads:
            thread.join()
        self.assertEqual([], failures)


class SocketpairDescriptorReadTests(ReadTests):
    """One descriptor, read from and written to."""

    def open(self, **options):
        ours, theirs = (sock.detach() for sock in socket.socketpair())
        return self.opened(PipeChannel(ours, ours, **options),
                           Peer(theirs, theirs))


class SocketpairDescriptorWriteTests(WriteTests):
    open = SocketpairDescriptorReadTests.open


class SocketpairDescriptorCloseTests(CloseTests):
    open = SocketpairDescriptorReadTests.open


class UnixSocketReadTests(ReadTests):
    open = StreamTestCase.open_sockets


class UnixSocketWriteTests(WriteTests):
    open = StreamTestCase.open_sockets


class UnixSocketCloseTests(CloseTests):
    open = StreamTestCase.open_sockets


class TCPReadTests(ReadTests):
    open = StreamTestCase.open_tcp


class TCPWriteTests(WriteTests):
    open = StreamTestCase.open_tcp


class TCPCloseTests(CloseTests):
    open = StreamTestCase.open_tcp


class IPv6ReadTests(ReadTests):

    def open(self, **options):
        return self.open_tcp('::1', **options)


class PipeChannelTests(StreamTestCase):

    def test_keeps_its_contract(self):
        channel, _ = self.open_pipes()
        zope.interface.verify.verifyObject(IPipeChannel, channel)

    def test_shows_its_descriptors_and_what_it_belongs_to(self):
        channel, _ = self.open_pipes()
        self.assertEqual(
            f'<PipeChannel: {channel.get_fd()}, {channel.sink_fd}>',
            repr(channel))
        channel.name = 'worker'
        channel.close()
        self.assertEqual('<PipeChannel of worker: closed>', repr(channel))

    def test_only_to_read_from(self):
        faucet, sink = os.pipe()
        with PipeChannel(faucet) as channel, open(sink, 'wb') as file:
            for call in (lambda: channel.write(b'x'), channel.write_eof):
                with self.assertRaisesRegex(NotImplementedError,
                                            'nothing to write to'):
                    call()
            channel.flush()
            file.write(b'x')
            file.close()
            self.assertEqual([b'x'], read_to_end(channel))

    def test_only_to_write_to(self):
        faucet, sink = os.pipe()
        with PipeChannel(sink=sink) as channel, open(faucet, 'rb') as file:
            for call in (channel.read, channel.get_fd, channel.fileno):
                with self.assertRaisesRegex(NotImplementedError,
                                            'nothing to read from'):
                    call()
            channel.write(b'x')
            channel.write_eof()
            channel.write_eof()
            self.assertEqual(b'x', file.read())

    def test_what_is_no_descriptor(self):
        faucet, sink = os.pipe()
        os.close(sink)
        with self.assertRaises(OSError):
            PipeChannel(faucet, sink)
        self.assertTrue(os.get_blocking(faucet))
        os.close(faucet)  # it is still the caller's

    def test_wrong_options(self):
        faucet, sink = os.pipe()
        for options in ({'buffering': 'lines'}, {'limit': 0, 'buffering':
                        'line'}, {'encoding': 'utf-99'}, {'colour': 'red'}):
            with self.assertRaises((ValueError, LookupError, TypeError)):
                PipeChannel(faucet, sink, **options)
        gc.collect()
        os.close(faucet)
        os.close(sink)

    def test_reads_on_without_blocking_after_the_end_of_writing(self):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            channel = PipeChannel(os.dup(ours.fileno()),
                                  os.dup(ours.fileno()))
            with channel:
                channel.write_eof()
                self.assertEqual(b'', channel.read())
                self.assertFalse(os.get_blocking(ours.fileno()))
            self.assertTrue(os.get_blocking(ours.fileno()))

    def test_text_needs_an_encoding(self):
        channel, _ = self.open_pipes()
        with self.assertRaisesRegex(TypeError, 'without an encoding'):
            channel.write('text')
        self.assertEqual(0, channel.kept)

    def test_the_blocking_mode_is_put_back(self):
        faucet, sink = os.pipe()
        copies = os.dup(faucet), os.dup(sink)
        for closes in (PipeChannel.close, PipeChannel.write_eof):
            with PipeChannel(os.dup(faucet), os.dup(sink)) as channel:
                self.assertEqual([False] * 2, [*map(os.get_blocking, copies)])
                closes(channel)
                self.assertTrue(os.get_blocking(copies[1]))
            self.assertEqual([True] * 2, [*map(os.get_blocking, copies)])
        for fd in (faucet, sink, *copies):
            os.close(fd)

    def test_what_did_not_block_does_not_block_afterwards(self):
        faucet, sink = os.pipe()
        os.set_blocking(faucet, False)
        with PipeChannel(os.dup(faucet), os.dup(sink)):
            pass
        self.assertEqual([False, True], [*map(os.get_blocking,
                                              (faucet, sink))])
        os.close(faucet)
        os.close(sink)

    def test_one_that_somebody_else_closed(self):
        channel, peer = self.open_pipes()
        fd = channel.get_fd()
        os.close(fd)
        with self.assertRaises(EndpointClosedException):
            channel.read()
        channel.close()
        self.assertTrue(channel.closed)
        self.assertEqual(b'', peer.receive(1))  # the other one is closed

    def test_a_regular_file(self):
        with tempfile.TemporaryFile() as file:
            file.write(LARGE)
            file.seek(0)
            with PipeChannel(os.dup(file.fileno())) as channel:
                self.assertEqual(digest([LARGE]),
                                 digest(read_to_end(channel)))

    def test_a_named_pipe_ends_once_for_each_writer(self):
        # The end stays where it is, though another writer comes.
        with tempfile.TemporaryDirectory() as directory:
            path = f'{directory}/pipe'
            os.mkfifo(path)
            channel = PipeChannel(os.open(path, os.O_RDONLY | os.O_NONBLOCK),
                                  buffering='line')
            with channel:
                with open(path, 'wb') as file:
                    file.write(b'a\nb')
                self.assertEqual(b'a\n', channel.read())
                self.assertEqual(b'b', channel.read())
                with open(path, 'wb') as file:
                    file.write(b'c\n')
                    file.flush()
                    with self.assertRaises(EndpointClosedException):
                        channel.read()
                    self.assertEqual(b'c\n', channel.read())


class LostTests(StreamTestCase):
    """Somebody else has closed a descriptor by its number."""

    def make(self, kind):
        """A channel that writes, and the other side."""
        if kind is PipeChannel:
            theirs, sink = os.pipe()
            channel = PipeChannel(sink=sink)
            peer = Peer(theirs, theirs)
        else:
            ours, other = socket.socketpair()
            channel = SocketChannel(ours)
            fd = other.detach()
            peer = Peer(fd, fd)
        self.addCleanup(peer.close)
        return channel, peer

    def each(self):
        for kind in PipeChannel, SocketChannel:
            with self.subTest(kind.__name__):
                yield self.make(kind)

    def assert_unwritable(self, channel):
        for call in (lambda: channel.write(b'x'), lambda: channel.write(b'y'),
                     lambda: channel.write_accepted(b'z'),
                     channel.check_sink, channel.write_eof):
            with self.assertRaises(EndpointClosedException):
                call()
            self.assertEqual(0, channel.kept)

    def test_write_tells_the_end_and_keeps_nothing(self):
        for channel, _ in self.each():
            os.close(channel.sink_fd)
            with self.assertRaisesRegex(EndpointClosedException,
                                        'closed its .*; 3 bytes could not'):
                channel.write(b'abc')
            self.assert_unwritable(channel)
            with warnings.catch_warnings(), self.assertNoLogs(LOGGER):
                warnings.simplefilter('error')
                channel.close()

    def test_what_was_kept_before(self):
        for channel, _ in self.each():
            channel.write(LARGE)
            self.assertTrue(channel.kept)
            os.close(channel.sink_fd)
            with self.assertLogs(LOGGER, 'WARNING') as logs:
                self.assertFalse(channel.send_kept())
            self.assertIn('could not be sent', logs.output[0])
            self.assertEqual(0, channel.kept)
            channel.close()

    def test_a_number_that_is_another_file_now(self):
        for channel, _ in self.each():
            fd = channel.sink_fd
            with tempfile.TemporaryFile() as file:
                os.dup2(file.fileno(), fd)
                self.addCleanup(os.close, fd)
                self.assert_unwritable(channel)
                channel.close()
                self.assertEqual(os.fstat(file.fileno()), os.fstat(fd))
                self.assertEqual(0, os.fstat(fd).st_size)

    def test_no_finalizer_complains(self):
        for is_reused in False, True:
            for channel, _ in self.each():
                fd = channel.sink_fd
                if is_reused:
                    with tempfile.TemporaryFile() as file:
                        os.dup2(file.fileno(), fd)
                        self.addCleanup(os.close, fd)
                else:
                    os.close(fd)
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter('always')
                    del channel
                    gc.collect()
                self.assertEqual([], caught)
                if is_reused:
                    os.fstat(fd)  # it is still open

    def test_a_socket_that_was_closed(self):
        ours, theirs = socket.socketpair()
        with theirs:
            channel = SocketChannel(ours)
            ours.close()
            self.assert_unwritable(channel)
            with self.assertRaises(EndpointClosedException):
                channel.read()
            channel.close()

    def test_a_number_that_is_another_channel_now(self):
        for channel, _ in self.each():
            fd = channel.sink_fd
            faucet, sink = os.pipe()
            with Poller() as poller:
                if channel.is_readable:
                    poller.register(channel)
                os.dup2(faucet, fd, inheritable=False)
                os.close(faucet)
                with PipeChannel(fd, sink) as other:
                    poller.register(other)
                    other.write(b'for the other')
                    with self.assertRaises(EndpointClosedException):
                        channel.write(b'x')
                    if channel.is_readable:
                        with self.assertRaises(EndpointClosedException):
                            channel.read()
                    self.assertEqual([(b'for the other', other)],
                                     poller.poll(DEADLINE))
                    channel.close()
                    os.fstat(fd)

    def test_one_that_is_polled_then(self):
        # There is only the end.
        channel, _ = self.open_sockets()
        fd = channel.get_fd()
        with tempfile.TemporaryFile() as file:
            file.write(b'of somebody else')
            file.seek(0)
            os.dup2(file.fileno(), fd)
            self.addCleanup(os.close, fd)
            with Poller() as poller:
                poller.register(channel)
                self.assertEqual(-1, channel.fileno())
                self.assertEqual([(b'', channel)], poller.poll(0))
            self.assertEqual(0, os.lseek(fd, 0, os.SEEK_CUR))

    def test_one_of_two(self):
        channel, peer = self.open_pipes()
        os.close(channel.sink_fd)
        peer.send(b'still there')
        self.assertEqual(b'still there', channel.read())
        self.assert_unwritable(channel)
        self.assertEqual(b'', channel.read())


class FullDiskTests(StreamTestCase):

    def test_a_full_device(self):
        fd = os.open('/dev/full', os.O_WRONLY)
        with PipeChannel(sink=fd) as channel:
            for number in (1, 2):
                with self.assertRaises(OSError) as caught:
                    channel.write(b'abc')
                self.assertEqual(errno.ENOSPC, caught.exception.errno)
                self.assertEqual(3 * number, channel.kept)
            with self.assertRaises(OSError):
                channel.flush(DEADLINE)
            with self.assertLogs(LOGGER, 'WARNING'):
                self.assertFalse(channel.send_kept())
            self.assertEqual(6, channel.kept)

    def test_a_disk_that_has_room_again(self):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
        file = self.enterContext(tempfile.TemporaryFile())
        with PipeChannel(sink=os.dup(file.fileno())) as channel:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
            with self.assertRaises(OSError):
                channel.write(b'abc')
            self.assertEqual(3, channel.kept)
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            channel.write(b'd')
            channel.write_eof()
        file.seek(0)
        self.assertEqual(b'abcd', file.read())

    def test_full_and_above_the_mark(self):
        with PipeChannel(sink=os.open('/dev/full', os.O_WRONLY),
                         high_water=2) as channel:
            with self.assertRaises(OSError):
                channel.write(b'abc')
            with self.assertRaises(WriteBufferFull):
                channel.write(b'abc')
            self.assertEqual(3, channel.kept)
            with self.assertLogs(LOGGER, 'WARNING') as logs:
                channel.close()
        self.assertIn('No space left on device', logs.output[0])
        self.assertIn('closed with 3 bytes unsent', logs.output[1])

    def test_a_file_that_becomes_too_large(self):
        # Some of a chunk can be written, but not all.
        with tempfile.TemporaryFile() as file:
            with PipeChannel(sink=os.dup(file.fileno())) as channel:
                before = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (5, before[1]))
                try:
                    channel.write(b'abc')
                    channel.write(b'defgh')
                    self.assertEqual(3, channel.kept)
                    with self.assertRaises(OSError) as caught:
                        channel.write(b'i')
                    self.assertEqual(errno.EFBIG, caught.exception.errno)
                    self.assertEqual(4, channel.kept)
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, before)
                channel.flush(0)
            file.seek(0)
            self.assertEqual(b'abcdefghi', file.read())


class TerminalTests(StreamTestCase):

    def test_in_both_directions(self):
        channel, peer = self.open_pty()
        channel.write(b'there')
        self.assertEqual(b'there', peer.receive(5))
        peer.send(b'back')
        wait_readable(channel)
        self.assertEqual(b'back', channel.read())

    def test_a_slow_reader_gets_everything(self):
        channel, peer = self.open_pty()
        seen = []
        thread = self.start(lambda: seen.append(
            hashlib.sha256(peer.receive(500_000)).hexdigest()))
        channel.write(LARGE[:500_000])
        channel.flush(DEADLINE)
        thread.join(DEADLINE)
        self.assertEqual([digest([LARGE[:500_000]])], seen)

    def test_the_other_side_closes_it(self):
        channel, peer = self.open_pty()
        peer.send(b'last')
        peer.close()
        self.assertEqual([b'last'], read_to_end(channel))
        with self.assertRaises(EndpointClosedException) as caught:
            channel.read()
        self.assertEqual(errno.EIO, caught.exception.__cause__.errno)

    def open_slave(self):
        master, slave = pty.openpty()
        tty.setraw(slave)
        return self.opened(PipeChannel(slave, slave), Peer(master, master))

    def test_it_is_hung_up(self):
        channel, peer = self.open_slave()
        channel.write(b'x')
        peer.close()
        with self.assertRaises(EndpointClosedException):
            channel.write(b'x')
        with self.assertRaises(EndpointClosedException):
            channel.read()

    def test_it_is_hung_up_with_bytes_kept(self):
        channel, peer = self.open_slave()
        channel.write(LARGE)
        self.assertTrue(channel.kept)
        peer.close()
        with self.assertRaises(EndpointClosedException):
            channel.flush(DEADLINE)
        self.assertEqual(0, channel.kept)

    def test_the_end_that_is_typed(self):
        # The system says it once: control and D.
        master, slave = pty.openpty()
        channel = PipeChannel(slave, buffering='line')
        self.opened(channel, Peer(master, master))
        os.write(master, b'a\nb\x04\x04')
        wait_readable(channel)
        self.assertEqual(b'a\n', channel.read())
        self.assertEqual(b'b', channel.read())
        with self.assertRaises(EndpointClosedException):
            channel.read()

    def test_the_end_cannot_be_written_to_it(self):
        channel, peer = self.open_pty()
        channel.write_eof()
        with self.assertRaises(EndpointClosedException):
            channel.write(b'x')
        peer.send(b'still there')
        wait_readable(channel)
        self.assertEqual(b'still there', channel.read())

    def test_the_blocking_mode_is_put_back(self):
        channel, _ = self.open_slave()
        copy = os.dup(channel.get_fd())
        self.assertFalse(os.get_blocking(copy))
        channel.close()
        self.assertTrue(os.get_blocking(copy))
        os.close(copy)


class SocketChannelTests(StreamTestCase):

    def test_keeps_its_contract(self):
        channel, _ = self.open_sockets()
        zope.interface.verify.verifyObject(ISocketChannel, channel)

    def test_a_reset_connection(self):
        channel, peer = self.open_tcp(buffering='line')
        peer.send(b'a\nlast')
        wait_readable(channel)
        peer.reset()
        self.assertEqual([b'a\n', b'last'], read_to_end(channel))
        with self.assertRaises(EndpointClosedException):
            channel.read()
        with self.assertRaises(EndpointClosedException):
            channel.write(b'x')

    def test_a_reset_connection_with_nothing_to_read(self):
        channel, peer = self.open_tcp()
        peer.reset()
        wait_readable(channel)
        with self.assertRaises(EndpointClosedException) as caught:
            channel.read()
        self.assertIsInstance(caught.exception.__cause__,
                              ConnectionResetError)

    def test_datagrams_are_no_stream(self):
        for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
            ours, theirs = socket.socketpair(type=kind)
            with ours, theirs:
                with self.assertRaisesRegex(ValueError, 'stream socket'):
                    SocketChannel(ours)
                self.assertNotEqual(-1, ours.fileno())

    def test_a_socket_that_listens(self):
        # It is no connection: as if it had ended.
        with SocketChannel(listening_tcp()) as channel:
            with self.assertRaises(EndpointClosedException):
                channel.read()

    def test_a_name_for_messages(self):
        channel, _ = self.open_sockets()
        channel.name = 'server'
        self.assertEqual(f'<SocketChannel of server: {channel.get_fd()}>',
                         repr(channel))


class LineChannelTests(StreamTestCase):

    def test_text_is_decoded_once(self):
        inner, _ = self.open_pipes(encoding='utf-8')
        with self.assertRaisesRegex(ValueError, 'leave out the encoding'):
            LineChannel(inner, encoding='utf-8')

    def test_keeps_its_contract(self):
        channel, _ = self.open_pipes()
        zope.interface.verify.verifyObject(ILineChannel, LineChannel(channel))

    def test_lines(self):
        for kind in (self.open_pipes, self.open_sockets, self.open_tcp):
            inner, peer = kind()
            channel = LineChannel(inner, limit=5)
            peer.send(b'a\nb')
            wait_readable(channel)
            self.assertEqual([b'a\n', b''], [channel.read(), channel.read()])
            peer.send(b'c\nlonger')
            peer.shut()
            self.assertEqual([b'bc\n', b'longe', b'r'], read_to_end(channel))

    def test_all_else_is_done_by_the_other_one(self):
        inner, peer = self.open_pipes()
        channel = LineChannel(inner)
        self.assertEqual(inner.get_fd(), channel.get_fd())
        self.assertEqual(inner.get_fd(), channel.fileno())
        self.assertEqual(f'<LineChannel {inner!r}>', repr(channel))
        channel.write(LARGE, b'x')
        self.assertEqual(inner.kept, channel.kept)
        with self.assertRaises(DeadlineExceeded):
            channel.flush(0)
        channel.write_eof()
        self.start(channel.flush, DEADLINE)
        self.assertEqual(len(LARGE) + 1, len(peer.receive_all()))
        with channel:
            pass
        self.assertTrue(inner.closed)
        self.assertTrue(channel.closed)
        self.assertEqual(-1, channel.fileno())

    def test_the_other_one_was_closed(self):
        inner, peer = self.open_pipes()
        channel = LineChannel(inner)
        peer.send(b'a\nb\nc')
        wait_readable(channel)
        self.assertEqual(b'a\n', channel.read())
        inner.close()
        self.assertEqual([b'b\n', b'c'], read_to_end(channel))

    def test_text(self):
        for options in ({'encoding': 'utf-8'}, {}):
            inner, peer = self.open_pipes(
                encoding=None if options else 'utf-8')
            channel = LineChannel(inner, **options)
            channel.write('\xe4', '\n')
            self.assertEqual('\xe4\n'.encode(), peer.receive(3))
            peer.send('\xe4\u20ac\nx'.encode())
            peer.close()
            self.assertEqual(['\xe4\u20ac\n', 'x'], read_to_end(channel))
            with self.assertRaises(EndpointClosedException):
                channel.read()

    def test_of_lines(self):
        inner, peer = self.open_pipes(buffering='line')
        channel = LineChannel(inner)
        peer.send(b'a\nb\n')
        wait_readable(channel)
        self.assertEqual([b'a\n', b'b\n', b''],
                         [channel.read() for _ in range(3)])


SIGPIPE_PROGRAM = '''
    import os
    import signal
    import socket

    from gocept.runner.channel import PipeChannel, SocketChannel
    from gocept.runner.errors import EndpointClosedException
    from gocept.runner.waits.deadline import Deadline, wait_for

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)

    def pipe():
        faucet, sink = os.pipe()
        return PipeChannel(sink=sink), faucet

    def unix():
        ours, theirs = socket.socketpair()
        return SocketChannel(ours), theirs.detach()

    def descriptor():
        ours, theirs = socket.socketpair()
        ours = ours.detach()
        return PipeChannel(ours, ours), theirs.detach()

    def tcp():
        with socket.create_server(('127.0.0.1', 0)) as server:
            theirs = socket.create_connection(server.getsockname())
            ours, _ = server.accept()
        return SocketChannel(ours), theirs.detach()

    def expect_end(call, *args):
        for _ in range(2):
            try:
                call(*args)
            except EndpointClosedException:
                return
            wait_for(channel.sink_fd, 0, Deadline(60))
        raise AssertionError(f'{call} went well')

    LARGE = bytes(2 ** 22)
    for make in (pipe, unix, descriptor, tcp):
        channel, peer = make()
        os.close(peer)
        expect_end(channel.write, b'x')
        expect_end(channel.write, b'x')
        channel.close()

        channel, peer = make()
        channel.write(LARGE)
        os.close(peer)
        expect_end(channel.flush, 60)
        channel.close()

        channel, peer = make()
        channel.write(LARGE)
        os.close(peer)
        channel.close()  # it tries, too

    # One that waits to be blocked no more would end the program then.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    channel, peer = pipe()
    os.close(peer)
    expect_end(channel.write, b'x')
    channel.close()
    assert not signal.sigpending(), signal.sigpending()

    # That of somebody else is left to him.
    os.kill(os.getpid(), signal.SIGPIPE)
    channel, peer = pipe()
    os.close(peer)
    expect_end(channel.write, b'x')
    channel.close()
    assert signal.sigpending() == {signal.SIGPIPE}, signal.sigpending()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPIPE})
    print('lives')
'''

FORK_PROGRAM = '''
    import os
    import threading

    from gocept.runner.channel import PipeChannel
    from gocept.runner.poller import Poller

    def held_by_another_thread(*locks):
        """Returns what has it release them."""
        held, release = threading.Event(), threading.Event()

        def hold():
            for lock in locks:
                lock.acquire()
            held.set()
            release.wait()
            for lock in locks:
                lock.release()
        threading.Thread(target=hold).start()
        held.wait()
        return release

    faucet, sink = os.pipe()
    channel = PipeChannel(sink=sink)
    channel.write(bytes(2 ** 20))
    assert channel.kept
    poller = Poller()
    poller.send_for(channel)
    release = held_by_another_thread(channel._lock, poller._lock)
    if not os.fork():
        assert not channel.kept
        poller.poll(0)
        try:
            channel.flush(0)
            channel.write(b'child')
            assert channel.kept == 5
        finally:
            os._exit(0 if channel.kept == 5 else 1)
    _, status = os.wait()
    assert status == 0, status
    release.set()
    thread = threading.Thread(
        target=lambda: (channel.flush(), channel.write_eof()))
    thread.start()
    size = 0
    while piece := os.read(faucet, 2 ** 16):
        size += len(piece)
    thread.join()
    poller.close()
    print('received', size, 2 ** 20)
'''


class ProgramTests(TestCase):

    def test_no_signal_for_a_broken_pipe(self):
        program = self.program(SIGPIPE_PROGRAM)
        self.assertEqual(0, program.end(), program.output)
        self.assertIn('lives', program.output)

    def test_a_forked_child_sends_nothing_twice(self):
        program = self.program(FORK_PROGRAM)
        self.assertEqual(0, program.end(), program.output)
        self.assertIn(f'received {2 ** 20} {2 ** 20}', program.output)
