"""An instance of Zope with a Plone site, made once and copied for each test.

usage: python -m gocept.runner.tests.zope.plones INSTANCE

Makes that instance. The tests keep one in the environment that they run in.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gocept.runner.executor import UnixSocketExecutor
from gocept.runner.tests import support

USERS = {
    'writer': ['Member', 'Contributor', 'Editor', 'Reviewer'],
    'reader': ['Member'],
}
"""The users of the site, and what they may be."""

FILESTORAGE = '''\
  <blobstorage>
    blob-dir $INSTANCE/var/blobs
    <filestorage>
      path $INSTANCE/var/Data.fs
    </filestorage>
  </blobstorage>
'''

ZEOCLIENT = '''\
  %import ZEO
  <clientstorage>
    server $INSTANCE/zeo.sock
    storage 1
    blob-dir $INSTANCE/var/blobs
    shared-blob-dir on
    wait-timeout 10
  </clientstorage>
'''

ZOPE_CONF = '''\
%define INSTANCE {directory}
instancehome $INSTANCE
<environment>
  CHAMELEON_CACHE $INSTANCE/var/cache
</environment>
<zodb_db main>
  mount-point /
{storage}</zodb_db>
'''

ZEO_CONF = '''\
%define INSTANCE {directory}
<zeo>
  address $INSTANCE/zeo.sock
</zeo>
<filestorage 1>
  path $INSTANCE/var/Data.fs
  blob-dir $INSTANCE/var/blobs
</filestorage>
'''


class Instance:
    """A directory with the instance; its site is ``/Plone``.

    The storage is a file until `zeo` is entered.
    """

    def __init__(self, directory: Path) -> None:
        shutil.copytree(_made(), directory)
        self.directory = directory
        self.conf = directory / 'etc' / 'zope.conf'
        self._write(FILESTORAGE)

    def _write(self, storage: str) -> None:
        self.conf.write_text(ZOPE_CONF.format(
            directory=self.directory, storage=storage))

    @contextlib.contextmanager
    def zeo(self) -> Iterator[None]:
        """Have a ZEO server serve the database."""
        conf = self.directory / 'etc' / 'zeo.conf'
        conf.write_text(ZEO_CONF.format(directory=self.directory))
        self._write(ZEOCLIENT)
        with UnixSocketExecutor(
                [sys.executable, '-m', 'ZEO.runzeo', '-C', str(conf)],
                str(self.directory / 'zeo.sock'), timeout=support.DEADLINE,
                envvars=support.child_environment(),
                stdout=subprocess.DEVNULL,
                stderr=str(self.directory / 'zeo.log')):
            yield

    def include(self, package: str) -> None:
        """Have the site.zcml of the instance include a package."""
        directory = self.directory / 'etc' / 'package-includes'
        directory.mkdir(exist_ok=True)
        (directory / f'{package}-configure.zcml').write_text(
            f'<include package="{package}" />\n')

    def start(self, script: Path, *args: str) -> support.Program:
        """Start a script of workers on the site."""
        return support.Program(
            script, '--config', str(self.conf), '--site', 'Plone', *args,
            cwd=self.directory)

    def run(self, script: Path, *args: str, status: int = 0) -> str:
        """Run such a script; returns its output."""
        program = self.start(script, *args)
        try:
            ended = program.end()
        finally:
            program.close()
        if ended != status:
            raise AssertionError(
                f'status {ended} instead of {status}:\n{program.output}')
        return program.output

    def ask(self, expression: str) -> Any:
        """The value, as JSON has it, of an expression.

        It knows `site`, `api` of Plone, and this module as `plones`.

        A process of Zope evaluates it, with no part of this package.
        """
        done = subprocess.run(
            [sys.executable, '-c', _ASK, str(self.conf), expression],
            env=support.child_environment(), cwd=self.directory,
            capture_output=True, text=True, timeout=support.DEADLINE)
        if done.returncode:
            raise AssertionError(done.stdout + done.stderr)
        return json.loads(done.stdout.splitlines()[-1])


_ASK = '''
import json, sys
from gocept.runner.tests.zope import plones
with plones.opened(sys.argv[1]) as app:
    from plone import api
    from zope.component.hooks import setSite
    site = app.Plone
    setSite(site)
    print(json.dumps(eval(sys.argv[2])))
'''


@contextlib.contextmanager
def opened(conf: str) -> Iterator[Any]:
    """The application of a zope.conf, with a request and its first user."""
    import transaction
    import Zope2
    from AccessControl.SecurityManagement import newSecurityManager
    from Testing.makerequest import makerequest
    from zope.globalrequest import setRequest
    from Zope2.Startup.run import configure_wsgi

    configure_wsgi(conf)
    app = makerequest(Zope2.app())
    setRequest(app.REQUEST)
    newSecurityManager(
        None, app.acl_users.getUserById('admin').__of__(app.acl_users))
    try:
        yield app
    finally:
        transaction.abort()
        app._p_jar.close()
        Zope2.DB.close()


def state(site: Any) -> dict[str, Any]:
    """The content of a site with its workflow states, its size in the catalog,
    and where the two do not agree.
    """
    catalog = site.portal_catalog
    portal_workflow = site.portal_workflow
    states = {}
    disagreements = []
    for content in _content_of(site):
        path = '/'.join(content.getPhysicalPath())
        states[path] = portal_workflow.getInfoFor(content, 'review_state', '')
        found = catalog.unrestrictedSearchResults(
            path={'query': path, 'depth': 0})
        for index, value in (
                ('review_state', states[path]), ('UID', content.UID()),
                ('getId', content.getId())):
            if [brain[index] or '' for brain in found] != [value]:
                disagreements.append([path, index])
            if content != site and not any(
                    brain.getPath() == path for brain in
                    catalog.unrestrictedSearchResults(**{index: value})):
                disagreements.append([path, f'index {index}'])
    known = set(catalog._catalog.uids)
    if known != set(states) or len(catalog) != len(states):
        disagreements.append(sorted(known ^ set(states)))
    rids = set(catalog._catalog.paths)
    for index in catalog.getIndexObjects():
        for strange in set(getattr(index, '_unindex', ())) - rids:
            disagreements.append([strange, f'index {index.getId()}'])
    return {'states': states, 'size': len(catalog),
            'disagreements': disagreements}


def _content_of(folder: Any) -> Iterator[Any]:
    yield folder
    if hasattr(folder.aq_base, 'contentValues'):
        for content in folder.contentValues():
            yield from _content_of(content)


def _made() -> Path:
    """The instance that is copied; it is made if there is none."""
    versions = [importlib.metadata.version(name)
                for name in ('Products.CMFPlone', 'Zope', 'ZODB')]
    digest = hashlib.sha256(
        Path(__file__).read_bytes() + repr(versions).encode()).hexdigest()
    directory = Path(sys.prefix, f'plone-site-{digest[:16]}')
    with open(Path(sys.prefix, 'plone.lock'), 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            for former in directory.parent.glob('plone-site-*'):
                shutil.rmtree(former)
            # What is only half made has another name.
            making = directory.with_suffix('.new')
            done = subprocess.run(
                [sys.executable, '-m', __spec__.name, str(making)],
                env=support.child_environment(), text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if done.returncode:
                raise AssertionError(done.stdout)
            making.rename(directory)
    return directory


def make(directory: Path) -> None:
    """Make an instance with a site, as an administrator of Plone does."""
    subprocess.run(
        [Path(sys.prefix, 'bin', 'mkwsgiinstance'), '--dir', directory,
         '--user', 'admin:secret'], check=True)
    conf = directory / 'etc' / 'zope.conf'
    conf.write_text(ZOPE_CONF.format(
        directory=directory, storage=FILESTORAGE))
    with opened(str(conf)) as app:
        import transaction
        from plone import api
        from Products.CMFPlone.factory import addPloneSite

        site = addPloneSite(
            app, 'Plone', title='A site', distribution_name='classic',
            setup_content=False, default_language='de')
        # For passwords that nobody knows, and documents that are private.
        site.portal_workflow.setDefaultChain('simple_publication_workflow')
        for name, roles in USERS.items():
            api.user.create(
                f'{name}@example.com', name, os.urandom(20).hex(), roles)
        for name in 'news', 'archive':
            folder = api.content.create(
                site, 'Folder', name, title=f'The {name}')
            api.content.transition(folder, 'publish')
        transaction.commit()
    for path in (directory / 'var').glob('Data.fs.*'):
        path.unlink()  # the lock; the index is made anew


if __name__ == '__main__':
    make(Path(sys.argv[1]))
