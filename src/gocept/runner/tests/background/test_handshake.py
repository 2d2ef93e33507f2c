"""Who does not know the token gets nothing, and learns nothing."""

import hashlib
import hmac
import sys
import unittest
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from gocept.runner.background.handshake import (
    ANSWER_SIZE,
    CHALLENGE_SIZE,
    FULL,
    MAGIC,
    PROOF_SIZE,
    STATUS_KEY,
    TOKEN,
    WELCOME,
    Agreed,
    Challenge,
    Proof,
    prove,
    refuse,
)
from gocept.runner.errors import ProtocolError, ServerBusy, ServerRefused
from gocept.runner.tests.properties import steady

KEY = b'the token'

KEYS: Mapping[int, bytes] = {TOKEN: KEY, STATUS_KEY: b'of this life'}

PYTHON = (sys.version_info[0], sys.version_info[1])


def agreed(challenge: Challenge, proof: Proof) -> Agreed:
    """What the server has agreed to."""
    result = challenge.check(proof.data, KEYS)
    assert result is not None
    return result


class AgreementTests(unittest.TestCase):

    def setUp(self) -> None:
        self.challenge = Challenge()
        self.proof = prove(self.challenge.data, TOKEN, KEY)

    def test_both_sides_agree(self) -> None:
        server = agreed(self.challenge, self.proof)
        client = self.proof.check(server.answer)
        self.assertEqual(server.send, client.receive)
        self.assertEqual(server.receive, client.send)
        self.assertNotEqual(server.send, server.receive)
        for side in server, client:
            self.assertEqual(PYTHON, side.python)
            self.assertEqual(TOKEN, side.key_number)
            self.assertEqual([32, 32], [
                len(side.send or b''), len(side.receive or b'')])

    def test_the_bytes(self) -> None:
        # As the narrative has them, so that others can write a client.
        answer = agreed(self.challenge, self.proof).answer
        challenge, proof = self.challenge.data, self.proof.data
        self.assertEqual(
            [CHALLENGE_SIZE, PROOF_SIZE, ANSWER_SIZE],
            [len(challenge), len(proof), len(answer)])
        self.assertEqual(
            b'GRunBg1\n' + bytes((*PYTHON, 0, 0)) + bytes(4), challenge[:16])
        self.assertEqual(
            b'GRunBg1\n' + bytes((*PYTHON, 0, 0)) + bytes(4), proof[:16])

        def mac(*parts: bytes) -> bytes:
            return hmac.digest(KEY, b''.join(parts), hashlib.sha256)

        self.assertEqual(mac(b'client', challenge, proof[:48]), proof[48:])
        self.assertEqual(
            b'welcome\n' + mac(b'server', challenge, proof), answer)
        client = self.proof.check(answer)
        self.assertEqual(mac(b'to server', challenge, proof), client.send)
        self.assertEqual(mac(b'to client', challenge, proof), client.receive)

    def test_the_token_never_crosses_the_wire(self) -> None:
        answer = agreed(self.challenge, self.proof).answer
        self.assertNotIn(KEY, self.challenge.data + self.proof.data + answer)

    def test_nothing_is_said_twice(self) -> None:
        again = Challenge()
        self.assertNotEqual(self.challenge.data, again.data)
        other = prove(self.challenge.data, TOKEN, KEY)
        self.assertNotEqual(self.proof.data, other.data)
        self.assertEqual(4, len({
            key for proof in (self.proof, other)
            for key in agreed(self.challenge, proof)[:2]}))

    def test_the_other_key(self) -> None:
        proof = prove(self.challenge.data, STATUS_KEY, KEYS[STATUS_KEY])
        self.assertEqual(
            STATUS_KEY, agreed(self.challenge, proof).key_number)

    def test_with_tls_there_are_no_session_keys(self) -> None:
        challenge = Challenge(tls=True)
        proof = prove(challenge.data, TOKEN, KEY, tls=True)
        server = agreed(challenge, proof)
        self.assertEqual((None, None), server[:2])
        self.assertEqual((None, None), proof.check(server.answer)[:2])

    def test_the_life_of_a_server(self) -> None:
        challenge = Challenge(life=b'abcd')
        self.assertEqual(b'abcd', challenge.data[12:16])
        agreed(challenge, prove(challenge.data, TOKEN, KEY))
        with self.assertRaises(ValueError):
            Challenge(life=b'abc')


