"""The demo of the example: the scripts ``bin/demo`` and ``bin/demo-search``.
"""

import argparse
import contextlib
import shlex
import shutil
import sys
import sysconfig
import time
from pathlib import Path

import tqdm
import ZODB
from zc.lockfile import LockError
from ZODB.FileStorage import FileStorage
from ZODB.POSException import ReadOnlyError
from zope.index.text.parsetree import ParseError

from gocept.runner import errors
from gocept.runner.boot.environment import APPLICATION
from gocept.runner.example import worker
from gocept.runner.waits.standard import is_terminal

CONF = Path('var/demo.conf')
LOG = Path('var/demo.log')
DATABASE = Path('var/Data.fs')
QUERIES = ('parse http header', 'worker signal principal')
HITS = 10

NO_WORDS = '''\
There is nothing to look for: the index has neither very common words nor
signs, and a word does not begin with "*" or "?".'''
NO_QUERY = '''\
This cannot be understood. AND and OR stand between two words, NOT and "-" need
another word before them, and each parenthesis needs its partner.'''

HERE = Path(__file__).parent
MANUAL = HERE.parent

ZOPE_CONF = f"""\
site-definition {HERE / 'example.zcml'}
<product-config example>
  converter {{converter}}
</product-config>
<zodb>
  cache-size 20000
  <filestorage>
    path $here/{DATABASE.name}
  </filestorage>
</zodb>
<eventlog>
  <logfile>
    path $here/{LOG.name}
    format %(asctime)s %(levelname)s %(name)s %(message)s
  </logfile>
  <logfile>
    path STDERR
    level error
  </logfile>
</eventlog>
"""


class Progress(tqdm.tqdm):  # type: ignore[misc]
    """Shows the progress of `fill` on standard error; keeps its reports."""

    monitor_interval = 0  # needs no thread

    def __init__(self) -> None:
        self.batches: list[worker.Changes] = []
        # tqdm shows nothing on a terminal that does not know its size.
        columns, lines = shutil.get_terminal_size()
        super().__init__(
            desc='Indexing', unit=' files', file=sys.stderr, ncols=columns,
            nrows=lines, disable=not is_terminal(sys.stderr))

    def __call__(self, changes: worker.Changes) -> None:
        done = max(changes.found - changes.left, 0)
        if not self.batches:  # the work of an earlier run has another speed
            self.initial = max(done - worker.BATCH, 0)
        self.batches.append(changes)
        self.total, self.n = changes.found, done
        self.refresh()
        # In a file, a line now and then is better than a bar.
        if self.disable and done % 500 < worker.BATCH:
            print(f'{done} of {changes.found} files are indexed',
                  file=sys.stderr, flush=True)


def demo(argv: list[str] | None = None) -> int:
    """Index Python's standard library and our manual, and query the index.

    The manual is reStructuredText, which a child process turns into text. The
    directory var holds all that the demo makes. The demo can be interrupted;
    when it is started again, it goes on from there.
    """
    argparse.ArgumentParser(description=demo.__doc__).parse_args(argv)
    directories = [sysconfig.get_path('stdlib'), str(MANUAL)]
    CONF.parent.mkdir(exist_ok=True)
    # The script beside this one has the same module search path.
    converter = Path(sys.argv[0]).absolute().with_name('demo-converter')
    # Written each time, as an earlier version may have had other paths.
    CONF.write_text(ZOPE_CONF.format(converter=shlex.quote(str(converter))))
    print(f'Indexing {directories[0]}\nand {directories[1]}\n'
          f'into {DATABASE}; the log is {LOG}', flush=True)
    started = time.monotonic()
    with Progress() as progress:
        try:
            worker.fill(None, CONF, directories, progress)
        except KeyboardInterrupt:
            pass  # during the start, or while the database was closed
        except LockError:
            sys.exit(f'demo: {DATABASE} is in use: another demo is running')
    batches = progress.batches
    if not batches or batches[-1].left:
        print('Interrupted. The next run goes on from here.')
        return errors.INTERRUPTED
    new, changed, gone, *_ = map(sum, zip(*batches, strict=True))
    converted = sum(
        path.endswith(worker.CONVERTED)
        for directory in directories for path in worker.scan(directory))
    print(f'\nThe index is up to date: {batches[-1].found} files, '
          f'{DATABASE.stat().st_size / 1e6:.0f} MB on disk.\n'
          f'This run found {new} new, {changed} changed and {gone} gone, in '
          f'{time.monotonic() - started:.1f} seconds.\n'
          f'{converted} of the files are reStructuredText, of '
          'which a child process made text meanwhile.')
    for query in QUERIES:
        print(f'\nWhat it finds for "{query}", best first:')
        _print_hits(_hits(query), HITS // 2)
    print('\nAsk yourself:  bin/demo-search WORD ...'
          f'\nStart over:    rm -r {DATABASE}*; python3 bootstrap.py demo'
          '\nSee how:       src/gocept/runner/example/worker.py')
    return errors.SUCCESS


def search(argv: list[str] | None = None) -> int:
    """Show the files in the index of the demo that have all words, best first.

    Write NOT before a word that the files must not have, OR between two words
    of which one is enough, WOR* for all words that begin so, and '"..."' for a
    phrase.
    """
    parser = argparse.ArgumentParser(description=search.__doc__)
    parser.add_argument('words', metavar='WORD', nargs='+')
    query = ' '.join(parser.parse_args(argv).words)
    try:
        hits = _hits(query)
    except ParseError as error:
        no_words = ('common words' in str(error)
                    or not any(map(str.isalnum, query)))
        print(NO_WORDS if no_words else NO_QUERY, file=sys.stderr)
        return errors.BAD_USAGE
    if not hits:
        sys.exit(f'No file fits: {query}')
    _print_hits(hits)
    return errors.SUCCESS


def _hits(query: str) -> list[tuple[float, str]]:
    try:
        # A reader takes no lock, so the demo may run at the same time.
        with (contextlib.closing(FileStorage(str(DATABASE), read_only=True))
              as storage, ZODB.DB(storage).transaction() as connection):
            catalog: worker.Catalog = connection.root()[APPLICATION]['catalog']
            return catalog.search(query)
    except (FileNotFoundError, ReadOnlyError, KeyError):
        sys.exit(f'There is no index in {DATABASE.absolute()} yet; '
                 'python3 bootstrap.py demo makes one.')


def _print_hits(hits: list[tuple[float, str]], most: int = HITS) -> None:
    for score, path in hits[:most]:
        # Some file names cannot be encoded.
        name = path.encode(errors='backslashreplace').decode()
        print(f'  {score:.2f}  {name}')
    if len(hits) > most:
        print(f'  and {len(hits) - most} more')
