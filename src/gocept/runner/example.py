"""A worker to copy: it keeps a full-text index of files up to date.

The worker is `index_tree`. Give it a console script, and start that with the
directory as its argument; it runs until a signal ends it::

    index-tree = gocept.runner.example:index_tree

    index-tree --config zope.conf -- DIRECTORY

A tick knows nothing but the disk and the database: it compares both, and
indexes a batch of what differs. So it does not matter whether the tick before
was committed, aborted or killed; the work that is left is found anew.

`demo` and `search`, the scripts ``bin/demo`` and ``bin/demo-search``, show it
with the source of Python's standard library.
"""

import argparse
import contextlib
import logging
import os
import shutil
import stat
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import persistent
import tqdm
import transaction
import ZODB
from BTrees.IOBTree import IOBTree
from BTrees.OOBTree import OOBTree
from zc.lockfile import LockError
from ZODB.FileStorage import FileStorage
from ZODB.POSException import ReadOnlyError
from zope.component.hooks import getSite
from zope.container.contained import Contained
from zope.index.text.parsetree import ParseError
from zope.index.text.textindex import TextIndex
from zope.security.management import getInteraction

import gocept.runner
from gocept.runner import errors
from gocept.runner.environment import APPLICATION

log = logging.getLogger(__name__)

SUFFIX = '.py'
LEFT_OUT = {'__pycache__', 'dist-packages', 'idle_test', 'site-packages',
            'test', 'tests'}

# An interruption loses one batch at most. Smaller ones take longer in all, as
# every commit writes what the index says of common words once more.
BATCH = 20

# When a file changed, in ns, and its size.
Stamp = tuple[int, int]


class Catalog(persistent.Persistent, Contained):  # type: ignore[misc]
    """A full-text index of files, with the stamp each had when indexed."""

    def __init__(self) -> None:
        self._text = TextIndex()  # ranks by Okapi BM25
        self._entries = OOBTree()  # path -> (docid, stamp)
        self._paths = IOBTree()  # docid -> path

    def stamps(self) -> dict[str, Stamp]:
        """The files in the index, by path."""
        return {path: stamp for path, (_, stamp) in self._entries.items()}

    def put(self, path: str, stamp: Stamp, text: str) -> None:
        """Index a file, in place of what is known of it."""
        if path in self._entries:
            docid, _ = self._entries[path]
        else:
            docid = self._paths.maxKey() + 1 if self._paths else 1
        self._entries[path] = (docid, stamp)
        self._paths[docid] = path
        self._text.index_doc(docid, text)

    def remove(self, path: str) -> None:
        """Forget a file."""
        docid, _ = self._entries.pop(path)
        del self._paths[docid]
        self._text.unindex_doc(docid)

    def search(self, query: str) -> list[tuple[float, str]]:
        """Scores and paths, best first.

        Raises ParseError for a query that makes no sense.
        """
        scores = self._text.apply(query) or {}
        return sorted(((score, self._paths[docid])
                       for docid, score in scores.items()),
                      key=lambda hit: (-hit[0], hit[1]))


class Changes(NamedTuple):
    """Numbers of files: in a batch, left after it, and found on the disk."""

    new: int
    changed: int
    gone: int
    left: int
    found: int

    def __str__(self) -> str:
        return (f'Indexed {self.new + self.changed} files ({self.new} new, '
                f'{self.changed} changed), removed {self.gone}; '
                f'{self.left} to go')


def scan(directory: str) -> dict[str, Stamp]:
    """The files below `directory`; OSError if that itself cannot be listed."""
    directory = os.path.abspath(directory)
    paths = []

    def cannot_list(error: OSError) -> None:
        if error.filename == directory:
            raise error  # or else all that was in it would count as gone
        paths.append(error.filename)

    for folder, names, files in os.walk(directory, onerror=cannot_list):
        names[:] = set(names) - LEFT_OUT
        paths += [os.path.join(folder, name) for name in files
                  if name.endswith(SUFFIX)]
    found = {}
    for path in paths:
        with contextlib.suppress(OSError):  # gone already, or a broken link
            status = os.stat(path)
            # Reading from other kinds, such as a named pipe, may block.
            if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                # Not the mtime, which can be set, and which chmod leaves.
                found[path] = (status.st_ctime_ns, status.st_size)
    return found


def read(path: str) -> str:
    """The text of a file, as far as it is any.

    What cannot be read, be it a directory, is indexed without text. So it is
    reported once, and read again when its stamp has changed.
    """
    try:
        return Path(path).read_text(encoding='utf-8', errors='replace')
    except OSError as error:
        log.warning('Cannot read %r: %s', path, error.strerror)
        return ''


def update(catalog: Catalog, directory: str) -> Changes:
    """Bring one batch of the catalog in line with the files on the disk."""
    found, known = scan(directory), catalog.stamps()
    different = sorted(path for path in found.keys() | known.keys()
                       if found.get(path) != known.get(path))
    batch = different[:BATCH]
    for path in batch:
        if path in found:
            catalog.put(path, found[path], read(path))
        else:
            catalog.remove(path)
    new, gone = len(set(batch) - known.keys()), len(set(batch) - found.keys())
    return Changes(new, len(batch) - new - gone, gone,
                   left=len(different) - len(batch), found=len(found))


def tick(directory: str) -> Changes:
    """Update the catalog of the site, and say so in log and database."""
    site = getSite()
    if 'catalog' not in site:
        site['catalog'] = Catalog()
    changes = update(site['catalog'], directory)
    if changes.new or changes.changed or changes.gone:
        principal = getInteraction().participations[0].principal
        log.info('%s (as %s)', changes, principal.id)
        # The database keeps both; fstail, a script of ZODB, shows them.
        transaction.get().setUser(principal.id)
        transaction.get().note(str(changes))
    return changes


