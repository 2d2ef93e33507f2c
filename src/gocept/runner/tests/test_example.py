"""The worker of the example, its demo, and the search."""

import contextlib
import errno
import io
import os
import pathlib
import signal
import sys
import types
import unittest.mock

import transaction
import ZODB
from ZODB.FileStorage import FileStorage

from gocept.runner import errors, example, runner
from gocept.runner.tests import support


class TestCase(support.TestCase):
    """A tree of files, and a zope.conf for a catalog of it."""

    def setUp(self):
        super().setUp()
        self.tree = self.dir / 'tree'
        self.tree.mkdir()
        self.conf = self.zope_conf()

    def write_files(self, **texts):
        for name, text in texts.items():
            (self.tree / f'{name}.py').write_text(text)

    def batch(self, size):
        """Let the batches have `size` files."""
        self.enterContext(unittest.mock.patch.object(example, 'BATCH', size))

    def on_read(self, action):
        """Let the first reading of a file call `action` with its path."""
        read = example.read

        def acting(path):
            patch.stop()
            action(path)
            return read(path)
        patch = unittest.mock.patch.object(example, 'read', acting)
        patch.start()
        self.addCleanup(unittest.mock.patch.stopall)

    def fill(self):
        """Run the worker until its end; returns what it reported."""
        reports = []
        example.fill(None, self.conf, str(self.tree), reports.append)
        return reports

    def names(self, hits):
        return [os.path.relpath(path, self.tree) for _, path in hits]

    def search(self, query):
        """The names of the files that the database finds."""
        with runner.init(None, self.conf) as site:
            return self.names(site['catalog'].search(query))

    def contents(self):
        """What the database knows: for each file its words."""
        with runner.init(None, self.conf) as site:
            return words(site['catalog'])


def words(catalog):
    """For each file its words, the way the text index has them."""
    text = catalog._text
    result = {}
    for path, (docid, _) in catalog._entries.items():
        assert catalog._paths[docid] == path
        result[os.path.basename(path)] = [
            text.lexicon.get_word(wid) for wid in text.index.get_words(docid)]
    assert text.documentCount() == len(catalog._paths) == len(result)
    return result


