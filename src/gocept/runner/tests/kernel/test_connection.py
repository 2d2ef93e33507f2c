"""The kernel's side of one client."""

import itertools
import socket
import unittest

from hypothesis import given
from hypothesis import strategies as st

from gocept.runner.errors import KernelError
from gocept.runner.kernel.wire import frames, text
from gocept.runner.kernel.wire.frames import HEADER, Frame, OutRecord
from gocept.runner.kernel.wire.limits import Limits
from gocept.runner.tests.kernel.wire import (
    GREETING,
    SESSION,
    FakeWatch,
    WireTestCase,
)
from gocept.runner.tests.properties import steady

LIFE = 'a' * 16


def out(data: bytes, offset: int = 0) -> OutRecord:
    return OutRecord('web', LIFE, 'out', 1700000000.25, data, None, offset)


def closed(status: int | None = 0) -> OutRecord:
    return OutRecord('web', LIFE, 'closed', 1700000001.5, b'', status, 9)


class TestText(WireTestCase):

    def test_it_greets_and_prompts(self) -> None:
        client = self.connect()
        self.assertEqual(GREETING, client.hear())
        for line in (b'\n', b'\r\n', b'  \t \n'):
            self.assertEqual(b'> ', client.ask(line))

    def test_commands_are_answered_in_order(self) -> None:
        client = self.connect()
        client.hear()
        self.assertEqual(b'\n> ', client.ask(b'set a 1 2\r\n'))
        self.assertEqual(b'1 2\n> ', client.ask(b'g a\n'))
        client.say(b'set b 2\nget b\n\nget c\nl v\n')
        self.assertEqual(
            [b'\n> ', b'2\n> ', b'> ', b'\n> ', b'a 1 2\nb 2\n> '],
            [client.hear() for _ in range(5)])

    def test_a_command_may_arrive_byte_by_byte(self) -> None:
        client = self.connect()
        client.hear()
        self.feed(client, (bytes([byte]) for byte in b'set a xyz\nget a\n'))
        self.assertEqual(b'\n> xyz\n> ', client.hear() + client.hear())

    def test_many_commands_arrive_at_once(self) -> None:
        client = self.connect()
        client.hear()
        client.say(b'\n' * 10_000 + b'quit\n')
        self.assertEqual(b'> ' * 10_000 + b'ok\n', client.hear_all())

    def test_bytes_that_are_no_text_pass(self) -> None:
        client = self.connect()
        client.hear()
        client.ask(b'set a \xff\xfe\xc3\xa4\n')
        self.assertEqual(b'\xff\xfe\xc3\xa4\n> ', client.ask(b'get a\n'))

    def test_strange_surrogates_do_no_harm(self) -> None:
        client = self.connect()
        client.hear()
        self.operations.values['a'] = '\ud800'
        self.assertEqual(b'\\ud800\n> ', client.ask(b'get a\n'))

    def test_errors_are_one_line(self) -> None:
        client = self.connect()
        client.hear()
        self.assertEqual(b'Error: there is no such socket\n> ',
                         client.ask(b'r s x\n'))
        self.assertEqual(b"Error: there is no command 'nonsense': \"help\" "
                         b'shows all of them\n> ', client.ask(b'nonsense\n'))

    def test_a_mistake_of_ours_is_logged_and_told(self) -> None:
        client = self.connect()
        client.hear()
        with self.assertLogs('gocept.runner.kernel', 'ERROR') as logs:
            answer = client.ask(b'r v x\n')
        self.assertEqual(b'Error: ZeroDivisionError: a mistake\n> ', answer)
        self.assertIn('remove-values', logs.output[0])
        self.assertIn('Traceback', logs.output[0])

    def test_a_value_with_line_breaks_is_refused(self) -> None:
        self.operations.values['a'] = 'x\n> y'
        client = self.connect()
        client.hear()
        self.assertRegex(client.ask(b'get a\n'),
                         b"^Error: the value 'a' has line breaks, .*\n> $")
        self.assertEqual(b'a x > y\n> ', client.ask(b'l v\n', b'\n> '))

    def test_quit_closes(self) -> None:
        client = self.connect()
        client.hear()
        client.say(b'q\nget a\n')
        self.assertEqual(b'ok\n', client.hear_all())
        self.assertEqual(0, len(self.clients))

    def test_exit_if_idle_closes_if_it_is_so(self) -> None:
        client = self.connect()
        client.hear()
        for idle, answer in ((False, b'not idle\n> '),
                             (True, b'Exiting papa!\n> ')):
            client.say(b'exit-if-idle\n')
            self.wait(lambda: self.operations.requests)
            self.operations.requests.pop().answer(idle)
            self.assertEqual(answer, client.hear())
        self.assertEqual(b'', client.hear_all())

    def test_a_client_that_sends_no_more_gets_its_answers(self) -> None:
        client = self.connect()
        client.say(b'set a 1\nl p\nget a\nget')
        client.shut()
        self.wait(lambda: self.operations.requests)
        self.idle()
        self.assertEqual(1, len(self.clients))
        self.operations.requests.pop().answer({})
        self.assertEqual(GREETING + b'\n> \n> 1\n> ', client.hear_all())
        self.wait(lambda: not len(self.clients))

    def test_it_gets_many_answers(self) -> None:
        client = self.connect()
        client.say(b'\n' * 10_000)
        client.shut()
        self.assertEqual(GREETING + b'> ' * 10_000, client.hear_all())

    def test_what_looks_like_http_closes(self) -> None:
        for line in (b'GET / HTTP/1.1', b'POST /x?y=z HTTP/1.0',
                     b'set /a HTTP/1.1', b'\x16\x03\x01\x02\0\x01'):
            client = self.connect()
            client.hear()
            client.say(line + b'\r\nset a 1\r\n\r\nset b 2\n')
            self.assertEqual(b'Error: this is no web server\n',
                             client.hear_all())
        self.assertEqual({}, self.operations.values)

    def test_only_the_first_line_may_not_look_like_http(self) -> None:
        client = self.connect()
        client.hear()
        client.ask(b'\n')
        client.ask(b'set a HTTP/1.1\n')
        self.assertEqual(b'HTTP/1.1\n> ', client.ask(b'get a\n'))

    def test_a_later_command_waits_for_the_one_before(self) -> None:
        client = self.connect()
        client.hear()
        client.say(b'm p web /bin/true\nget a\n')
        self.wait(lambda: self.operations.requests)
        self.idle()
        self.assertEqual(b'', client.data)
        self.operations.requests.pop().answer({'pid': 1})
        self.assertEqual(b'web pid=1\n> \n> ', client.hear() + client.hear())

    def test_a_mistake_costs_one_connection(self) -> None:
        client, other = self.connect(), self.connect()
        client.hear()
        connection = next(iter(self.clients._connections))
        connection.conversation = None  # type: ignore
        with self.assertLogs('gocept.runner.kernel', 'ERROR'):
            client.say(b'\n')
            self.assertEqual(b'', client.hear_all())
        other.hear()
        self.assertEqual(b'> ', other.ask(b'\n'))

    def test_so_does_one_while_something_is_sent_late(self) -> None:
        self.operations.values['a'] = 'x' * 2 ** 20
        client, other = self.connect_framed(), self.connect()
        connection = next(iter(self.clients._connections))
        self.poller.unregister(client.channel)
        client.send_frame('get', {'name': 'a'})
        self.wait(lambda: connection.unsent)
        connection._outgoing[0] = None  # type: ignore
        with self.assertLogs('gocept.runner.kernel', 'ERROR') as logs:
            self.poller.register(client.channel)
            self.wait(lambda: connection.closed)
        self.assertIn('is closed, as it failed', logs.output[0])
        other.hear()
        self.assertEqual(b'> ', other.ask(b'\n'))

    def test_two_answers_are_a_mistake(self) -> None:
        client = self.connect()
        client.hear()
        client.say(b'l p\n')
        self.wait(lambda: self.operations.requests)
        request, = self.operations.requests
        request.answer({})
        for again in (request.answer, lambda: request.fail('x')):
            with self.assertRaisesRegex(RuntimeError, 'list-processes'):
                again()

    def test_an_answer_for_a_client_that_is_gone_goes_nowhere(self) -> None:
        client = self.connect()
        client.hear()
        client.say(b'l p\n')
        self.wait(lambda: self.operations.requests)
        client.close()
        self.idle()
        self.operations.requests.pop().answer({})
        self.wait(lambda: not len(self.clients))


