"""The worker of the example, and its converter."""

import contextlib
import errno
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import unittest.mock

import transaction
import ZODB
from ZODB.FileStorage import FileStorage
from zope.component import getUtility

from gocept.runner import errors
from gocept.runner.boot import environment
from gocept.runner.example import converter, worker
from gocept.runner.interfaces import IRunner
from gocept.runner.signals import shutdown
from gocept.runner.testing import fake_children, runner_config
from gocept.runner.tests import support

ZCML = pathlib.Path(worker.__file__).with_name('example.zcml')

# The child has the environment of the worker, which in a test is this process.
CONVERTER = ['env', 'PYTHONPATH=' + os.pathsep.join(filter(None, sys.path)),
             sys.executable, '-m', 'gocept.runner.example.converter']


class TestCase(support.TestCase):
    """A tree of files, and a zope.conf for a catalog of it."""

    def setUp(self):
        super().setUp()
        self.addCleanup(support.end_background)
        self.tree = self.dir / 'tree'
        self.tree.mkdir()
        self.config = self.configure()
        self.database = self.config.directory / 'Data.fs'

    def configure(self, converter=shlex.join(CONVERTER), zcml=ZCML):
        return self.enterContext(runner_config(
            zcml=zcml, product_config={'example': {'converter': converter}}))

    def write_files(self, **texts):
        for name, text in texts.items():
            (self.tree / f'{name}.py').write_text(text)

    def batch(self, size):
        """Let the batches have `size` files."""
        self.enterContext(unittest.mock.patch.object(worker, 'BATCH', size))

    def on_read(self, action):
        """Let the first reading of a file call `action` with its path."""
        read = worker.read

        def acting(path):
            patch.stop()
            action(path)
            return read(path)
        patch = unittest.mock.patch.object(worker, 'read', acting)
        patch.start()
        self.addCleanup(unittest.mock.patch.stopall)

    def fill(self):
        """Run the worker until its end; returns what it reported.

        That is without the number of files that are waited for.
        """
        reports = []
        self.config.run(worker.fill, [str(self.tree)], reports.append)
        return [changes[:5] for changes in reports]

    def names(self, hits):
        return [os.path.relpath(path, self.tree) for _, path in hits]

    def search(self, query):
        """The names of the files that the database finds."""
        with self.config.site() as site:
            return self.names(site['catalog'].search(query))

    def contents(self):
        """What the database knows: for each file its words."""
        with self.config.site() as site:
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


class FakeConverter:
    """Has the texts that a test gives it."""

    def __init__(self, tree):
        self.tree = tree
        self.texts = {}
        self.asked = []

    def fetch(self, requests):
        stamps = worker.scan(str(self.tree))
        return {path: (stamps[path], text) for path in stamps
                if (text := self.texts.get(os.path.basename(path)))}

    def ask(self, requests, path, stamp):
        self.asked.append(os.path.basename(path))


