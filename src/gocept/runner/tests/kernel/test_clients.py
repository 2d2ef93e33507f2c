"""All clients of a kernel."""

from gocept.runner.kernel.wire.frames import frame
from gocept.runner.kernel.wire.limits import Limits
from gocept.runner.tests.kernel.wire import (
    GREETING,
    SESSION,
    WireTestCase,
)


class TestClients(WireTestCase):

    limits = Limits(connections=3, traffic=4 * 2 ** 20)

    def test_they_are_counted(self) -> None:
        left = []
        self.clients.on_empty = lambda: left.append(len(self.clients))
        clients = [self.connect() for _ in range(2)]
        self.assertEqual([GREETING] * 2, [each.hear() for each in clients])
        self.assertEqual(2, len(self.clients))
        for client in clients:
            self.assertEqual([], left)
            client.close()
            self.wait(lambda: len(self.clients) < 2)
        self.wait(lambda: left)
        self.assertEqual([0], left)
        self.assertEqual(2, self.clients.arrived)

    def test_sessions_are_live_as_long_as_a_client_has_them(self) -> None:
        self.assertFalse(self.clients.is_live(SESSION))
        first, second = (self.connect_framed() for _ in range(2))
        self.assertTrue(self.clients.is_live(SESSION))
        first.close()
        self.wait(lambda: len(self.clients) == 1)
        self.assertTrue(self.clients.is_live(SESSION))
        second.close()
        self.wait(lambda: not len(self.clients))
        self.assertFalse(self.clients.is_live(SESSION))

    def test_too_many_are_told(self) -> None:
        clients = [self.connect() for _ in range(4)]
        with self.assertLogs('gocept.runner.kernel', 'WARNING'):
            answer = clients[3].hear_all()
        self.assertRegex(answer, b'^Error: there are 3 clients already: .*'
                                 b'--limit connections=6\n$')
        clients[0].close()
        self.wait(lambda: len(self.clients) == 2)
        self.assertEqual(GREETING, self.connect().hear())

    def test_many_who_connect_at_once_are_served(self) -> None:
        self.clients.limits = Limits()
        clients = [self.connect() for _ in range(90)]  # the queue takes 100
        for client in clients:
            self.assertEqual(GREETING, client.hear())
            client.close()
        self.wait(lambda: not len(self.clients))

    def test_who_is_stuck_longest_is_cut_off(self) -> None:
        self.operations.values['a'] = 'x' * 2 ** 20
        hoarders = [self.connect_framed() for _ in range(2)]
        for client in hoarders:
            self.poller.unregister(client.channel)
            for _ in range(3):
                client.send_frame('get', {'name': 'a'})
            self.idle()
        other = self.connect_framed()
        with self.assertLogs('gocept.runner.kernel', 'WARNING') as logs:
            other.say(frame(1, ('echo', {}), b'x' * 2 ** 20)[:-1])
            self.poller.send_for(other.channel)
            self.wait(lambda: len(self.clients) == 2)
        self.assertIn('more than the limit of 4194304', logs.output[0])
        other.say(b'x')
        self.assertEqual(b'x' * 2 ** 20, other.hear_frames(1)[0].data)
        self.poller.register(hoarders[1].channel)
        self.assertEqual(3, len(hoarders[1].hear_frames(3)))
        self.assertEqual(0, self.clients.traffic)

    def test_all_can_be_closed(self) -> None:
        clients = [self.connect() for _ in range(2)]
        for client in clients:
            client.hear()
        self.clients.close()
        self.assertEqual([b'', b''], [each.hear_all() for each in clients])

    def test_who_is_in_stays_when_nobody_else_comes(self) -> None:
        client = self.connect()
        client.hear()
        self.listener.close()
        self.assertEqual(b'> ', client.ask(b'\n'))
        with self.assertRaises(ConnectionRefusedError):
            self.connect()

    def test_a_mistake_costs_one_client(self) -> None:
        def fail(sock: object) -> str:
            raise ZeroDivisionError('a mistake')

        refusal, self.peers.refusal = self.peers.refusal, fail
        with self.assertLogs('gocept.runner.kernel', 'ERROR'):
            self.assertEqual(b'', self.connect().hear_all())
        self.peers.refusal = refusal
        self.assertEqual(GREETING, self.connect().hear())