class UpdateTest(TestCase):
    """What a batch does, with a catalog in memory."""

    def setUp(self):
        super().setUp()
        self.catalog = example.Catalog()

    def update(self):
        return example.update(self.catalog, str(self.tree))

    def found(self, query):
        return self.names(self.catalog.search(query))

    def test_finds_what_is_new_changed_and_gone(self):
        self.write_files(a='alpha', b='beta', c='gamma')
        self.assertEqual((3, 0, 0, 0, 3), self.update())
        self.write_files(b='other', d='delta')
        (self.tree / 'a.py').unlink()
        self.assertEqual((1, 1, 1, 0, 3), self.update())
        self.assertEqual((0, 0, 0, 0, 3), self.update())
        self.assertEqual(
            {'b.py': ['other'], 'c.py': ['gamma'], 'd.py': ['delta']},
            words(self.catalog))
        self.assertEqual([], self.found('alpha or beta'))

    def test_a_batch_is_limited(self):
        self.batch(2)
        self.write_files(a='alpha', b='beta', c='gamma')
        self.assertEqual((2, 0, 0, 1, 3), self.update())
        self.assertEqual(['a.py', 'b.py'], sorted(words(self.catalog)))
        (self.tree / 'a.py').unlink()
        (self.tree / 'b.py').unlink()
        self.assertEqual((0, 0, 2, 1, 1), self.update())
        self.assertEqual((1, 0, 0, 0, 1), self.update())

    def test_says_what_it_did(self):
        self.assertEqual(
            'Indexed 45 files (30 new, 15 changed), removed 5; 1203 to go',
            str(example.Changes(30, 15, 5, left=1203, found=1500)))

    def test_the_best_file_comes_first(self):
        self.write_files(a='rare ' + 'common ' * 9, b='rare ' * 5,
                         c='rare common', d='else')
        self.update()
        self.assertEqual(['b.py', 'c.py', 'a.py'], self.found('rare'))
        scores = [score for score, _ in self.catalog.search('rare')]
        self.assertEqual(sorted(scores, reverse=True), scores)
        self.assertEqual(['c.py', 'a.py'], self.found('rare common'))

    def test_an_empty_catalog_finds_nothing(self):
        self.assertEqual((0, 0, 0, 0, 0), self.update())
        self.assertEqual([], self.found('alpha'))
        self.write_files(a='alpha', b='')
        self.update()
        for path in self.tree.iterdir():
            path.unlink()
        self.update()
        self.assertEqual([], self.found('alpha'))

    def test_leaves_out_other_files_and_tests(self):
        for name in ('a.py', 'b.txt', 'sub/c.py', 'test/d.py',
                     'sub/tests/e.py', '__pycache__/f.py',
                     'site-packages/g.py', 'testing/h.py'):
            path = self.tree / name
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_text('word')
        self.update()
        self.assertEqual(['a.py', 'sub/c.py', 'testing/h.py'],
                         self.found('word'))

    def test_leaves_out_what_would_block(self):
        os.mkfifo(self.tree / 'fifo.py')
        (self.tree / 'zero.py').symlink_to('/dev/zero')
        (self.tree / 'broken.py').symlink_to('nowhere')
        (self.tree / 'loop.py').symlink_to('.')
        self.assertEqual({}, example.scan(str(self.tree)))

    def test_indexes_what_is_text_in_other_files(self):
        (self.tree / 'binary.py').write_bytes(
            bytes(range(256)) + b' alpha \0\0 beta ' + bytes(range(256)))
        (self.tree / 'latin1.py').write_bytes('caf\xe9 gamma'.encode('latin1'))
        (self.tree / 'utf16.py').write_text('delta', encoding='utf-16')
        self.assertEqual(3, self.update().new)
        self.assertEqual(['binary.py'], self.found('alpha beta'))
        self.assertEqual(['latin1.py'], self.found('gamma'))

    def test_another_text_of_the_same_size_and_mtime_is_noticed(self):
        self.write_files(a='alpha')
        self.update()
        path = self.tree / 'a.py'
        before = path.stat()
        # The clock of the file system may be a coarse one.
        while path.stat().st_ctime_ns == before.st_ctime_ns:
            path.write_text('gamma')
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        self.assertEqual(before.st_mtime_ns, path.stat().st_mtime_ns)
        self.assertEqual(1, self.update().changed)
        self.assertEqual(['a.py'], self.found('gamma'))

    def test_a_file_may_vanish_before_it_is_read(self):
        self.write_files(a='alpha', b='beta')
        self.on_read(os.unlink)
        with self.assertLogs(example.log) as logged:
            self.assertEqual(2, self.update().new)
        self.assertIn('a.py', logged.output[0])
        self.assertEqual(['b.py'], self.found('beta'))
        self.assertEqual((0, 0, 1, 0, 1), self.update())

    def test_an_unreadable_file_is_reported_once(self):
        self.write_files(a='alpha', b='beta', c='gamma')
        path = self.tree / 'b.py'
        path.chmod(0)
        with self.unprivileged(), self.assertLogs(example.log) as logged:
            self.assertEqual((3, 0, 0, 0, 3), self.update())
        [line] = logged.output
        self.assertIn(f"Cannot read '{path}': Permission denied", line)
        self.assertEqual(['a.py', 'c.py'], self.found('alpha or gamma'))
        with self.unprivileged(), self.assertNoLogs(example.log):
            self.assertEqual((0, 0, 0, 0, 3), self.update())
        self.make_readable(path, 0o644)
        with self.unprivileged():
            self.assertEqual((0, 1, 0, 0, 3), self.update())
        self.assertEqual(['b.py'], self.found('beta'))

    def test_an_unreadable_directory_is_reported_once(self):
        self.write_files(a='alpha')
        path = self.tree / 'sub'
        path.mkdir()
        (path / 'b.py').write_text('beta')
        path.chmod(0)
        with self.unprivileged(), self.assertLogs(example.log) as logged:
            self.update()
        [line] = logged.output
        self.assertIn(f"Cannot read '{path}'", line)
        self.assertEqual(['a.py'], self.found('alpha'))
        with self.unprivileged(), self.assertNoLogs(example.log):
            self.assertEqual((0, 0, 0, 0, 2), self.update())
        self.make_readable(path, 0o755)
        with self.unprivileged():
            self.update()
        self.assertEqual(['sub/b.py'], self.found('beta'))
        self.assertEqual(['a.py', 'b.py'], sorted(words(self.catalog)))

    def test_a_lost_tree_does_not_empty_the_catalog(self):
        self.write_files(a='alpha')
        self.update()
        self.tree.rename(self.dir / 'elsewhere')
        with self.assertRaises(FileNotFoundError):
            self.update()
        self.assertEqual(['a.py'], self.found('alpha'))

    def make_readable(self, path, mode):
        before = path.stat().st_ctime_ns
        while path.stat().st_ctime_ns == before:
            path.chmod(mode)

    @contextlib.contextmanager
    def unprivileged(self):
        """Nobody reads everything, other than root."""
        self.dir.chmod(0o755)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)
            yield
        finally:
            os.seteuid(user)


