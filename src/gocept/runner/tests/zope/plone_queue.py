"""The queue of the example, as an add-on of a Plone site behind ZEO."""

import signal
import subprocess
import sys
import time

from gocept.runner.tests import support
from gocept.runner.tests.zope.plones import Instance

WEB = '''
import sys
from webtest import TestApp
from Zope2.Startup.run import make_wsgi_app

app = TestApp(make_wsgi_app({}, sys.argv[1]))
app.authorization = 'Basic', ('admin', 'secret')
print('ready', flush=True)
for line in sys.stdin:
    method, path = line.split()
    page = app.get(f'/Plone/{path}words')
    if method == 'post':
        page = page.form.submit()
    print(method, path, page.text, flush=True)
'''


class QueueTests(support.TestCase):

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(support.end_background)
        self.instance = Instance(self.dir / 'instance')
        self.instance.include('gocept.runner.example.queue')
        self.enterContext(self.instance.zeo())

    def start_worker(self) -> support.Program:
        worker = self.instance.start(self.write('worker.py', '''
            import sys
            from gocept.runner.cli import main
            sys.exit(main(['run', 'words', *sys.argv[1:]]))
            '''))
        self.addCleanup(worker.close)
        return worker

    def start_web(self) -> 'Web':
        web = Web(self.instance)
        self.addCleanup(web.close)
        return web

    def test_views_fill_it_and_the_worker_wakes_and_empties_it(self) -> None:
        web, worker = self.start_web(), self.start_worker()
        worker.wait_for("Worker 'words' starts")
        # Its tick comes every ten minutes if nothing wakes it: when there is
        # no queue yet, and when there is one.
        self.assertIn('? words', web.ask('post', 'news/'))
        web.wait_for('news/', '<p>2 words')
        self.assertIn('? words', web.ask('post', ''))
        web.wait_for('', '<p>2 words')
        worker.send(signal.SIGTERM)
        self.assertEqual(0, worker.end(), worker.output)


class Web:
    """A process that publishes requests, as the one of an instance."""

    def __init__(self, instance: Instance) -> None:
        self._process = subprocess.Popen(
            [sys.executable, '-c', WEB, instance.conf], text=True,
            cwd=instance.directory, env=support.child_environment(),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL)
        self._read('ready')

    def ask(self, method: str, path: str) -> str:
        """Load the page of the words of an object, and perhaps send its form;
        returns the last page."""
        assert self._process.stdin is not None
        self._process.stdin.write(f'{method} {path or "./"}\n')
        self._process.stdin.flush()
        return self._read('</form>')

    def wait_for(self, path: str, text: str) -> None:
        """Load that page until it has this text."""
        deadline = time.monotonic() + support.DEADLINE
        while text not in self.ask('get', path):
            if time.monotonic() > deadline:
                raise AssertionError(f'no {text!r} in the page of {path!r}')

    def _read(self, end: str) -> str:
        assert self._process.stdout is not None
        text = ''
        for line in self._process.stdout:
            text += line
            if end in line:
                return text
        raise AssertionError(f'the web process has ended: {text}')

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()