class TestTextWatch(WireTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.client = self.connect()
        self.client.hear()

    def watch(self) -> None:
        self.assertEqual(b'Watching 2\n',
                         self.client.ask(b'w p a b\n', b'\n'))
        self.fake = self.operations.watches[-1]

    def test_a_batch_waits_for_a_line(self) -> None:
        self.watch()
        self.assertTrue(self.fake.connection.takes_output)
        self.fake.send(out(b'one\ntwo'), closed(-9), closed(None))
        self.assertFalse(self.fake.connection.takes_output)
        self.assertEqual(
            b'out:web:1700000000.25:7\none\ntwo\n'
            b'closed:web:1700000001.5:-9\n'
            b'closed:web:1700000001.5:127\n] ',
            self.client.hear(b'] ').replace(b'\r', b''))
        self.idle()
        self.assertEqual([], self.fake.told)
        self.client.say(b'-\n')
        self.wait(lambda: self.fake.told)
        self.assertEqual([('acknowledge', None)], self.fake.told)
        self.assertTrue(self.fake.connection.takes_output)

    def test_q_ends_it(self) -> None:
        for _ in range(2):
            self.watch()
            self.fake.send(out(b'one'))
            self.client.hear(b'] ')
            self.assertEqual(b'Stopped watching\n> ', self.client.ask(b'Q\n'))
            self.assertEqual([('stop', None)], self.fake.told)
        self.assertEqual(b'\n> ', self.client.ask(b'get a\n'))

    def test_the_first_batch_is_long(self) -> None:
        for _ in range(2):
            self.watch()
            self.fake.send(out(b'one'))
            first = self.client.hear(b'] ')
            self.assertEqual(text.FIRST_BATCH, len(first))
            self.client.say(b'\n')
            self.wait(lambda: self.fake.told)
            self.fake.send(out(b'one'))
            self.assertEqual(first.replace(b'\r', b''),
                             self.client.hear(b'] '))
            self.client.ask(b'q\n')

    def test_q_ends_it_without_output(self) -> None:
        self.watch()
        self.assertEqual(b'Stopped watching\n> ', self.client.ask(b'q\n'))

    def test_q_that_comes_with_the_command_is_for_the_first_batch(
            self) -> None:
        self.client.say(b'w p a\nq\nget a\n')
        self.wait(lambda: self.operations.watches)
        self.idle()
        fake, = self.operations.watches
        self.assertEqual([], fake.told)
        fake.send(out(b'one'))
        self.wait(lambda: fake.told)
        self.assertEqual([('stop', None)], fake.told)
        self.client.hear(b'] ')
        self.assertEqual(b'Stopped watching\n> \n> ',
                         self.client.hear() + self.client.hear())

    def test_an_early_line_is_for_the_next_batch(self) -> None:
        self.watch()
        self.client.say(b'\n\n')
        self.idle()
        self.assertEqual([], self.fake.told)
        for data in (b'one', b'two'):
            self.fake.send(out(data))
            self.assertIn(data, self.client.hear(b'] '))
            self.wait(lambda: self.fake.told)
            self.assertEqual(('acknowledge', None), self.fake.told.pop())
        self.fake.send(out(b'three'))
        self.idle()
        self.assertEqual([], self.fake.told)

    def test_the_end_gives_the_prompt_back(self) -> None:
        self.watch()
        self.client.say(b'\nget a\n')
        self.fake.send(closed())
        self.client.hear(b'] ')
        self.wait(lambda: self.fake.told)
        self.fake.connection.finish_watch('Nothing left to watch')
        self.assertEqual(b'Nothing left to watch\n> \n> ',
                         self.client.hear() + self.client.hear())

    def test_a_process_is_watched_from_its_start(self) -> None:
        self.client.say(b'm p web watch=1 /bin/true\n')
        self.wait(lambda: self.operations.requests)
        request = self.operations.requests.pop()
        self.assertIs(True, request.params['watch'])
        request.params['names'] = ['web']
        fake = FakeWatch.__new__(FakeWatch)
        fake.connection, fake.told = request.connection, []
        fake.wakeup = self.poller.wakeup
        request.begin_watch(fake, {'pid': 7, 'running': True})
        fake.send(out(b'x'))
        self.assertEqual(
            b'web pid=7 running=True\nout:web:1700000000.25:1\nx\n] ',
            self.client.hear(b'] ').replace(b'\r', b''))
        self.client.ask(b'q\n')

    def test_who_dies_is_told(self) -> None:
        self.watch()
        self.client.close()
        self.wait(lambda: self.fake.told)
        self.assertEqual([('disconnected',)], self.fake.told)
        self.fake.send(out(b'one'))  # nobody gets it

    def test_who_reads_no_more_watches_no_more(self) -> None:
        if self.family != socket.AF_UNIX:
            return  # TCP does not tell
        self.watch()
        self.client.sock.shutdown(socket.SHUT_RD)
        self.client.say(b'\n' * 10)
        self.fake.send(out(b'one'))
        self.wait(lambda: ('disconnected',) in self.fake.told)
        self.assertEqual(0, len(self.clients))

    def test_who_sends_no_more_gets_a_batch(self) -> None:
        self.client.say(b'w p a\n')
        self.client.shut()
        self.wait(lambda: self.operations.watches)
        self.idle()
        fake, = self.operations.watches
        self.assertEqual([], fake.told)
        fake.send(out(b'one'))
        self.assertIn(b'\none\n] ', self.client.hear_all())
        self.assertEqual([('disconnected',)], fake.told)

    def test_who_sends_no_more_may_have_acknowledged_before(self) -> None:
        self.client.say(b'w p a\n\nq\n')
        self.client.shut()
        self.wait(lambda: self.operations.watches)
        fake, = self.operations.watches
        fake.send(out(b'one'))
        self.wait(lambda: len(fake.told) == 2)
        self.assertEqual([('acknowledge', None), ('stop', None)], fake.told)
        self.assertTrue(self.client.hear_all().endswith(
            b'] Stopped watching\n> '))

    def test_who_is_gone_after_all_is_found_out(self) -> None:
        self.client.say(b'w p a\n')
        self.client.close()
        self.wait(lambda: self.operations.watches)
        fake, = self.operations.watches
        self.wait(lambda: fake.told)
        self.assertEqual([('disconnected',)], fake.told)

    def test_lost_bytes_are_not_told(self) -> None:
        self.watch()
        self.fake.send(web=7)
        self.assertTrue(self.fake.connection.takes_output)


class TestTCPWatch(TestTextWatch):

    family = socket.AF_INET


class TestFrames(WireTestCase):

    def test_they_are_agreed_upon(self) -> None:
        client = self.connect()
        client.say(f'frames 1 {SESSION}\n'.encode())
        self.assertEqual(GREETING + b'frames 1 7.5\n> ',
                         client.hear() + client.hear())
        self.assertEqual(['ok', None], client.request('get', name='a'))

    def test_other_versions_are_refused(self) -> None:
        client = self.connect()
        client.hear()
        for words in (b'', b' 1', b' 2 ' + SESSION.encode(), b' 1 xyz'):
            self.assertRegex(client.ask(b'frames' + words + b'\n'),
                             b'^Error: this kernel knows .*\n> $')

    def test_they_may_follow_at_once(self) -> None:
        client = self.connect()
        client.say(f'frames 1 {SESSION}\n'.encode()
                   + frames.frame(1, ('get', {'name': 'a'})))
        client.hear()
        client.hear()
        self.assertEqual([Frame(1, ['ok', None], b'')], client.hear_frames(1))

    @steady(max_examples=30)
    @given(st.binary(max_size=40).map(
        lambda data: data.decode('utf-8', 'surrogateescape')))
    def test_any_value_passes(self, value: str) -> None:
        client = self.framed
        client.request('set', name='a', value=value)
        self.assertEqual(['ok', value], client.request('get', name='a'))

    def setUp(self) -> None:
        super().setUp()
        self.framed = self.connect_framed()

    def test_requests_carry_the_session_and_data(self) -> None:
        number = self.framed.send_frame('wait', {'x': 1}, data=b'\0\n> ')
        self.wait(lambda: self.operations.requests)
        request, = self.operations.requests
        self.assertEqual(
            ('wait', {'x': 1}, b'\0\n> ', SESSION, number),
            (request.op, request.params, request.data, request.session,
             request.id))
        request.answer([1, 'b'], b'data')
        self.assertEqual([Frame(number, ['ok', [1, 'b']], b'data')],
                         self.framed.hear_frames(1))

    def test_answers_come_when_they_are_known(self) -> None:
        for _ in range(2):
            self.framed.send_frame('wait', {})
        number = self.framed.send_frame('get', {'name': 'a'})
        self.assertEqual(number, self.framed.hear_frames(1)[0].number)
        self.wait(lambda: len(self.operations.requests) == 2)
        first, second = self.operations.requests
        second.fail('no')
        first.answer(True)
        self.assertEqual([(2, ['error', 'no']), (1, ['ok', True])],
                         [each[:2] for each in self.framed.hear_frames(2)])

    def test_id_0_gets_no_answer(self) -> None:
        self.framed.send_frame('get', {'name': 'a'}, number=0)
        with self.assertLogs('gocept.runner.kernel', 'WARNING'):
            self.framed.send_frame('remove-sockets', {}, number=0)
            self.framed.send_frame(7, number=0)
            self.framed.request('get', name='a')

    def test_nonsense_is_answered(self) -> None:
        for body in (b'nonsense', b'[]', b'["get"]', b'["get",1]', b'[1,{}]',
                     b'{"a":1,"b":2}', b'null', b'["get",{}] ', b'"ab"'):
            self.framed.say(HEADER.pack(len(body), 0, 5) + body)
            answer, = self.framed.hear_frames(1)
            self.assertEqual((5, 'error'), (answer.number, answer.value[0]))
        self.assertEqual(['error', 'there is no such\nsocket'],
                         self.framed.request('remove-sockets'))

    def test_a_frame_that_is_too_long_ends_it(self) -> None:
        self.framed.say(b'random bytes, which are no frame at all')
        answer, = self.framed.hear_frames(1)
        self.assertEqual((0, 'error'), (answer.number, answer.value[0]))
        self.assertIn('it is no frame', answer.value[1])
        self.assertEqual(b'', self.framed.hear_all())

    def test_big_frames_pass_in_both_directions(self) -> None:
        data = bytes(range(256)) * 2 ** 15
        number = self.framed.send_frame('echo', {'a': 'b' * 2 ** 20},
                                        data=data)
        answer, = self.framed.hear_frames(1)
        self.assertEqual(number, answer.number)
        self.assertEqual(data, answer.data)
        self.assertEqual(['ok', {'a': 'b' * 2 ** 20}], answer.value)
        self.assertEqual(0, self.clients.traffic)

    def test_frames_arrive_cut_at_every_byte(self) -> None:
        stream = b''.join(
            frames.frame(number, ('echo', {'n': number}), b'x' * number)
            for number in (1, 2, 3))
        self.feed(self.framed, (bytes([byte]) for byte in stream))
        self.assertEqual([1, 2, 3], [
            len(each.data) for each in self.framed.hear_frames(3)])
        for cut in range(0, len(stream), 3):
            self.feed(self.framed, (stream[:cut], stream[cut:]))
            self.assertEqual([1, 2, 3], [
                each.number for each in self.framed.hear_frames(3)])

    def test_a_client_may_leave_at_every_byte(self) -> None:
        stream = (f'frames 1 {SESSION}\n'.encode()
                  + frames.frame(1, ('echo', {}), b'xy'))
        for cut, abort in itertools.product(
                range(0, len(stream), 5), (False, True)):
            client = self.connect()
            client.say(stream[:cut])
            self.idle()
            if abort:
                client.close()
            else:
                client.shut()
                client.hear_all()
        self.wait(lambda: len(self.clients) == 1)
        self.assertEqual(0, self.clients.traffic)

    def test_a_client_that_sends_no_more_gets_its_answers(self) -> None:
        self.framed.say(b''.join(
            frames.frame(number, ('get', {'name': 'a'}))
            for number in range(1, 1001))
            + frames.frame(1001, ('wait', {})))
        self.framed.shut()
        self.assertEqual([*range(1, 1001)], [
            each.number for each in self.framed.hear_frames(1000)])
        self.wait(lambda: self.operations.requests)
        self.operations.requests.pop().answer()
        self.assertEqual(1001, self.framed.hear_frames(1)[0].number)
        self.assertEqual(b'', self.framed.hear_all())


class TestFramesWatch(WireTestCase):

    def setUp(self) -> None:
        super().setUp()
        self.client = self.connect_framed()
        self.assertEqual(
            ['ok', {'processes': {'web': 'aa'}}],
            self.client.request('watch', names=['web']))
        self.fake, = self.operations.watches

    def test_output_is_one_frame(self) -> None:
        self.fake.send(out(b'one', 3), closed(7), web=12)
        self.assertEqual(
            [Frame(1, ['output', [
                ['web', LIFE, 'out', 1700000000.25, 3, 3],
                ['web', LIFE, 'closed', 1700000001.5, 7, 9]],
                {'web': 12}], b'one')], self.client.hear_frames(1))

    def test_more_output_needs_no_acknowledgement(self) -> None:
        for data in (b'one', b'two'):
            self.assertTrue(self.fake.connection.takes_output)
            self.fake.send(*[out(data)] * 100)
        self.assertEqual([b'one' * 100, b'two' * 100], [
            each.data for each in self.client.hear_frames(2)])

    def test_positions_are_acknowledged(self) -> None:
        positions = {'web': [LIFE, 3, False]}
        self.client.send_frame('acknowledge', {'positions': positions},
                               number=0)
        self.wait(lambda: self.fake.told)
        self.assertEqual([('acknowledge', positions)], self.fake.told)
        self.assertEqual('error', self.client.request(
            'acknowledge', positions=7)[0])

    def test_unwatch_ends_it(self) -> None:
        number = self.client.send_frame('unwatch', {'positions': {}})
        self.assertEqual(
            [Frame(1, ['over', 'Stopped watching'], b''),
             Frame(number, ['ok', None], b'')], self.client.hear_frames(2))
        self.assertEqual(['ok', None], self.client.request('unwatch'))
        self.client.send_frame('acknowledge', {'positions': {}}, number=0)
        self.client.request('watch', names=['web'])
        self.assertEqual([('stop', {})], self.fake.told)

    def test_a_second_watch_needs_another_connection(self) -> None:
        kind, message = self.client.request('watch', names=['web'])
        self.assertEqual('error', kind)
        self.assertIn('watches already', message)

    def test_other_requests_go_on(self) -> None:
        self.assertEqual(['ok', None], self.client.request('get', name='a'))

    def test_a_mistake_in_a_position_is_told(self) -> None:
        def refuse(positions: object) -> None:
            raise KernelError('no such position')

        self.fake.acknowledge = refuse  # type: ignore[method-assign]
        self.assertEqual(
            ['error', 'no such position'],
            self.client.request('acknowledge', positions={}))

    def test_mistakes_of_ours_are_logged_and_told(self) -> None:
        def fail(*args: object) -> None:
            raise ZeroDivisionError('a mistake')

        self.fake.acknowledge = fail  # type: ignore[method-assign]
        self.fake.disconnected = fail  # type: ignore[method-assign]
        with self.assertLogs('gocept.runner.kernel', 'ERROR'):
            self.assertEqual(
                ['error', 'ZeroDivisionError: a mistake'],
                self.client.request('acknowledge', positions={}))
        with self.assertLogs('gocept.runner.kernel', 'ERROR'):
            self.client.close()
            self.wait(lambda: not len(self.clients))

    def test_who_sends_no_more_watches_no_more(self) -> None:
        self.client.shut()
        self.wait(lambda: self.fake.told)
        self.assertEqual([('disconnected',)], self.fake.told)

    def test_who_acknowledges_and_leaves_has_acknowledged(self) -> None:
        for size in (3, 2 ** 20):  # the second is not all sent at once
            with self.subTest(size):
                client = self.connect_framed()
                client.request('watch', names=['web'])
                fake = self.operations.watches[-1]
                positions = {'web': [LIFE, 3, False]}
                client.send_frame('acknowledge', {'positions': positions},
                                  number=0)
                client.send_frame('acknowledge', {'positions': {}})
                client.close()
                fake.send(out(b'x' * size))
                fake.send(out(b'more'))
                self.assertFalse(fake.connection.takes_output)
                self.wait(lambda: len(fake.told) == 3)
                self.assertEqual(
                    [('acknowledge', positions), ('acknowledge', {}),
                     ('disconnected',)], fake.told)
                self.assertEqual(0, self.clients.traffic)

    def test_a_client_that_does_not_read_has_time(self) -> None:
        # What the views show may change after the batch was handed over.
        data = bytearray(b'x' * 2 ** 23)
        with memoryview(data) as view:
            self.poller.unregister(self.client.channel)
            self.fake.send(out(view[:2 ** 22]), out(view[2 ** 22:]))
        data[:] = b'y' * 2 ** 23
        unsent = self.fake.connection.unsent
        self.assertGreater(unsent, 0)
        self.assertEqual(unsent, self.clients.traffic)
        self.assertFalse(self.fake.connection.takes_output)
        self.assertEqual([], self.fake.told)
        self.poller.register(self.client.channel)
        self.assertEqual(b'x' * 2 ** 23, self.client.hear_frames(1)[0].data)
        self.wait(lambda: self.fake.told)
        self.assertEqual([('drained',)], self.fake.told)
        self.assertEqual(0, self.clients.traffic)
        self.assertTrue(self.fake.connection.takes_output)


class TestTCPFramesWatch(TestFramesWatch):

    family = socket.AF_INET


class TestBounds(WireTestCase):

    limits = Limits(line=2 ** 16, frame=2 ** 20, requests=3)

    def test_a_line_of_10_megabytes_is_refused(self) -> None:
        client = self.connect()
        client.hear()
        self.feed(client, [b'x' * 2 ** 16] * 160)
        self.assertEqual(b'Error: a line is longer than 65536 bytes\n',
                         client.hear_all())
        self.assertEqual(0, self.clients.traffic)

    def test_a_long_line_that_arrives_at_once_is_refused(self) -> None:
        client = self.connect()
        client.hear()
        client.say(b'set a ' + b'x' * 2 ** 16 + b'\nset b 1\n')
        self.assertIn(b'longer than 65536', client.hear_all())
        self.assertEqual({}, self.operations.values)

    def test_what_is_thrown_away_has_an_end(self) -> None:
        client = self.connect()
        client.hear()
        for _ in range(100):
            if not len(self.clients):
                break
            client.say(b'x' * 2 ** 16)
            self.idle()
        self.assertEqual(0, len(self.clients))

    def test_an_answer_that_is_too_long_is_an_error(self) -> None:
        self.operations.values['a'] = 'x' * 2 ** 20 + 'x'
        client = self.connect_framed()
        self.assertIn('has 1048602 bytes, more than 1048576',
                      client.request('get', name='a')[1])
        client = self.connect()
        client.hear()
        self.assertEqual(
            b'Error: the answer has 1048577 characters, more than 1048576: '
            b'ask for less at once\n> ', client.ask(b'get a\n'))

    def test_a_client_that_waits_for_much_is_not_read(self) -> None:
        client = self.connect_framed()
        for _ in range(5):
            client.send_frame('wait', {})
        self.wait(lambda: len(self.operations.requests) == 3)
        self.idle()
        self.assertEqual(3, len(self.operations.requests))
        self.operations.requests.pop(0).answer()
        self.wait(lambda: len(self.operations.requests) == 3)
        for request in self.operations.requests:
            request.answer()
        self.wait(lambda: len(self.operations.requests) == 4)
        self.operations.requests.pop().answer()
        self.assertEqual({1, 2, 3, 4, 5}, {
            each.number for each in client.hear_frames(5)})

    def never_reads(self, data: bytes, count: int) -> int:
        """Returns how many requests were handled for such a client."""
        client = self.connect_framed() if data[:1] == b'\0' else (
            self.connect())
        self.idle()
        self.poller.unregister(client.channel)
        self.operations.handled = 0
        client.channel.write(data * count)
        self.poller.send_for(client.channel)
        self.idle()
        self.assertLess(self.clients.traffic, 2 ** 22)
        return self.operations.handled

    def test_a_client_that_never_reads_costs_little(self) -> None:
        self.operations.values['a'] = 'x' * 2 ** 16
        for data in (b'get a\n', frames.frame(9, ('get', {'name': 'a'}))):
            with self.subTest(data):
                self.assertLess(self.never_reads(data, 1000), 100)
        client = self.connect()
        client.hear()
        self.assertEqual(2 ** 16 + 3, len(client.ask(b'get a\n')))

    def test_a_client_that_reads_late_gets_all(self) -> None:
        self.operations.values['a'] = 'x' * 2 ** 16
        client = self.connect_framed()
        self.poller.unregister(client.channel)
        for _ in range(100):
            client.send_frame('get', {'name': 'a'})
        self.idle()
        self.poller.register(client.channel)
        self.assertEqual(100, len(client.hear_frames(100)))

    @steady(max_examples=50)
    @given(st.lists(st.binary(max_size=100), max_size=8), st.booleans())
    def test_random_bytes_harm_nobody(self, pieces: list[bytes],
                                      framed: bool) -> None:
        client = self.connect_framed() if framed else self.connect()
        self.feed(client, pieces)
        client.close()
        other = self.connect()
        other.hear()
        self.assertEqual(b'> ', other.ask(b'\n'))
        other.close()
        self.wait(lambda: not len(self.clients))
        self.assertEqual(0, self.clients.traffic)


del WireTestCase

if __name__ == '__main__':
    unittest.main()