class WorkerTest(TestCase):
    """The worker with its database."""

    def test_keeps_the_database_up_to_date(self):
        self.batch(2)
        self.write_files(a='alpha', b='beta', c='gamma')
        self.assertEqual([(2, 0, 0, 1, 3), (1, 0, 0, 0, 3)], self.fill())
        self.write_files(b='other', d='delta')
        (self.tree / 'a.py').unlink()
        self.assertEqual([(0, 1, 1, 1, 3), (1, 0, 0, 0, 3)], self.fill())
        self.assertEqual([(0, 0, 0, 0, 3)], self.fill())
        self.assertEqual(
            {'b.py': ['other'], 'c.py': ['gamma'], 'd.py': ['delta']},
            self.contents())
        self.assertEqual(['b.py'], self.search('other'))

    def test_says_in_log_and_database_what_it_did(self):
        self.write_files(a='alpha')
        with self.assertLogs(example.log) as logged:
            self.fill()
        did = 'Indexed 1 files (1 new, 0 changed), removed 0; 0 to go'
        self.assertEqual(
            [f'INFO:gocept.runner.example:{did} (as zope.mgr)'],
            logged.output)
        with (contextlib.closing(FileStorage(
                str(self.dir / 'Data.fs'), read_only=True)) as storage,
              contextlib.closing(storage.iterator()) as transactions):
            last = list(transactions)[-1]
        self.assertEqual((b'/ zope.mgr', did.encode()),
                         (last.user, last.description))

    def test_does_not_sleep_before_all_is_done(self):
        self.batch(1)
        self.write_files(a='alpha', b='beta', c='gamma')
        with unittest.mock.patch('gocept.runner.signals.Shutdown.wait') as no:
            self.assertEqual(3, len(self.fill()))
        no.assert_not_called()

    def test_an_idle_tick_writes_nothing(self):
        self.write_files(a='alpha')
        self.fill()
        size = os.path.getsize(self.dir / 'Data.fs')
        with self.assertNoLogs(example.log):
            self.fill()
        self.assertEqual(size, os.path.getsize(self.dir / 'Data.fs'))

    def test_a_tick_with_a_conflict_loses_nothing(self):
        self.batch(2)
        self.write_files(a='alpha')
        self.fill()
        self.write_files(b='beta', c='gamma', d='delta')

        def intrude(path):
            database = example.getSite()._p_jar.db()
            with database.transaction() as connection:
                root = connection.root()[example.APPLICATION]
                root['catalog'].put('/intruder', (0, 0), 'intruder')

        self.on_read(intrude)
        with self.assertLogs('gocept.runner.transaction') as logged:
            reports = self.fill()
        self.assertIn('Conflict error in attempt 1', logged.output[0])
        # The intruder is on no disk, so it is removed in the second attempt.
        self.assertEqual([(1, 0, 1, 2, 4), (2, 0, 0, 0, 4)], reports)
        self.assertEqual(
            {'a.py': ['alpha'], 'b.py': ['beta'], 'c.py': ['gamma'],
             'd.py': ['delta']}, self.contents())

    def test_a_tick_that_failed_loses_nothing(self):
        self.batch(2)
        self.write_files(a='alpha')
        self.fill()
        self.write_files(b='beta', c='gamma', d='delta')

        errors = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))]
        vote = FileStorage.tpc_vote

        def fail_once(storage, txn):
            if errors:
                raise errors.pop()
            return vote(storage, txn)

        self.enterContext(unittest.mock.patch.object(
            FileStorage, 'tpc_vote', fail_once))
        with self.assertLogs('gocept.runner.runner', 'ERROR') as logged:
            reports = self.fill()
        [line] = logged.output
        self.assertIn('No space left on device', line)
        self.assertEqual([(2, 0, 0, 1, 4), (1, 0, 0, 0, 4)], reports)
        self.assertEqual(['b.py', 'c.py', 'd.py'],
                         sorted(self.search('beta or gamma or delta')))

    def test_runs_until_a_signal_ends_it(self):
        self.write_files(a='alpha')
        program = self.program('''
            import sys
            from gocept.runner.example import index_tree
            sys.exit(index_tree())
            ''', '--config', self.zope_conf(''), '--ticks', '0.01', '--',
            str(self.tree))
        program.wait_for('(1 new, 0 changed), removed 0; 0 to go')
        self.write_files(b='beta')
        program.wait_for('removed 0; 0 to go')
        (self.tree / 'a.py').unlink()
        program.wait_for('removed 1; 0 to go')
        program.send(signal.SIGTERM)
        self.assertEqual(errors.SUCCESS, program.end(), program.output)
        self.assertEqual({'b.py': ['beta']}, self.contents())


