"""TLS in which the client shows a certificate, too."""

import ssl
from typing import NamedTuple, NoReturn

from gocept.runner.errors import BAD_CONFIGURATION, BackgroundError


class TLS(NamedTuple):
    """The paths of PEM files."""

    cert: str
    """The certificate of this side."""
    key: str
    """Its private key."""
    ca: str
    """The certificates of those who sign the other side's certificate."""


def server_context(cert: str, key: str, ca: str) -> ssl.SSLContext:
    """For a server: it talks to clients only whose certificate `ca` signed.

    `BackgroundError` if a file cannot be read, or is no such file.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, cert, key, ca)
    context.num_tickets = 0  # each connection shows its certificate
    return context


def client_context(cert: str, key: str, ca: str) -> ssl.SSLContext:
    """For a client: the server's certificate has to be for the name or the
    address to which the client connects, and signed by `ca`.

    `BackgroundError` as above.
    """
    return _context(ssl.PROTOCOL_TLS_CLIENT, cert, key, ca)


def _context(protocol: int, cert: str, key: str, ca: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.options |= ssl.OP_NO_RENEGOTIATION
    for path in cert, key, ca:
        try:
            open(path, 'rb').close()
        except OSError as error:  # ssl would not say which file it is
            raise _unfit(
                f'{path} cannot be read: {error.strerror}') from error
    try:
        context.load_cert_chain(cert, key, _refuse)
    except ssl.SSLError as error:
        raise _unfit(
            f'{cert} and {key} are no certificate and its private key, as PEM '
            f'files: {error.reason or error}') from error
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise _unfit(
            f'{ca} has no certificates, as a PEM file: '
            f'{error.reason or error}') from error
    return context


def _unfit(message: str) -> BackgroundError:
    """It ends a program with the status of bad configuration."""
    error = BackgroundError(message)
    error.status = BAD_CONFIGURATION
    return error


def _refuse() -> NoReturn:
    raise _unfit(
        'the private key for TLS wants a passphrase, which nobody can type '
        'in: give a key without one, in a file that only you can read')