class UpdateTest(TestCase):
    """What a batch does, with a catalog in memory."""

    def setUp(self):
        super().setUp()
        self.catalog = worker.Catalog()
        self.converter = FakeConverter(self.tree)

    def update(self, *more):
        self.changes = worker.update(
            self.catalog, worker.Requests(), [str(self.tree), *more],
            self.converter)
        return self.changes[:5]

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
            str(worker.Changes(30, 15, 5, left=1203, found=1500)))

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

    def test_waits_for_the_converter(self):
        self.write_files(a='alpha', d='delta')
        for name in 'bc':
            (self.tree / f'{name}.rst').write_text('markup')
        self.converter.texts['c.rst'] = 'gamma'
        self.update()
        self.assertEqual((3, 0, 0, 1, 4, 1), self.changes)
        self.assertEqual(['b.rst'], self.converter.asked)
        self.converter.texts['b.rst'] = 'beta'
        self.assertEqual((1, 0, 0, 0, 4), self.update())
        self.assertEqual((0, 0, 0, 0, 4), self.update())
        self.assertEqual(
            {'a.py': ['alpha'], 'b.rst': ['beta'], 'c.rst': ['gamma'],
             'd.py': ['delta']}, words(self.catalog))

    def test_all_texts_that_have_come_are_stored(self):
        self.batch(2)
        self.write_files(a='alpha', b='beta')
        for name in 'xyz':
            (self.tree / f'{name}.rst').write_text('markup')
            self.converter.texts[f'{name}.rst'] = name * 3
        self.assertEqual((5, 0, 0, 0, 5), self.update())

    def test_a_text_of_another_version_is_not_stored(self):
        (self.tree / 'a.rst').write_text('markup')
        self.converter.fetch = lambda requests: {
            str(self.tree / 'a.rst'): ((1, 2), 'old')}
        self.assertEqual((0, 0, 0, 1, 1), self.update())
        self.assertEqual(['a.rst'], self.converter.asked)

    def test_a_batch_is_filled_while_others_wait(self):
        self.batch(2)
        self.write_files(x='alpha', y='beta', z='gamma')
        (self.tree / 'a.rst').write_text('markup')
        self.update()
        self.assertEqual((2, 0, 0, 2, 4, 1), self.changes)
        (self.tree / 'a.rst').unlink()
        self.assertEqual((1, 0, 0, 0, 3), self.update())

    def test_indexes_several_directories(self):
        self.write_files(a='alpha')
        other = self.dir / 'other'
        other.mkdir()
        (other / 'b.py').write_text('beta')
        self.assertEqual((2, 0, 0, 0, 2), self.update(str(other)))

    def test_a_directory_that_is_not_named_stays(self):
        self.write_files(a='alpha', b='beta')
        # Their names begin as that of the tree, or end as it begins.
        for name in 'tree2', 'tre', 'tree-1', 'tree0':
            (self.dir / name).mkdir()
            (self.dir / name / 'c.py').write_text('gamma')
            self.update(str(self.dir / name))
        (self.tree / 'a.py').unlink()
        self.assertEqual((0, 0, 1, 0, 1), self.update())
        self.assertEqual(['b.py'], self.found('beta'))
        self.assertEqual(4, len(self.found('gamma')))
        self.assertEqual(5, len(self.catalog.stamps()))
        self.assertEqual(
            [f'{self.tree}/b.py'], [*self.catalog.stamps(f'{self.tree}/')])

    def test_a_mistyped_directory_changes_nothing(self):
        self.write_files(a='alpha')
        self.update()
        self.write_files(a='other')
        for wrong in f'{self.tree}x', f'{self.tree}/a.py/', '':
            with (self.subTest(wrong),
                  self.assertRaises(SystemExit) as raised):
                self.update(wrong)
            self.assertEqual(
                f'There is no directory {wrong!r}, so nothing was changed in '
                'the index.', raised.exception.code)
            self.assertEqual(['a.py'], self.found('alpha'))
        with self.assertRaises(SystemExit) as raised:
            worker.update(self.catalog, worker.Requests(), [], self.converter)
        self.assertIn('No directory was named', raised.exception.code)

    def test_leaves_out_what_would_block(self):
        os.mkfifo(self.tree / 'fifo.py')
        (self.tree / 'zero.py').symlink_to('/dev/zero')
        (self.tree / 'broken.py').symlink_to('nowhere')
        (self.tree / 'loop.py').symlink_to('.')
        self.assertEqual({}, worker.scan(str(self.tree)))

    def test_indexes_what_is_text_in_other_files(self):
        (self.tree / 'binary.py').write_bytes(
            bytes(range(256)) + b' alpha \0\0 beta ' + bytes(range(256)))
        (self.tree / 'latin1.py').write_bytes('caf\xe9 gamma'.encode('latin1'))
        (self.tree / 'utf16.py').write_text('delta', encoding='utf-16')
        self.assertEqual(3, self.update()[0])
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
        self.assertEqual(1, self.update()[1])
        self.assertEqual(['a.py'], self.found('gamma'))

    def test_a_file_may_vanish_before_it_is_read(self):
        self.write_files(a='alpha', b='beta')
        self.on_read(os.unlink)
        with self.assertLogs(worker.log) as logged:
            self.assertEqual(2, self.update()[0])
        self.assertIn('a.py', logged.output[0])
        self.assertEqual(['b.py'], self.found('beta'))
        self.assertEqual((0, 0, 1, 0, 1), self.update())

    def test_an_unreadable_file_is_reported_once(self):
        self.write_files(a='alpha', b='beta', c='gamma')
        path = self.tree / 'b.py'
        path.chmod(0)
        with self.unprivileged(), self.assertLogs(worker.log) as logged:
            self.assertEqual((3, 0, 0, 0, 3), self.update())
        [line] = logged.output
        self.assertIn(f"Cannot read '{path}': Permission denied", line)
        self.assertEqual(['a.py', 'c.py'], self.found('alpha or gamma'))
        with self.unprivileged(), self.assertNoLogs(worker.log):
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
        with self.unprivileged(), self.assertLogs(worker.log) as logged:
            self.update()
        [line] = logged.output
        self.assertIn(f"Cannot read '{path}'", line)
        self.assertEqual(['a.py'], self.found('alpha'))
        with self.unprivileged(), self.assertNoLogs(worker.log):
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
        with self.assertLogs(worker.log) as logged:
            self.fill()
        did = 'Indexed 1 files (1 new, 0 changed), removed 0; 0 to go'
        self.assertEqual(
            [f'INFO:gocept.runner.example:{did} (as zope.mgr)'],
            logged.output)
        with (contextlib.closing(FileStorage(
                str(self.database), read_only=True)) as storage,
              contextlib.closing(storage.iterator()) as transactions):
            last = list(transactions)[-1]
        self.assertEqual((b'/ zope.mgr', f'fill\n{did}'.encode()),
                         (last.user, last.description))

    def test_does_not_sleep_before_all_is_done(self):
        self.batch(1)
        self.write_files(a='alpha', b='beta', c='gamma')
        with unittest.mock.patch.object(
                shutdown.Shutdown, 'pause', autospec=True,
                side_effect=shutdown.Shutdown.pause) as pause:
            self.assertEqual(3, len(self.fill()))
        # The pause between two ticks has a poller and a number of seconds.
        self.assertEqual([], [call for call in pause.call_args_list
                              if len(call.args) > 2
                              and call.args[1] is not None])

    def test_an_idle_tick_writes_nothing(self):
        self.write_files(a='alpha')
        self.fill()
        size = os.path.getsize(self.database)
        with self.assertNoLogs(worker.log):
            self.fill()
        self.assertEqual(size, os.path.getsize(self.database))

    def test_a_tick_with_a_conflict_loses_nothing(self):
        self.batch(2)
        self.write_files(a='alpha')
        self.fill()
        self.write_files(b='beta', c='gamma', d='delta')

        def intrude(path):
            database = worker.getSite()._p_jar.db()
            with database.transaction() as connection:
                root = connection.root()[environment.APPLICATION]
                root['catalog'].put(
                    f'{self.tree}/INTRUDER', (0, 0), 'intruder')

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
            ''', '--config', self.config.path, '--ticks', '0.01', '--',
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
            from gocept.runner.example import worker

            calls = 0

            def killed(*args):
                global calls
                calls += 1
                if calls == {calls}:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args)

            worker.BATCH = 2
            original = {function}
            {function} = killed
            worker.fill(
                None, {self.config.path!r}, [{str(self.tree)!r}], print)
            ''')
        self.assertEqual(-signal.SIGKILL, program.end(), program.output)

    def assertGoesOn(self, done):
        """The next run does all but the files in `done`."""
        self.assertEqual(sorted(done), sorted(self.contents()))
        self.assertEqual(len(self.FILES) - len(done),
                         sum(changes[0] for changes in self.fill()))
        actual = self.contents()
        self.database.unlink()
        self.database.with_suffix('.fs.index').unlink()
        self.fill()
        self.assertEqual(self.contents(), actual)
        self.assertEqual(len(self.FILES), len(actual))

    def test_while_it_indexes(self):
        self.killed('worker.read', calls=4)
        self.assertGoesOn(['a.py', 'b.py'])

    def test_before_a_commit_is_written(self):
        self.killed('FileStorage.tpc_vote', calls=2)
        self.assertGoesOn(['a.py', 'b.py'])

    def test_before_a_commit_is_finished(self):
        self.killed('FileStorage._finish', calls=2)
        self.assertGoesOn(['a.py', 'b.py'])