class KilledTest(TestCase):
    """A run is killed, at the worst moments; the next one goes on."""

    FILES = {name: f'{name * 3} common {name * 4}' for name in 'abcdefg'}

    def killed(self, function, calls):
        """Kill a run, with batches of 2, at a call of a function."""
        self.write_files(**self.FILES)
        program = self.program(f'''
            import os, signal
            from ZODB.FileStorage import FileStorage
            from gocept.runner import example

            calls = 0

            def killed(*args):
                global calls
                calls += 1
                if calls == {calls}:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args)

            example.BATCH = 2
            original = {function}
            {function} = killed
            example.fill(None, {self.conf!r}, {str(self.tree)!r}, print)
            ''')
        self.assertEqual(-signal.SIGKILL, program.end(), program.output)

    def assertGoesOn(self, done):
        """The next run does all but the files in `done`."""
        self.assertEqual(sorted(done), sorted(self.contents()))
        self.assertEqual(len(self.FILES) - len(done),
                         sum(changes.new for changes in self.fill()))
        actual = self.contents()
        os.unlink(self.dir / 'Data.fs')
        os.unlink(self.dir / 'Data.fs.index')
        self.fill()
        self.assertEqual(self.contents(), actual)
        self.assertEqual(len(self.FILES), len(actual))

    def test_while_it_indexes(self):
        self.killed('example.read', calls=4)
        self.assertGoesOn(['a.py', 'b.py'])

    def test_before_a_commit_is_written(self):
        # The first two commits make the root and the root folder.
        self.killed('FileStorage.tpc_vote', calls=4)
        self.assertGoesOn(['a.py', 'b.py'])

    def test_before_a_commit_is_finished(self):
        self.killed('FileStorage._finish', calls=4)
        self.assertGoesOn(['a.py', 'b.py'])