class RefusalTests(unittest.TestCase):

    def setUp(self) -> None:
        self.challenge = Challenge()
        self.proof = prove(self.challenge.data, TOKEN, KEY)
        self.answer = agreed(self.challenge, self.proof).answer

    def assert_refused(self, proof: bytes, *, by: Challenge | None = None,
                       keys: Mapping[int, bytes] = KEYS) -> None:
        self.assertIsNone((by or self.challenge).check(proof, keys))

    def test_a_wrong_token(self) -> None:
        for token in b'', b'the tokem', KEY + b'x', KEY[:-1], KEY.upper():
            proof = prove(self.challenge.data, TOKEN, token)
            self.assert_refused(proof.data)

    def test_the_key_of_another_number(self) -> None:
        self.assert_refused(
            prove(self.challenge.data, TOKEN, KEYS[STATUS_KEY]).data)
        self.assert_refused(prove(self.challenge.data, STATUS_KEY, KEY).data)

    def test_a_number_without_a_key(self) -> None:
        for key in KEY, b'':
            self.assert_refused(prove(self.challenge.data, 7, key).data)
            self.assert_refused(
                prove(self.challenge.data, TOKEN, key).data, keys={})

    def test_an_empty_key_opens_nothing(self) -> None:
        self.assert_refused(prove(self.challenge.data, TOKEN, b'').data,
                            keys={TOKEN: b''})

    def test_a_replayed_proof(self) -> None:
        self.assert_refused(self.proof.data, by=Challenge())

    def test_a_reflected_challenge(self) -> None:
        # Who knows no token sends back what it gets, from this connection or
        # from another one to the same server or client.
        other = Challenge()
        for first in self.challenge.data, other.data, self.proof.data[:48]:
            for mac in (self.proof.data[48:], self.answer[8:],
                        self.challenge.data[-32:], bytes(32)):
                if first + mac != self.proof.data:
                    self.assert_refused(first + mac)
                self.assert_refused(first + mac, by=other)

    def test_a_client_as_a_server(self) -> None:
        # A client is asked to prove itself over what another client has sent.
        proof = prove(self.proof.data[:48], TOKEN, KEY)
        self.assert_refused(proof.data)

    def test_each_byte_of_a_proof(self) -> None:
        data = self.proof.data
        for at in range(PROOF_SIZE):
            for bit in range(8):
                changed = bytearray(data)
                changed[at] ^= 1 << bit
                self.assert_refused(bytes(changed))
        self.assertIsNotNone(self.challenge.check(data, KEYS))

    def test_each_byte_of_a_challenge(self) -> None:
        for at in range(CHALLENGE_SIZE):
            changed = bytearray(self.challenge.data)
            changed[at] ^= 1
            try:
                proof = prove(bytes(changed), TOKEN, KEY)
            except ProtocolError:  # it was seen at once
                continue
            self.assert_refused(proof.data)

    def test_each_byte_of_an_answer(self) -> None:
        for at in range(ANSWER_SIZE):
            changed = bytearray(self.answer)
            changed[at] ^= 1
            with self.assertRaises(ServerRefused):
                self.proof.check(bytes(changed))

    def test_a_proof_of_another_length(self) -> None:
        data = self.proof.data
        for wrong in b'', data[:-1], data + b'x', data[:48], data[:10]:
            self.assert_refused(wrong)

    def test_a_server_that_does_not_know_the_token(self) -> None:
        for answer in (
                bytes(ANSWER_SIZE), b'', WELCOME + bytes(32), b'x',
                WELCOME + self.proof.data[48:], self.answer + b'x',
                agreed(self.challenge,
                       prove(self.challenge.data, TOKEN, KEY)).answer):
            with self.assertRaises(ServerRefused) as caught:
                self.proof.check(answer)
            self.assertIn('does not know the token', str(caught.exception))

    def test_a_server_that_refuses(self) -> None:
        with self.assertRaises(ServerRefused) as caught:
            self.proof.check(refuse())
        self.assertIn('another token', str(caught.exception))

    def test_a_server_that_is_full(self) -> None:
        with self.assertRaises(ServerBusy):
            self.proof.check(refuse(FULL))

    def test_an_answer_to_another_client(self) -> None:
        other = prove(self.challenge.data, TOKEN, KEY)
        with self.assertRaises(ServerRefused):
            other.check(self.answer)

    def test_what_is_no_server(self) -> None:
        for said in (b'', b'SSH-2.0-OpenSSH_9.2p1\r\n', bytes(CHALLENGE_SIZE),
                     self.challenge.data[:-1], self.challenge.data + b'x'):
            with self.assertRaises(ProtocolError):
                prove(said, TOKEN, KEY)

    def test_one_side_with_tls(self) -> None:
        with self.assertRaises(ProtocolError) as caught:
            prove(Challenge(tls=True).data, TOKEN, KEY)
        self.assertIn('this client does not', str(caught.exception))
        with self.assertRaises(ProtocolError) as caught:
            prove(self.challenge.data, TOKEN, KEY, tls=True)
        self.assertIn('the server does not', str(caught.exception))

    @steady(max_examples=2000)
    @given(st.binary(max_size=2 * PROOF_SIZE)
           | st.binary(min_size=PROOF_SIZE - 8, max_size=PROOF_SIZE - 8).map(
               MAGIC.__add__))
    def test_any_bytes(self, said: bytes) -> None:
        challenge = Challenge()
        self.assertIsNone(challenge.check(said, KEYS))
        with self.assertRaises(ServerRefused):
            prove(challenge.data, TOKEN, KEY).check(said)
        with self.assertRaises(ProtocolError):
            prove(said, TOKEN, KEY)