class ChildTest(support.TestCase):
    """The converter as a program."""

    def answers(self, *paths):
        requests = ''.join(
            json.dumps({'path': str(path), 'stamp': [1, 2]}) + '\n'
            for path in paths)
        done = subprocess.run(
            CONVERTER, input=requests, capture_output=True, text=True,
            timeout=support.DEADLINE, check=True)
        self.assertEqual('', done.stderr)
        ready, *answers = map(json.loads, done.stdout.splitlines())
        self.assertEqual(['ready'], [*ready])
        return answers

    def test_answers_each_request(self):
        a = self.write('a.rst', 'Title\n=====\n\nSome *emphasis* here.\n')
        b = self.write('b.rst', '``literal`` caf\xe9\n')
        self.assertEqual([
            {'path': str(a), 'stamp': [1, 2], 'error': '',
             'text': 'Title\n\nSome emphasis here.'},
            {'path': str(b), 'stamp': [1, 2], 'error': '',
             'text': 'literal caf\xe9'},
        ], self.answers(a, b))

    def test_what_cannot_be_read(self):
        [answer] = self.answers(self.dir / 'missing.rst')
        self.assertEqual('', answer['text'])
        self.assertIn('FileNotFoundError', answer['error'])

    def test_mistakes_in_the_markup_are_ignored(self):
        path = self.write('a.rst', '*open\n\n.. unknown:: directive\n\nend')
        [answer] = self.answers(path)
        self.assertEqual('', answer['error'])
        self.assertIn('end', answer['text'])

    def test_includes_no_other_file(self):
        secret = self.write('secret', 'contents')
        path = self.write('a.rst', f'.. include:: {secret}\n')
        [answer] = self.answers(path)
        self.assertNotIn('contents', answer['text'])

    def test_a_text_is_limited(self):
        with unittest.mock.patch.object(converter, 'LONGEST', 5):
            self.assertEqual('Title', converter.convert('Title and more'))


