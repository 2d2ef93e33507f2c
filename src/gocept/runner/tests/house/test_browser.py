"""The page as a browser has it."""

import os
import pathlib
import re
import shutil
import struct
import subprocess
import tempfile
import time

from gocept.runner.house import page
from gocept.runner.tests import services
from gocept.runner.tests.house.clients import Served
from gocept.runner.tests.house.houses import worker_state
from gocept.runner.tests.house.test_web import WebCase
from gocept.runner.tests.support import DEADLINE

EVIL = '<img src=x onerror="document.title=\'run\'"><script>document.title=' \
       "'run'</script>"


class BrowserTests(WebCase):

    level = 2  # each start of the browser takes seconds

    def setUp(self) -> None:
        super().setUp()
        self.program = services.need(self, 'chromium')
        # Not below the directory of states, as the browser writes there.
        self.home = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.home, ignore_errors=True)

    def browse(self, place: Served | str, *options: str) -> tuple[str, str]:
        """What a browser writes to standard output, and to the log."""
        url = place if isinstance(place, str) else (
            f'http://localhost:{place.port}/')
        process = subprocess.run(
            [self.program, '--headless=new', '--no-sandbox', '--disable-gpu',
             '--hide-scrollbars', '--no-first-run', '--disable-extensions',
             '--disable-background-networking', '--disable-dev-shm-usage',
             '--enable-logging=stderr', '--lang=en',
             f'--user-data-dir={self.home}/profile', *options, url],
            env={**os.environ, 'HOME': str(self.home)},
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=DEADLINE * 3)
        self.assertEqual(0, process.returncode, process.stderr)
        return process.stdout, process.stderr

    def serve_workers(self, error: str = 'ValueError: x') -> Served:
        """Serve a page with two workers."""
        now = time.time()
        minute = {'at': int(now // 60), 'ticks': 2, 'failed': 1,
                  'longest': 2.5}
        self.put(failures=1, hour=[minute], last_error={
            'tick': 3, 'time': now, 'error': error, 'traceback': error},
            children=[{'name': 'web', 'pid': 2, 'state': 'ready'}])
        return self.serve(worker_state(), worker_state(
            'mail', phase='given up', pid=None, failures=3, status=1))

    def evaluate(self, served: Served, width: int, script: str) -> str:
        """What a script finds in the page, in a window of this width.

        The page runs none, so a copy of it is asked, without the policy.
        """
        copy = self.home / 'copy.html'
        copy.write_text(served.get('/?still')[1].decode().replace(
            '</body>', '<script>document.documentElement.setAttribute('
            f'"data-found", (() => {{ {script} }})());</script></body>'))
        found = re.search('data-found="([^"]*)"', self.browse(
            copy.as_uri(), f'--window-size={width},900', '--dump-dom')[0])
        assert found is not None
        return found[1]

    def test_the_table(self) -> None:
        document, log = self.browse(self.serve_workers(), '--dump-dom')
        rows = re.findall(r'<tr class="(\w*)"><th scope="row">(\w+)', document)
        self.assertEqual([('late', 'nightly'), ('ill', 'mail')], rows)
        self.assertIn('<svg', document)
        # The browser tells of all that the policy has forbidden.
        self.assertNotIn('Content Security Policy', log)
        self.assertNotIn('CONSOLE', log)

    def test_what_anybody_may_have_written_is_not_run(self) -> None:
        document, log = self.browse(self.serve_workers(EVIL), '--dump-dom')
        self.assertNotIn('<title>run', document)
        self.assertEqual(0, document.count('<script'))
        self.assertEqual(0, document.count('<img'))
        self.assertIn('&lt;img src=x', document)
        self.assertNotIn('CONSOLE', log)

    def test_the_policy_stops_what_is_not_escaped(self) -> None:
        # If it were not escaped somewhere, it would not be run either.
        escaped = page.escaped
        self.addCleanup(setattr, page, 'escaped', escaped)
        page.escaped = str
        document, log = self.browse(self.serve_workers(EVIL), '--dump-dom')
        self.assertNotEqual(0, document.count('<script'))
        self.assertNotIn('<title>run', document)
        self.assertIn('Content Security Policy', log)

    def test_pictures(self) -> None:
        served = self.serve_workers()
        pixels = set()
        for width, *options in (
                (1280,), (400,), (1280, '--force-dark-mode'),
                (400, '--force-dark-mode')):
            picture = self.home / 'picture.png'
            picture.unlink(missing_ok=True)
            self.browse(served, f'--window-size={width},900',
                        f'--screenshot={picture}', *options)
            data = picture.read_bytes()
            self.assertEqual((width, 900), struct.unpack('>II', data[16:24]))
            pixels.add(data)
        self.assertEqual(4, len(pixels))

    def test_no_window_is_too_narrow(self) -> None:
        served = self.serve_workers('x' * 300)
        for width in 1280, 700, 500:  # it opens none that is narrower
            self.assertEqual('fits', self.evaluate(served, width, (
                'const root = document.documentElement;'
                'return root.scrollWidth <= root.clientWidth ? "fits" : '
                'root.scrollWidth + " of " + root.clientWidth;')))

    def test_the_style_is_used(self) -> None:
        served = self.serve_workers()
        script = ('return getComputedStyle(document.querySelector('
                  '".workers td")).display;')
        self.assertEqual('table-cell', self.evaluate(served, 1280, script))
        self.assertEqual('grid', self.evaluate(served, 500, script))