@gocept.runner.appmain(ticks=10, principal='zope.mgr')
def index_tree(directory: str) -> int | None:
    """Keep a full-text index of the files below DIRECTORY up to date."""
    return 0 if tick(directory).left else None


@gocept.runner.appmain(principal='zope.mgr')
def fill(directory: str, report: Callable[[Changes], object]) -> object:
    """Like `index_tree`, but end when the index is complete."""
    changes = tick(directory)
    # Not before the commit, as a tick may be aborted and tried again.
    transaction.get().addAfterCommitHook(
        lambda committed: committed and report(changes))
    return 0 if changes.left else gocept.runner.Exit


CONF = Path('var/zope.conf')
LOG = Path('var/demo.log')
DATABASE = Path('var/Data.fs')
QUERY = 'parse http header'
HITS = 10

ZOPE_CONF = f"""\
<zodb>
  cache-size 20000
  <filestorage>
    path {DATABASE}
  </filestorage>
</zodb>
<eventlog>
  <logfile>
    path {LOG}
    format %(asctime)s %(levelname)s %(name)s %(message)s
  </logfile>
  <logfile>
    path STDERR
    level error
  </logfile>
</eventlog>
"""


class Progress(tqdm.tqdm):  # type: ignore[misc]
    """Shows on standard error how far `fill` is, and keeps what it did."""

    monitor_interval = 0  # needs no thread

    def __init__(self) -> None:
        self.batches: list[Changes] = []
        # tqdm shows nothing on a terminal that does not know its size.
        columns, lines = shutil.get_terminal_size()
        super().__init__(
            desc='Indexing', unit=' files', file=sys.stderr, ncols=columns,
            nrows=lines, disable=not sys.stderr.isatty())

    def __call__(self, changes: Changes) -> None:
        done = max(changes.found - changes.left, 0)
        if not self.batches:  # what an earlier run did is not of our speed
            self.initial = max(done - BATCH, 0)
        self.batches.append(changes)
        self.total, self.n = changes.found, done
        self.refresh()
        # A bar is no good in a file; a line now and then is.
        if self.disable and done % 500 < BATCH:
            print(f'{done} of {changes.found} files are indexed',
                  file=sys.stderr, flush=True)


def demo(argv: list[str] | None = None) -> int:
    """Index the source of Python's standard library, and query the index.

    All that this makes is in the directory var. It can be interrupted, and
    goes on from there when it is started again.
    """
    argparse.ArgumentParser(description=demo.__doc__).parse_args(argv)
    directory = sysconfig.get_path('stdlib')
    CONF.parent.mkdir(exist_ok=True)
    if not CONF.exists():
        CONF.write_text(ZOPE_CONF)
    print(f'Indexing {directory}\ninto {DATABASE}; the log is {LOG}',
          flush=True)
    started = time.monotonic()
    with Progress() as progress:
        try:
            fill(None, CONF, directory, progress)
        except KeyboardInterrupt:
            pass  # while it started, or closed the database
        except LockError:
            sys.exit(f'demo: {DATABASE} is in use: another demo is running')
    batches = progress.batches
    if not batches or batches[-1].left:
        print('Interrupted. The next run goes on from here.')
        return errors.INTERRUPTED
    new, changed, gone, *_ = map(sum, zip(*batches, strict=True))
    print(f'\nThe index is up to date: {batches[-1].found} files, '
          f'{DATABASE.stat().st_size / 1e6:.0f} MB on disk.\n'
          f'This run found {new} new, {changed} changed and {gone} gone, in '
          f'{time.monotonic() - started:.1f} seconds.\n\n'
          f'What it finds for "{QUERY}", best first:')
    _print_hits(_hits(QUERY))
    print('\nAsk yourself:  bin/demo-search WORD ...'
          f'\nStart over:    rm {DATABASE}*; python3 bootstrap.py demo'
          '\nSee how:       src/gocept/runner/example.py')
    return errors.SUCCESS


def search(argv: list[str] | None = None) -> int:
    """Show the files in the index of the demo that have all words, best first.

    Write NOT before a word that they shall not have, OR between two of which
    one is enough, WOR* for any that begins so, and '"..."' for a phrase.
    """
    parser = argparse.ArgumentParser(description=search.__doc__)
    parser.add_argument('words', metavar='WORD', nargs='+')
    query = ' '.join(parser.parse_args(argv).words)
    try:
        hits = _hits(query)
    except ParseError as error:
        parser.error(str(error))
    if not hits:
        sys.exit(f'No file fits: {query}')
    _print_hits(hits)
    return errors.SUCCESS


def _hits(query: str) -> list[tuple[float, str]]:
    try:
        # Only reading, it takes no lock: the demo may run at the same time.
        with (contextlib.closing(FileStorage(str(DATABASE), read_only=True))
              as storage, ZODB.DB(storage).transaction() as connection):
            catalog: Catalog = connection.root()[APPLICATION]['catalog']
            return catalog.search(query)
    except (FileNotFoundError, ReadOnlyError, KeyError):
        sys.exit(f'There is no index in {DATABASE.absolute()} yet; '
                 'python3 bootstrap.py demo makes one.')


def _print_hits(hits: list[tuple[float, str]]) -> None:
    for score, path in hits[:HITS]:
        # Not every file name can be encoded.
        name = path.encode(errors='backslashreplace').decode()
        print(f'  {score:.2f}  {name}')
    if len(hits) > HITS:
        print(f'  and {len(hits) - HITS} more')