class ConverterTest(support.TestCase):
    """The worker's side of the conversation."""

    def setUp(self):
        super().setUp()
        self.addCleanup(support.end_background)
        self.is_ready = True
        self.children = self.enterContext(fake_children(
            {'converter': {
                'buffering': 'line', 'encoding': 'utf-8',
                'transactional': True, 'redeliveries': None}},
            on_start=self.greet))
        self.converter = worker.Converter()
        db = ZODB.DB(None)
        self.addCleanup(db.close)
        self.root = db.open().root()
        self.addCleanup(lambda: self.root._p_jar.close())
        self.addCleanup(transaction.abort)
        self.root['requests'] = worker.Requests()
        transaction.commit()
        self.requests = self.root['requests']

    @property
    def child(self):
        return self.children['converter']

    def greet(self, child):
        if self.is_ready:
            self.say(child, ready=child.process.pid)

    def say(self, child, **answer):
        child.put(json.dumps(answer) + '\n')

    def answer(self, path, stamp, text, error=''):
        self.say(self.child, path=path, stamp=stamp, text=text, error=error)

    def asked(self):
        """What the child was asked for since it was looked at last."""
        return [json.loads(line)['path']
                for line in self.child.get().splitlines()]

    def tick(self, *paths, stamp=(1, 2), commit=True):
        """Ask for files, and have what has come."""
        texts = self.converter.fetch(self.requests)
        for path in paths:
            self.converter.ask(self.requests, path, stamp)
        if commit:
            transaction.commit()
        return texts

    def start(self, *paths):
        getUtility(IRunner).ensure_running('converter')
        while self.requests.child != self.child.process.pid:
            self.tick(*paths)

    def test_asks_once_and_has_the_answer_later(self):
        self.start('/a')
        self.assertEqual({}, self.tick('/a', '/b'))
        self.assertEqual(['/a', '/b'], self.asked())
        self.answer('/a', (1, 2), 'alpha')
        self.assertEqual({'/a': ((1, 2), 'alpha')}, self.tick('/b'))
        self.assertEqual({'/b': (1, 2)}, dict(self.requests.asked))
        self.assertEqual([], self.asked())

    def test_one_that_is_not_ready_is_not_asked(self):
        self.is_ready = False
        for _ in range(2):
            self.tick('/a')
        self.assertEqual({}, dict(self.requests.asked))
        self.assertEqual([], self.asked())

    def test_without_a_child_nothing_is_asked(self):
        self.start()
        self.child.end()
        with self.assertLogs(worker.log):
            self.tick()
        self.assertIsNone(getUtility(IRunner).get_channel('converter'))
        self.tick('/a')
        self.assertEqual({}, dict(self.requests.asked))

    def test_an_aborted_tick_asks_nothing_and_loses_nothing(self):
        for _ in range(3):
            self.tick('/a', commit=False)
            self.assertEqual({'/a': (1, 2)}, dict(self.requests.asked))
            transaction.abort()
            self.assertEqual({}, dict(self.requests.asked))
        self.tick('/a')
        self.assertEqual(['/a'], self.asked())
        self.answer('/a', (1, 2), 'alpha')
        for _ in range(3):
            self.assertEqual({'/a': ((1, 2), 'alpha')},
                             self.tick(commit=False))
            transaction.abort()
        self.tick()
        self.assertEqual({}, dict(self.requests.asked))
        self.assertEqual([], self.asked())

    def test_a_file_that_has_changed_is_asked_for_again(self):
        self.start('/a')
        self.tick('/a', stamp=(3, 4))
        self.assertEqual(['/a', '/a'], self.asked())
        self.answer('/a', (1, 2), 'alpha')
        self.assertEqual({'/a': ((1, 2), 'alpha')}, self.tick())
        self.assertEqual({'/a': (3, 4)}, dict(self.requests.asked))
        self.answer('/a', (3, 4), 'other')
        self.assertEqual({'/a': ((3, 4), 'other')}, self.tick())
        self.assertEqual({}, dict(self.requests.asked))

    def test_asks_for_so_many_at_a_time(self):
        self.start()
        self.tick(*map(str, range(worker.ASKED + 1)))
        self.assertEqual(worker.ASKED, len(self.asked()))

    def test_an_error_is_logged(self):
        self.start('/a')
        self.answer('/a', (1, 2), '', 'ValueError: broken')
        with self.assertLogs(worker.log) as logged:
            self.assertEqual({'/a': ((1, 2), '')}, self.tick())
        self.assertIn("Cannot convert '/a': ValueError: broken",
                      logged.output[0])

    def lose(self):
        """End the child; returns the texts, and what was logged."""
        self.child.end()
        texts = {}
        with self.assertLogs(worker.log) as logged:
            while not logged.output:  # first what was said before
                texts |= self.tick()
        return texts, logged.output

    def test_one_that_has_ended_is_asked_again(self):
        self.start('/a', '/b')
        self.answer('/a', (1, 2), 'alpha')
        texts, output = self.lose()
        self.assertEqual({'/a': ((1, 2), 'alpha')}, texts)
        self.assertEqual(
            ['WARNING:gocept.runner.example:The converter has ended'], output)
        self.assertEqual({}, dict(self.requests.asked))
        self.start('/b')
        self.assertEqual(['/b'], self.asked())

    def test_one_that_has_ended_unnoticed(self):
        self.start('/a')
        self.child.end()
        self.converter.ask(self.requests, '/b', (1, 2))
        transaction.commit()
        self.assertEqual({'/a': (1, 2)}, dict(self.requests.asked))

    def test_a_new_one_is_asked_after_the_end_of_the_old_one(self):
        self.start('/a')
        self.child.end()
        with self.assertLogs(worker.log):
            self.start('/a')
        self.assertEqual({'/a': 1}, dict(self.requests.losses))
        self.assertEqual(['/a'], self.asked())

    def test_requests_of_a_run_before_are_forgotten(self):
        self.requests.asked['/a'] = (1, 2)
        self.requests.child = 4711
        self.start('/a')
        self.assertEqual(['/a'], self.asked())

    def test_a_piece_of_an_answer_is_none(self):
        self.start('/a')
        self.child.put('{"path": "/a", ')
        self.assertEqual({}, self.lose()[0])

    def test_what_it_does_not_survive_is_given_up(self):
        for number in range(worker.TRIES):
            self.start('/a', '/b')
            self.assertEqual('/a', self.asked()[0])
            texts, output = self.lose()
            is_last = number == worker.TRIES - 1
            self.assertEqual(is_last, len(output) > 1)
            self.assertEqual({'/a': ((1, 2), '')} if is_last else {}, texts)
        self.assertIn("has ended at each try to convert '/a'", output[-1])
        self.assertEqual({}, dict(self.requests.losses))

    def test_one_that_never_is_ready_is_no_fault_of_a_file(self):
        self.is_ready = False
        self.requests.asked['/a'] = (1, 2)
        self.requests.child = 4711
        for _ in range(2 * worker.TRIES):
            getUtility(IRunner).ensure_running('converter')
            self.tick()
            self.assertEqual({}, self.lose()[0])
        self.assertEqual({}, dict(self.requests.losses))


