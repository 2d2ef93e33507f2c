"""Where the program of a house lives: its files, and what it has stored."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import ZODB.scripts.fstest

from chaos.fates import Fate
from chaos.scripts import converter
from chaos.scripts.house import MESSAGE, last, sum_of
from chaos.worker import check
from gocept.runner.tests import services
from gocept.runner.tests.cli.test_worker import stored

ZOPE_CONF = '''\
site-definition site.zcml

<zodb>
  <filestorage>
    path Data.fs
  </filestorage>
</zodb>

<product-config house>
  home {home}
  psql {programs}/psql
</product-config>

<eventlog>
  <logfile>
    path house.log
    format %(asctime)s.%(msecs)03d %(levelname)s %(name)s %(message)s
  </logfile>
</eventlog>
'''

SITE_ZCML = '''\
<configure
    xmlns="http://namespaces.zope.org/zope"
    xmlns:runner="http://namespaces.gocept.com/runner">

  <include package="zope.component" />
  <include package="gocept.runner" />

  <runner:executor
      name="postgres"
      command="{programs}/postgres -D {home}/data -F -h ''
               -k ${{product-config:house:home}}
               -c dynamic_shared_memory_type=mmap"
      {user}
      cwd="${{product-config:house:home}}"
      {readiness}
      timeout="60"
      stop_signal="INT"
      die_with_parent="true"
      start="eager"
      />

  <runner:executor
      name="web"
      command="{python} -I -m http.server {{port}} --bind 127.0.0.1"
      type="http"
      url="http://127.0.0.1:0/"
      cwd="web"
      stderr="./web.log"
      timeout="60"
      die_with_parent="true"
      start="eager"
      />

  <runner:app
      name="converter"
      command="{python} -I {converter}"
      requires="web postgres"
      buffering="line"
      high_water="65536"
      restart="on-failure"
      stderr="./converter.log"
      stop_timeout="60"
      die_with_parent="true"
      start="{start}"
      />

  <runner:worker
      name="house"
      handler="chaos.scripts.house:worker"
      ticks="{ticks}"
      shutdown_timeout="60"
      />

  <subscriber
      for="gocept.runner.interfaces.IChildEvent"
      handler="chaos.scripts.house.tell"
      />
  <subscriber
      for="gocept.runner.interfaces.ILoopStarted"
      handler="chaos.scripts.house.begin"
      />

</configure>
'''

READINESS = {
    'unix': 'type="unix" socket_name="{home}/.s.PGSQL.5432" '
            'stderr="{home}/log"',
    'probe': 'type="probe" probe="{programs}/pg_isready -q -h {home} '
             '-U postgres" stderr="{home}/log"',
    'postgresql': 'type="postgresql" host="{home}" stderr="{home}/log"',
    'notified': 'type="notified" stderr="{home}/log"',
    'output': 'type="output" banner="ready to accept connections$" '
              'stderr="pipe" log_file="{home}/log"'}


class House:
    """A directory with a ZODB, PostgreSQL and something for the web."""

    def __init__(self, directory: pathlib.Path) -> None:
        found = services.path_of('postgres')
        check(found is not None, 'not installed: postgres')
        programs = pathlib.Path(found).parent
        self.directory = directory
        self.storage = directory / 'Data.fs'
        self.count = 0
        """How many answers there are, when nobody works."""
        self.home = directory / 'home'  # the sockets are there as well
        self.home.mkdir()
        (directory / 'web').mkdir()
        (directory / 'web' / 'message').write_bytes(MESSAGE)
        user: dict[str, Any] = {}
        if os.geteuid() == 0:  # who is refused
            user = dict.fromkeys(('user', 'group'), 'postgres')
            directory.chmod(0o711)
            shutil.chown(self.home, 'postgres', 'postgres')
        self.values = {
            'home': self.home, 'programs': programs,
            'python': sys.executable, 'converter': converter.__file__,
            'user': ' '.join(f'{key}="{each}"' for key, each in user.items())}
        subprocess.run(
            [programs / 'initdb', '--pgdata', self.home / 'data',
             '--no-locale', '--auth=trust', '--username=postgres',
             '--no-sync'],
            cwd=self.home, check=True, stdout=subprocess.DEVNULL,
            **user, extra_groups=[] if user else None)

    def close(self) -> None:
        """Free what else than files is left."""
        services.free_memory(self.home / 'data')

    def furnish(self, fate: Fate) -> None:
        """Write the files that the program reads, and forget its log."""
        readiness = READINESS[fate.readiness].format(**self.values)
        for name, text in ('zope.conf', ZOPE_CONF), ('site.zcml', SITE_ZCML):
            (self.directory / name).write_text(text.format(
                **self.values, readiness=readiness, start=fate.start,
                ticks=fate.ticks))
        for path in (*self.directory.glob('*.log*'), self.home / 'log'):
            path.unlink(missing_ok=True)
        for path in (self.home / '.s.PGSQL.5432.lock',
                     self.home / 'data' / 'postmaster.pid'):
            # Killed while it wrote that, PostgreSQL needs somebody's help.
            if path.exists() and not path.stat().st_size:
                path.unlink()

    def log(self) -> str:
        """What the program has logged, before and after SIGUSR2."""
        # Renamed by us at any moment, so that one may be gone.
        text = ''
        for name in 'house.log.2', 'house.log.1', 'house.log':
            with contextlib.suppress(FileNotFoundError):
                text += (self.directory / name).read_text()
        return text

    def rotate(self) -> None:
        """Rename the log, as one who sends SIGUSR2 does."""
        for old, new in ('.1', '.2'), ('', '.1'):
            with contextlib.suppress(FileNotFoundError):
                (self.directory / f'house.log{old}').rename(
                    self.directory / f'house.log{new}')

    @property
    def acknowledged(self) -> int:
        """The number that was committed last, as far as it is known."""
        return last(self.directory / 'acknowledged')

    def check_stored(self, killed: bool) -> int:
        """Look at the ZODB, which nobody may have locked.

        A program that was `killed` may not have acknowledged its last commit.
        Returns how many answers there are.
        """
        count, answers = 0, {}
        if self.storage.exists():
            with contextlib.suppress(KeyError), stored(self.storage) as site:
                count = getattr(site, 'count', 0)
                answers = dict(getattr(site, 'answers', {}))
            ZODB.scripts.fstest.check(str(self.storage))
        check(list(answers) == list(range(1, count + 1)),
              f'the counter is {count}, but there are {len(answers)} answers, '
              f'up to number {max(answers, default=0)}')
        wrong = [number for number, answer in answers.items()
                 if answer != sum_of(number)]
        check(not wrong, f'the answers to {wrong} are wrong')
        known = self.acknowledged
        check(known <= count and (
            killed or count == known or count == self.count),
            f'{count} are stored, {known} were acknowledged, and '
            f'{self.count} were there before')
        self.count = count
        return count
