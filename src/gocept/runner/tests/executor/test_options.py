"""What is said as for Popen, and done by a process."""

import subprocess
import unittest
from typing import Any

from gocept.runner.executor.conditions.base import Check
from gocept.runner.executor.options import process_options


class OptionsTests(unittest.TestCase):

    def options(self, command: Any = ('true',), streams: Any = (),
                check: Check | None = None, **popen: Any) -> dict[str, Any]:
        return process_options(
            command, dict(streams), {'A': 'ours', 'B': 'ours'}, ['B', 'C'],
            popen, check)

    def test_streams_are_those_of_popen(self) -> None:
        with open('/dev/null') as file:
            streams = {'stdin': subprocess.PIPE, 'stdout': file,
                       'stderr': subprocess.STDOUT}
            options = self.options(streams=streams)
            self.assertEqual(['pipe', file, 'merge'], [
                options[name] for name in streams])
        self.assertEqual('inherit', self.options(
            streams={'stdin': None})['stdin'])
        self.assertEqual('null', self.options(
            streams={'stdin': subprocess.DEVNULL})['stdin'])

    def test_what_was_added_is_passed_on_whatever_it_is(self) -> None:
        options = self.options()
        self.assertEqual({'A': 'ours', 'B': 'ours'}, options['env'])
        self.assertEqual({'B': 'ours'}, options['extra_env'])

    def test_keywords_of_popen_come_first(self) -> None:
        options = self.options(env={'B': 'theirs'}, umask=0, user='nobody')
        self.assertEqual({'B': 'theirs'}, options['env'])
        self.assertEqual({'B': 'theirs'}, options['extra_env'])
        self.assertEqual({'umask': 0}, options['popen_kwargs'])
        self.assertEqual('nobody', options['user'])

    def test_a_session_of_its_own_unless_something_else_is_said(self) -> None:
        self.assertTrue(self.options()['setsid'])
        self.assertFalse(self.options(process_group=0)['setsid'])
        options = self.options(start_new_session=False)
        self.assertFalse(options['setsid'])
        self.assertFalse(options['start_new_session'])

    def test_a_check_adds_its_own(self) -> None:
        check = Check()
        check.variables = {'NOTIFY_FD': '17'}
        check.pass_fds = [17]
        for command, expected in (
                ('a {notify_fd}', 'a 17'), (['{notify_fd}'], ['17'])):
            options = self.options(command, check=check, pass_fds=[5])
            self.assertEqual(expected, options['command'])
        self.assertEqual((5, 17), options['pass_fds'])
        self.assertEqual({'B': 'ours', 'NOTIFY_FD': '17'},
                         options['extra_env'])