class ConvertedTest(TestCase):
    """The worker with the child that ZCML declares."""

    def write_markup(self, count):
        for number in range(count):
            (self.tree / f'{number}.rst').write_text(
                f'Title\n=====\n\n*word{number}*\n')

    def test_converted_files_are_indexed(self):
        self.write_files(a='alpha')
        self.write_markup(3)
        self.fill()
        self.assertEqual(
            {'a.py': ['alpha'], '0.rst': ['title', 'word0'],
             '1.rst': ['title', 'word1'], '2.rst': ['title', 'word2']},
            self.contents())

    def test_the_converter_is_killed_in_the_middle(self):
        self.batch(2)
        self.write_files(a='alpha')
        self.write_markup(30)
        kills = []

        def kill(changes):
            if changes.waiting and len(kills) < 3:
                process = getUtility(IRunner).get_process(
                    'converter')
                if process.poll() is None and process.pid not in kills:
                    process.send_signal(signal.SIGKILL)
                    kills.append(process.pid)
        with self.assertLogs(worker.log) as logged:
            self.config.run(worker.fill, [str(self.tree)], kill)
        self.assertEqual(3, len(kills))
        self.assertIn('WARNING:gocept.runner.example:The converter has ended',
                      logged.output)
        self.assertEqual(
            {'a.py': ['alpha']} | {f'{number}.rst': ['title', f'word{number}']
                                   for number in range(30)},
            self.contents())

    def test_runs_without_a_script_of_its_own(self):
        self.write_markup(1)
        program = self.program('''
            import sys
            from gocept.runner import cli
            sys.exit(cli.main())
            ''', 'run', 'index', '--config', self.config.path, '--',
            str(self.tree))
        program.wait_for('(1 new, 0 changed), removed 0; 0 to go')
        program.send(signal.SIGTERM)
        self.assertEqual(errors.SUCCESS, program.end(), program.output)
        self.assertEqual({'0.rst': ['title', 'word0']}, self.contents())

    def test_a_converter_that_is_not_there(self):
        self.config = self.configure(converter=f'{self.dir}/missing')
        program = self.program('''
            import sys
            from gocept.runner import cli
            sys.exit(cli.main())
            ''', 'run', 'index', '--config', self.config.path, '--',
            str(self.tree))
        self.assertEqual(errors.CANNOT_START, program.end(), program.output)
        self.assertIn(
            "gocept-runner run: error: app 'converter': cannot run "
            f"'{self.dir}/missing': No such file or directory\n",
            program.output)

    def test_a_converter_that_ends_at_once(self):
        self.write_markup(2)
        working = self.config
        self.config = self.configure(converter='false', zcml=self.write(
            'few.zcml', ZCML.read_text().replace(
                'restart_limit="20"', 'restart_limit="2"')))
        with self.assertLogs(worker.log, 'ERROR') as logged:
            self.fill()
        self.assertIn('has failed, so 2 files are not', logged.output[0])
        self.assertEqual([], sorted(self.contents()))
        # When it was repaired, all is indexed.
        shutil.copy(self.config.directory / 'Data.fs', working.directory)
        self.config = working
        self.fill()
        self.assertEqual(['0.rst', '1.rst'], sorted(self.contents()))

    def test_without_a_directory_nothing_is_removed(self):
        self.write_files(a='alpha')
        self.fill()
        program = self.program('''
            import sys
            from gocept.runner import cli
            sys.exit(cli.main())
            ''', 'run', 'index', '--config', self.config.path)
        self.assertEqual(errors.BAD_USAGE, program.end(), program.output)
        self.assertIn('DIRECTORY is missing', program.output)
        self.assertEqual({'a.py': ['alpha']}, self.contents())

    def test_a_mistyped_directory_ends_the_program_with_a_sentence(self):
        self.write_files(a='alpha')
        self.fill()
        program = self.run_worker('index', f'{self.tree}s')
        self.assertEqual(errors.WORKER_FAILED, program.end(), program.output)
        self.assertIn(
            f"There is no directory '{self.tree}s', so nothing was changed in "
            'the index.', program.output.splitlines())
        self.assertEqual({'a.py': ['alpha']}, self.contents())

    def test_forget_removes_a_directory(self):
        self.write_files(a='alpha')
        (self.tree / 'sub').mkdir()
        (self.tree / 'sub' / 'b.py').write_text('beta')
        self.fill()
        program = self.run_worker('forget', f'{self.tree}/sub')
        self.assertEqual(errors.SUCCESS, program.end(), program.output)
        self.assertEqual({'a.py': ['alpha']}, self.contents())
        for nothing in str(self.dir / 'elsewhere'), '':
            program = self.run_worker('forget', nothing)
            self.assertEqual(errors.WORKER_FAILED, program.end())
            # The end of the converter may be logged later.
            self.assertIn(f'The index has no file below {nothing!r}.',
                          program.output.splitlines())
        self.assertEqual({'a.py': ['alpha']}, self.contents())

    def run_worker(self, name, directory):
        return self.program('''
            import sys
            from gocept.runner import cli
            sys.exit(cli.main())
            ''', 'run', name, '--config', self.config.path, '--', directory)