class DemoTest(TestCase):
    """The two scripts, with the tree in place of the standard library."""

    def setUp(self):
        super().setUp()
        self.write_files(
            a='parse the http header', b='other',
            c='parse a long text without any http in the header, or so')
        self.enterContext(contextlib.chdir(self.dir))
        self.enterContext(unittest.mock.patch.object(
            example, 'sysconfig', types.SimpleNamespace(
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
        return self.run_script(example.demo)

    def search(self, *argv):
        with self.assertPutBack():
            return self.run_script(example.search, *argv)

    def test_indexes_and_answers_a_query(self):
        status, output, error = self.demo()
        self.assertEqual(0, status)
        self.assertEqual('3 of 3 files are indexed\n', error)
        self.assertIn(f'Indexing {self.tree}\n', output)
        self.assertIn('up to date: 3 files, ', output)
        self.assertIn('found 3 new, 0 changed and 0 gone, in ', output)
        best, second = (self.tree / name for name in ('a.py', 'c.py'))
        self.assertRegex(
            output, '"parse http header", best first:\n'
            rf'  [01]\.\d\d  {best}\n  [01]\.\d\d  {second}\n\n')
        self.assertIn('bin/demo-search WORD', output)
        self.assertIn('rm var/Data.fs*; python3 bootstrap.py demo', output)
        self.assertIn('(as zope.mgr)', (self.dir / example.LOG).read_text())

    def test_another_run_finds_what_has_changed(self):
        self.demo()
        status, output, _ = self.demo()
        self.assertEqual(0, status)
        self.assertIn('found 0 new, 0 changed and 0 gone, in ', output)
        self.write_files(b='another', d='new')
        (self.tree / 'a.py').unlink()
        status, output, _ = self.demo()
        self.assertEqual(0, status)
        self.assertIn('up to date: 3 files, ', output)
        self.assertIn('found 1 new, 1 changed and 1 gone, in ', output)

    def test_keeps_its_zope_conf(self):
        example.CONF.parent.mkdir()
        example.CONF.write_text('<zodb>\n<mappingstorage>\n'
                                '</mappingstorage>\n</zodb>\n')
        with self.assertRaises(FileNotFoundError):  # there is no var/Data.fs
            self.demo()
        self.assertIn('mappingstorage', example.CONF.read_text())

    def test_adds_up_the_batches(self):
        self.batch(1)
        _, output, _ = self.demo()
        self.assertIn('found 3 new, 0 changed and 0 gone, in ', output)

    def test_shows_few_lines_where_there_is_no_terminal(self):
        output = io.StringIO()
        with contextlib.redirect_stderr(output), example.Progress() as report:
            for left in range(714, -1, -20):
                report(example.Changes(20, 0, 0, left=left, found=734))
            report(example.Changes(14, 0, 0, left=0, found=734))
        self.assertEqual('500 of 734 files are indexed\n', output.getvalue())

    def test_shows_a_bar_on_a_terminal(self):
        self.batch(2)
        shown = self.shown_on_terminal()
        self.assertRegex(shown, r' 67%\|.*\| 2/3 \[.*files/s\]')
        self.assertRegex(shown, r'100%\|.*\| 3/3 \[.*files/s\]')
        self.assertNotIn('files are indexed', shown)

    def shown_on_terminal(self):
        master, slave = os.openpty()
        with (open(master, 'rb', buffering=0) as screen,
              open(slave, 'w', encoding='utf-8') as terminal):
            with (contextlib.redirect_stderr(terminal),
                  contextlib.redirect_stdout(io.StringIO())):
                example.demo([])
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
        self.assertNotIn(' 1/3 [', shown)
        self.assertIn(' 2/3 [', shown)

    def test_its_speed_is_that_of_this_run(self):
        with (contextlib.redirect_stderr(io.StringIO()),
              example.Progress() as report):
            report(example.Changes(20, 0, 0, left=500, found=734))
            report(example.Changes(20, 0, 0, left=480, found=734))
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
        self.assertIn('found 2 new, 0 changed and 0 gone, in ', output)

    def test_it_can_be_interrupted_while_it_starts(self):
        with unittest.mock.patch('gocept.runner.environment.load',
                                 side_effect=KeyboardInterrupt):
            status, output, _ = self.demo()
        self.assertEqual(errors.INTERRUPTED, status)
        self.assertIn('Interrupted.', output)

    def test_two_demos_do_not_run_at_the_same_time(self):
        self.demo()
        with contextlib.closing(FileStorage(str(example.DATABASE))):
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
        for query in ('the', 'or', '(parse', '-parse'):
            with self.subTest(query):
                status, output, error = self.search('--', query)
                self.assertEqual((errors.BAD_USAGE, ''), (status, output))
                self.assertIn('error: ', error)

    def test_search_without_a_match(self):
        self.demo()
        self.assertEqual((1, '', 'No file fits: nowhere\n'),
                         self.search('nowhere'))

    def test_search_without_an_index_makes_none(self):
        expected = (
            1, '', f'There is no index in {self.dir}/var/Data.fs yet; '
            'python3 bootstrap.py demo makes one.\n')
        self.assertEqual(expected, self.search('parse'))
        self.assertFalse(example.DATABASE.parent.exists())
        # As while the demo starts: first there is no root, then no catalog.
        example.DATABASE.parent.mkdir()
        example.DATABASE.write_bytes(b'')
        self.assertEqual(expected, self.search('parse'))
        self.assertEqual(0, example.DATABASE.stat().st_size)
        with contextlib.closing(ZODB.DB(str(example.DATABASE))):
            pass
        self.assertEqual(expected, self.search('parse'))

    def test_search_while_the_demo_runs(self):
        self.batch(1)
        self.demo()
        files = sorted(os.listdir('var'))
        with (contextlib.closing(ZODB.DB(str(example.DATABASE))) as database,
              contextlib.closing(database.open()) as connection):
            connection.root()[example.APPLICATION]['catalog'].remove(
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
                self.assertEqual(0, example.search(['coffee']))
            output.flush()
            self.assertIn(rb'/caf\udce9.py', output.buffer.getvalue())
