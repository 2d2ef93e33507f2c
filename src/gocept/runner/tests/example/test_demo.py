"""The demo of the example, and the search."""

import contextlib
import io
import os
import pathlib
import shlex
import signal
import sys
import types
import unittest.mock

import transaction
import ZODB
from ZODB.FileStorage import FileStorage

from gocept.runner import errors
from gocept.runner.boot import environment
from gocept.runner.example import demo, worker
from gocept.runner.tests.example.test_worker import CONVERTER, TestCase
from gocept.runner.tests.support import end_background


class DemoTest(TestCase):
    """The two scripts, with the tree in place of the standard library."""

    def setUp(self):
        super().setUp()
        self.addCleanup(end_background)
        self.write_files(
            a='parse the http header', b='other',
            c='parse a long text without any http in the header, or so')
        self.enterContext(contextlib.chdir(self.dir))
        manual = self.dir / 'manual'
        manual.mkdir()
        (manual / 'd.rst').write_text('A *worker*, a principal and a signal')
        self.enterContext(unittest.mock.patch.object(
            demo, 'MANUAL', manual))
        script = self.dir / 'bin' / 'demo-converter'
        script.parent.mkdir()
        script.write_text(f'#!/bin/sh\nexec {shlex.join(CONVERTER)}\n')
        script.chmod(0o755)
        self.enterContext(unittest.mock.patch.object(
            sys, 'argv', [str(script.with_name('demo'))]))
        self.enterContext(unittest.mock.patch.object(
            demo, 'sysconfig', types.SimpleNamespace(
                get_path=lambda name: str(self.dir / {
                    'stdlib': 'tree'}[name]))))

    def run_script(self, function, *argv):
        """Its status, standard output and standard error."""
        output, error = io.StringIO(), io.StringIO()
        with (contextlib.redirect_stdout(output),
              contextlib.redirect_stderr(error)):
            try:
                status = function(list(argv))
            except SystemExit as end:
                status = end.code
                if isinstance(status, str):  # what Python itself does then
                    print(status, file=sys.stderr)
                    status = 1
        return status, output.getvalue(), error.getvalue()

    def demo(self):
        return self.run_script(demo.demo)

    def search(self, *argv):
        with self.assertPutBack():
            return self.run_script(demo.search, *argv)

    def test_indexes_and_answers_a_query(self):
        status, output, error = self.demo()
        self.assertEqual(0, status)
        self.assertTrue(error.endswith('4 of 4 files are indexed\n'), error)
        self.assertIn(f'Indexing {self.tree}\nand {self.dir}/manual\n',
                      output)
        self.assertIn('up to date: 4 files, ', output)
        self.assertIn('\n1 of the files are reStructuredText', output)
        self.assertIn('found 4 new, 0 changed and 0 gone, in ', output)
        best, second = (self.tree / name for name in ('a.py', 'c.py'))
        self.assertRegex(
            output, '"parse http header", best first:\n'
            rf'  [01]\.\d\d  {best}\n  [01]\.\d\d  {second}\n\n')
        self.assertRegex(
            output, '"worker signal principal", best first:\n'
            rf'  [01]\.\d\d  {self.dir}/manual/d.rst\n\n')
        self.assertIn('bin/demo-search WORD', output)
        self.assertIn('rm -r var/Data.fs*; python3 bootstrap.py demo', output)
        self.assertIn('(as zope.mgr)', (self.dir / demo.LOG).read_text())

    def test_another_run_finds_what_has_changed(self):
        self.demo()
        status, output, _ = self.demo()
        self.assertEqual(0, status)
        self.assertIn('found 0 new, 0 changed and 0 gone, in ', output)
        self.write_files(b='another', d='new')
        (self.tree / 'a.py').unlink()
        status, output, _ = self.demo()
        self.assertEqual(0, status)
        self.assertIn('up to date: 4 files, ', output)
        self.assertIn('found 1 new, 1 changed and 1 gone, in ', output)

    def test_writes_its_zope_conf_anew(self):
        # That of an earlier version may name files that are gone.
        demo.CONF.parent.mkdir()
        demo.CONF.write_text('site-definition /gone/example.zcml\n')
        self.assertEqual(0, self.demo()[0])
        self.assertNotIn('gone', demo.CONF.read_text())

    def test_adds_up_the_batches(self):
        self.batch(1)
        _, output, _ = self.demo()
        self.assertIn('found 4 new, 0 changed and 0 gone, in ', output)

    def test_shows_few_lines_where_there_is_no_terminal(self):
        output = io.StringIO()
        with contextlib.redirect_stderr(output), demo.Progress() as report:
            for left in range(714, -1, -20):
                report(worker.Changes(20, 0, 0, left=left, found=734))
            report(worker.Changes(14, 0, 0, left=0, found=734))
        self.assertEqual('500 of 734 files are indexed\n', output.getvalue())

    def test_shows_a_bar_on_a_terminal(self):
        self.batch(2)
        shown = self.shown_on_terminal()
        # On a very busy machine, one file takes more than a second.
        speed = r'\[.*(files/s|s/ files)\]'
        self.assertRegex(shown, rf' 75%\|.*\| 3/4 {speed}')
        self.assertRegex(shown, rf'100%\|.*\| 4/4 {speed}')
        self.assertNotIn('files are indexed', shown)

    def shown_on_terminal(self):
        master, slave = os.openpty()
        with (open(master, 'rb', buffering=0) as screen,
              open(slave, 'w', encoding='utf-8') as terminal):
            with (contextlib.redirect_stderr(terminal),
                  contextlib.redirect_stdout(io.StringIO())):
                demo.demo([])
            print('THE END', file=terminal, flush=True)
            shown = b''
            while b'THE END' not in shown:
                shown += screen.read(4096)
        return shown.decode()

    def test_the_bar_starts_where_the_last_run_ended(self):
        self.batch(1)
        self.on_read(lambda path: signal.raise_signal(signal.SIGINT))
        self.demo()
        shown = self.shown_on_terminal()
        self.assertNotIn(' 1/4 [', shown)
        self.assertIn(' 3/4 [', shown)

    def test_its_speed_is_that_of_this_run(self):
        with (contextlib.redirect_stderr(io.StringIO()),
              demo.Progress() as report):
            report(worker.Changes(20, 0, 0, left=500, found=734))
            report(worker.Changes(20, 0, 0, left=480, found=734))
        self.assertEqual(214, report.initial)
        self.assertEqual(254, report.n)

    def test_an_interrupted_run_is_continued(self):
        self.batch(1)
        self.on_read(lambda path: signal.raise_signal(signal.SIGINT))
        status, output, _ = self.demo()
        self.assertEqual(errors.INTERRUPTED, status)
        self.assertTrue(output.endswith(
            'Interrupted. The next run goes on from here.\n'), output)
        self.assertEqual(0, self.search('parse')[0])
        self.assertEqual(1, self.search('other')[0])
        status, output, _ = self.demo()
        self.assertEqual(0, status)
        self.assertIn('found 3 new, 0 changed and 0 gone, in ', output)

    def test_it_can_be_interrupted_while_it_starts(self):
        with unittest.mock.patch('gocept.runner.boot.zopeconf.load',
                                 side_effect=KeyboardInterrupt):
            status, output, _ = self.demo()
        self.assertEqual(errors.INTERRUPTED, status)
        self.assertIn('Interrupted.', output)

    def test_two_demos_do_not_run_at_the_same_time(self):
        self.demo()
        with contextlib.closing(FileStorage(str(demo.DATABASE))):
            status, _, error = self.demo()
        self.assertEqual(1, status)
        self.assertEqual('demo: var/Data.fs is in use: another demo is '
                         'running', error.splitlines()[-1])

    def test_search_ranks_files(self):
        self.demo()
        status, output, error = self.search('http', 'parse')
        self.assertEqual((0, ''), (status, error))
        self.assertEqual(
            [str(self.tree / name) for name in ('a.py', 'c.py')],
            [line.split()[1] for line in output.splitlines()])
        scores = [float(line.split()[0]) for line in output.splitlines()]
        self.assertGreater(scores[0], scores[1])
        _, output, _ = self.search('http', 'not', 'long')
        self.assertEqual(1, len(output.splitlines()))
        _, output, _ = self.search('"long text"', 'or', 'oth*')
        self.assertEqual(2, len(output.splitlines()))

    def test_search_shows_the_best(self):
        self.write_files(**{f'f{number}': 'many' for number in range(12)})
        self.demo()
        _, output, _ = self.search('many')
        self.assertEqual(10 + 1, len(output.splitlines()))
        self.assertEqual('  and 2 more', output.splitlines()[-1])

    def test_search_without_words_shows_the_usage(self):
        status, _, error = self.search()
        self.assertEqual(errors.BAD_USAGE, status)
        self.assertIn('usage:', error)
        status, output, _ = self.search('--help')
        self.assertEqual(0, status)
        self.assertIn('best first', output)

    def test_search_for_what_makes_no_sense(self):
        self.demo()
        for expected, queries in {
                demo.NO_WORDS: ('', ' ', 'the', 'the a', '*', '?', '*a', '"',
                                '""', '"the"', "'", '...', '()', '\udcff'),
                demo.NO_QUERY: ('or', 'parse and', '(parse', '-parse',
                                'not parse', 'parse or or http')}.items():
            for query in queries:
                with self.subTest(query):
                    self.assertEqual(
                        (errors.BAD_USAGE, '', expected + '\n'),
                        self.search('--', query))

    def test_search_for_words_among_signs(self):
        self.demo()
        for query in '"parse', 'parse *', 'parse... http!', 'parse or the':
            with self.subTest(query):
                self.assertEqual(0, self.search('--', query)[0])

    def test_search_without_a_match(self):
        self.demo()
        for query in 'nowhere', 'parse nowhere', 'nowh*', 'caf\xe9':
            self.assertEqual((1, '', f'No file fits: {query}\n'),
                             self.search(query))

    def test_search_without_an_index_makes_none(self):
        expected = (
            1, '', f'There is no index in {self.dir}/var/Data.fs yet; '
            'python3 bootstrap.py demo makes one.\n')
        self.assertEqual(expected, self.search('parse'))
        self.assertFalse(demo.DATABASE.parent.exists())
        # As while the demo starts: first there is no root, then no catalog.
        demo.DATABASE.parent.mkdir()
        demo.DATABASE.write_bytes(b'')
        self.assertEqual(expected, self.search('parse'))
        self.assertEqual(0, demo.DATABASE.stat().st_size)
        with contextlib.closing(ZODB.DB(str(demo.DATABASE))):
            pass
        self.assertEqual(expected, self.search('parse'))

    def test_search_while_the_demo_runs(self):
        self.batch(1)
        self.demo()
        files = sorted(os.listdir('var'))
        with (contextlib.closing(ZODB.DB(str(demo.DATABASE))) as database,
              contextlib.closing(database.open()) as connection):
            connection.root()[environment.APPLICATION]['catalog'].remove(
                str(self.tree / 'a.py'))
            transaction.savepoint()
            self.assertEqual(0, self.search('parse')[0])
            transaction.abort()
        self.assertEqual(files, sorted(os.listdir('var')))

    def test_search_shows_a_name_that_cannot_be_encoded(self):
        path = pathlib.Path(os.fsdecode(
            os.fsencode(self.tree) + b'/caf\xe9.py'))
        path.write_text('coffee')
        self.demo()
        with io.TextIOWrapper(io.BytesIO(), encoding='utf-8') as output:
            with contextlib.redirect_stdout(output):
                self.assertEqual(0, demo.search(['coffee']))
            output.flush()
            self.assertIn(rb'/caf\udce9.py', output.buffer.getvalue())
