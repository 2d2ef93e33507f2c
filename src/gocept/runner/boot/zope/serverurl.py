"""The URL of a site, as browsers see it."""

import urllib.parse
from typing import NamedTuple, Self

from gocept.runner.errors import UsageError

_PORTS = {'http': 80, 'https': 443}


class ServerURL(NamedTuple):
    """Where browsers see the site of a worker.

    Where nothing was said about it, URLs are as in scripts of ``zconsole``.
    """

    scheme: str = 'http'
    host: str = 'nohost'
    port: int = 80
    path: str | None = None
    """The path in the URL of the site; None: the one in the database."""

    @classmethod
    def parse(cls, url: str) -> Self:
        """UsageError if `url` is not the URL of a site."""
        try:
            parts = urllib.parse.urlsplit(url)
            port = parts.port or _PORTS[parts.scheme]
            if not parts.hostname or '@' in parts.netloc or (
                    parts.query or parts.fragment):
                raise ValueError(url)
        except (ValueError, KeyError):
            raise UsageError(
                f'{url!r} is not the URL of a site, such as '
                'https://www.example.org or https://www.example.org/portal',
            ) from None
        return cls(parts.scheme, parts.hostname, port,
                   urllib.parse.unquote(parts.path))

    @property
    def netloc(self) -> str:
        """The host, and the port unless it is the usual one."""
        host = f'[{self.host}]' if ':' in self.host else self.host
        return (host if self.port == _PORTS[self.scheme]
                else f'{host}:{self.port}')
