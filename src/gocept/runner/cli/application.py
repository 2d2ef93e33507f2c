"""The options that say what kind of application a zope.conf is that of.

A module of its own, so that commands for servers import no database.
"""

import argparse
from collections.abc import Callable

from gocept.runner.boot.environments import Settings


def add_application(parser: argparse._ActionsContainer,
                    file: Callable[[str], str] = str) -> None:
    """Add the options that are about the kind of application.

    `file` makes a path of an argument.
    """
    parser.add_argument(
        '--application', metavar='KIND',
        help='"toolkit" for the Zope Toolkit, or "zope" for Zope and Plone '
             '(default: the one that the zope.conf is for)')
    parser.add_argument(
        '--server-url', metavar='URL',
        help='of Zope: the URL of the site, as browsers see it')
    parser.add_argument(
        '--log-config', metavar='FILE', type=file,
        help='of Zope: a file that sets up logging, such as zope.ini')


def settings_of(options: argparse.Namespace) -> Settings:
    """What the options of `add_application` say, and `--log-format`.

    Not every command has all of them.
    """
    return Settings(*(getattr(options, name, None)
                      for name in Settings._fields))
