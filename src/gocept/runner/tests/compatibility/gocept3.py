"""gocept.runner 3: the names of its modules, and what its users do with them.

The largest of these users subclasses both classes, and boots a database of its
own; others import files, serve queues, or run once from cron.
"""

from zope.authentication.interfaces import PrincipalLookupError

from gocept.runner.tests.compatibility.rows import Raises, Row

# A loop as the largest user writes it: its own order of things, with the parts
# of the class.
OWN_LOOP = '''
class Loop(gocept.runner.runner.MainLoop):

    def __call__(self):
        before = zope.component.hooks.getSite()
        zope.component.hooks.setSite(self.app)
        self._is_running = True
        while self._is_running:
            ticks = None
            self.begin()
            try:
                ticks = self.worker()
            except (KeyboardInterrupt, SystemExit):
                self.abort()
                break
            except Exception:
                self.abort()
                if self.once:
                    raise
                seen.append('error')
            else:
                try:
                    self.commit()
                except transaction.interfaces.TransientError:
                    self.abort()
                    if self.once:
                        raise
                    seen.append('conflict')
            if self.once or ticks is gocept.runner.Exit:
                self._is_running = False
            else:
                time.sleep(self.ticks if ticks is None else ticks)
        zope.component.hooks.setSite(before)

'''

# ... and a decorator with a start of its own.
OWN_DECORATOR = OWN_LOOP + '''
class runner(gocept.runner.appmain):

    def __init__(self, ticks=1, principal=None, once=True):
        super().__init__(ticks=ticks, principal=principal)
        self.once = once

    def __call__(self, worker_method):
        def run():
            with gocept.runner.runner.init(None, 'zope.conf') as app:
                loop = Loop(
                    app, self.ticks, worker_method,
                    principal=self.get_principal(), once=self.once)
                before = signal.signal(signal.SIGTERM, loop.stopMainLoop)
                try:
                    loop()
                finally:
                    signal.signal(signal.SIGTERM, before)
        return run

'''

NAMES = [
    Row('gocept.runner', '''
from gocept.runner import Exit, appmain, from_config, once
from gocept.runner import transaction_per_item
callable(appmain), callable(once), callable(from_config)
''', (True, True, True)),
    Row('gocept.runner.runner without its import', '''
python('import gocept.runner; '
       'print(gocept.runner.runner.MainLoop.__name__)')
''', 'MainLoop'),
    Row('gocept.runner.runner.init without its import', '''
python('import gocept.runner; print(gocept.runner.runner.init.__name__)')
''', 'init'),
    Row('gocept.runner.transaction without its import', '''
python('import gocept.runner; '
       'print(gocept.runner.transaction.transaction_per_item is '
       'gocept.runner.transaction_per_item)')
''', 'True'),
    Row('gocept.runner.runner', '''
from gocept.runner.runner import Exit, MainLoop, RunnerRequest, appmain
from gocept.runner.runner import from_config, init, once
Exit is gocept.runner.Exit, appmain is gocept.runner.appmain
''', (True, True)),
    Row('gocept.runner.runner.log', '''
logging.getLogger('gocept.runner.runner').name
''', 'gocept.runner.runner'),
    Row('RunnerRequest', '''
from gocept.runner.runner import RunnerRequest
import zope.publisher.interfaces
zope.publisher.interfaces.IRequest.implementedBy(RunnerRequest)
''', True),
    Row('once is an appmain', '''
issubclass(gocept.runner.once, gocept.runner.appmain)
''', True),
    Row('ftesting.zcml', '''
import importlib.resources
(importlib.resources.files('gocept.runner') / 'ftesting.zcml').is_file()
''', True),
]

APPMAIN = [
    Row('appmain(ticks, principal)', '''
decorator = gocept.runner.appmain(2, 'zope.mgr')
decorator.ticks, decorator.principal, decorator.get_principal()
''', (2, 'zope.mgr', 'zope.mgr')),
    Row('once(principal)', '''
decorator = gocept.runner.once('zope.mgr')
decorator.once, decorator.principal, decorator.get_principal()
''', (True, 'zope.mgr', 'zope.mgr')),
    Row('appmain() has no principal', '''
gocept.runner.appmain().get_principal()
''', None),
    Row('appmain.get_principal of a callable', '''
gocept.runner.appmain(principal=lambda: 'zope.mgr').get_principal()
''', 'zope.mgr'),
    Row('a worker that returns Exit', '''
@gocept.runner.appmain(ticks=0.001)
def worker():
    seen.append(len(seen))
    if len(seen) == 3:
        return gocept.runner.Exit
worker(None, 'zope.conf'), seen
''', (None, [0, 1, 2])),
    Row('a worker that returns seconds', '''
@gocept.runner.appmain(ticks=360)
def worker():
    seen.append(len(seen))
    return 0.001 if len(seen) < 3 else gocept.runner.Exit
worker(None, 'zope.conf')
seen
''', [0, 1, 2]),
    Row('a worker with a site', '''
with gocept.runner.runner.init(None, 'zope.conf') as root:
    add_site(root, 'shop')
@gocept.runner.once()
def worker():
    seen.append(zope.component.hooks.getSite().__name__)
worker('shop', 'zope.conf')
seen, zope.component.hooks.getSite()
''', (['shop'], None)),
    Row('a worker with an unknown site', '''
@gocept.runner.once()
def worker():
    pass
worker('shop', 'zope.conf')
''', Raises(KeyError, 'shop')),
    Row('a worker commits', '''
@gocept.runner.once()
def worker():
    zope.component.hooks.getSite().store = True
worker(None, 'zope.conf')
committed('store')
''', True),
    Row('a worker that fails is aborted and called again', '''
@gocept.runner.appmain(ticks=0.001)
def worker():
    seen.append(getattr(zope.component.hooks.getSite(), 'store', None))
    if len(seen) == 2:
        return gocept.runner.Exit
    zope.component.hooks.getSite().store = True
    raise ValueError('no such thing')
worker(None, 'zope.conf')
seen
''', [None, None]),
    Row('a worker that meets a conflict is called again', '''
import ZODB.POSException
@gocept.runner.appmain(ticks=0.001)
def worker():
    seen.append(len(seen))
    if len(seen) == 2:
        return gocept.runner.Exit
    raise ZODB.POSException.ConflictError()
worker(None, 'zope.conf')
seen
''', [0, 1]),
    Row('a worker that raises SystemExit', '''
@gocept.runner.appmain(ticks=0.001)
def worker():
    seen.append(len(seen))
    raise SystemExit(1)
worker(None, 'zope.conf'), seen
''', (None, [0])),
    Row('a worker that raises KeyboardInterrupt', '''
@gocept.runner.appmain(ticks=0.001)
def worker():
    seen.append(len(seen))
    raise KeyboardInterrupt
worker(None, 'zope.conf'), seen
''', (None, [0])),
    Row('SIGTERM', '''
@gocept.runner.appmain(ticks=360)
def worker():
    os.kill(os.getpid(), signal.SIGTERM)
logged(lambda: worker(None, 'zope.conf'))[-1]
''', 'Received signal 15, terminating.', 'ends after the pause'),
    Row('SIGHUP', '''
@gocept.runner.appmain(ticks=360)
def worker():
    os.kill(os.getpid(), signal.SIGHUP)
logged(lambda: worker(None, 'zope.conf'))[-1]
''', 'Received signal 1, terminating.', 'ends after the pause'),
    Row('appmain(ticks=Exit) is once', '''
@gocept.runner.appmain(ticks=gocept.runner.Exit)
def worker():
    seen.append(len(seen))
worker(None, 'zope.conf')
seen
''', [0], 'TypeError'),
    Row('once', '''
@gocept.runner.once()
def worker():
    seen.append(len(seen))
    return 360
worker(None, 'zope.conf')
seen
''', [0]),
    Row('the product configuration in a worker', '''
from zope.app.appsetup.product import getProductConfiguration
@gocept.runner.once()
def worker():
    seen.append(getProductConfiguration('test')['foo'])
worker(None, 'zope.conf')
seen
''', ['bar']),
    Row('sys.argv in a worker of an older script', '''
write('script.py', """
    import sys
    import gocept.runner

    @gocept.runner.once()
    def build_main():
        print(sys.argv[1])

    build_main(None, 'zope.conf')
""")
python('script.py', 'http://xml.example.com/2026/48')
''', 'http://xml.example.com/2026/48'),
    Row('argparse in a worker of an older script', '''
write('script.py', """
    import argparse
    import gocept.runner

    @gocept.runner.once()
    def reindex():
        parser = argparse.ArgumentParser(description='Reindex a folder')
        parser.add_argument('ids', nargs='+')
        parser.add_argument('--parallel', action='store_true')
        print(parser.parse_args())

    reindex(None, 'zope.conf')
""")
python('script.py', '--parallel', 'a', 'b')
''', "Namespace(ids=['a', 'b'], parallel=True)"),
]

PRINCIPALS = [
    Row('principal=', '''
@gocept.runner.once(principal='zope.mgr')
def worker():
    interaction = zope.security.management.getInteraction()
    seen.append(interaction.participations[0].principal.id)
worker(None, 'zope.conf')
seen, zope.security.management.queryInteraction()
''', (['zope.mgr'], None)),
    Row('no principal, no interaction', '''
@gocept.runner.once()
def worker():
    seen.append(zope.security.management.queryInteraction())
worker(None, 'zope.conf')
seen
''', [None]),
    Row('principal=from_config', '''
@gocept.runner.once(principal=gocept.runner.from_config('test', 'user'))
def worker():
    seen.append(user())
worker(None, 'zope.conf')
seen
''', ['zope.mgr']),
    Row('from_config of an unknown section', '''
gocept.runner.from_config('unknown', 'user')()
''', Raises(KeyError)),
    Row('from_config of an unknown variable', '''
@gocept.runner.once(principal=gocept.runner.from_config('test', 'unknown'))
def worker():
    pass
worker(None, 'zope.conf')
''', Raises(KeyError)),
    Row('principal=a function', '''
@gocept.runner.once(principal=lambda: 'zope.mgr')
def worker():
    seen.append(user())
worker(None, 'zope.conf')
seen
''', ['zope.mgr']),
    Row('principal=a function that exits', '''
def principal_from_args():
    raise SystemExit(1)
@gocept.runner.once(principal=principal_from_args)
def worker():
    pass
worker(None, 'zope.conf')
''', Raises(SystemExit, '1')),
    Row('an unknown principal', '''
@gocept.runner.once(principal='nobody')
def worker():
    pass
worker(None, 'zope.conf')
''', Raises(PrincipalLookupError, 'nobody')),
    Row('appmain.get_principal overridden', '''
class as_manager(gocept.runner.appmain):
    def get_principal(self):
        return 'zope.mgr'
@as_manager(ticks=0.001)
def worker():
    seen.append(user())
    return gocept.runner.Exit
worker(None, 'zope.conf')
seen
''', ['zope.mgr']),
    Row('once.get_principal overridden', '''
class as_manager(gocept.runner.once):
    def get_principal(self):
        return 'zope.mgr'
@as_manager()
def worker():
    seen.append(user())
worker(None, 'zope.conf')
seen
''', ['zope.mgr']),
    Row('the participation takes attributes', '''
@gocept.runner.once(principal='zope.mgr')
def worker():
    interaction = zope.security.management.getInteraction()
    interaction.participations[0].mark = 1
    interaction = zope.security.management.getInteraction()
    seen.append(interaction.participations[0].mark)
worker(None, 'zope.conf')
seen
''', [1]),
    Row('the participation is a RunnerRequest', '''
@gocept.runner.once(principal='zope.mgr')
def worker():
    interaction = zope.security.management.getInteraction()
    seen.append(type(interaction.participations[0]).__name__)
worker(None, 'zope.conf')
seen
''', ['RunnerRequest']),
]

LOOP = [
    Row('MainLoop(app, ticks, worker, principal=, once=)', '''
loop = gocept.runner.runner.MainLoop(app(), 0.001, len, principal='zope.mgr',
                                     once=True)
loop.ticks, loop.worker, loop.once
''', (0.001, len, True)),
    Row('MainLoop in surroundings of its own', '''
def worker():
    seen.append(zope.component.hooks.getSite() is root)
    root.store = True
    return gocept.runner.Exit
root = app()
gocept.runner.runner.MainLoop(root, 0.001, worker)()
seen, committed_of(root, 'store'), zope.component.hooks.getSite()
''', ([True], True, None)),
    Row('MainLoop with a principal', '''
def worker():
    seen.append(user())
    return gocept.runner.Exit
with gocept.runner.runner.init(None, 'zope.conf') as root:
    gocept.runner.runner.MainLoop(root, 0.001, worker, 'zope.mgr')()
seen
''', ['zope.mgr']),
    Row('MainLoop(once=True)', '''
def worker():
    seen.append(len(seen))
gocept.runner.runner.MainLoop(app(), 360, worker, once=True)()
seen
''', [0]),
    Row('MainLoop.stopMainLoop as a signal handler', '''
def worker():
    seen.append(len(seen))
    os.kill(os.getpid(), signal.SIGTERM)
loop = gocept.runner.runner.MainLoop(app(), 360, worker)
before = signal.signal(signal.SIGTERM, loop.stopMainLoop)
try:
    loop()
finally:
    signal.signal(signal.SIGTERM, before)
seen
''', [0], 'ends after the pause'),
    Row('MainLoop.begin and commit', '''
root = app()
loop = gocept.runner.runner.MainLoop(root, 1, len)
loop.begin()
root.store = True
loop.commit()
committed_of(root, 'store')
''', True),
    Row('MainLoop.begin and abort', '''
root = app()
loop = gocept.runner.runner.MainLoop(root, 1, len)
loop.begin()
root.store = True
loop.abort()
committed_of(root, 'store')
''', None),
    Row('MainLoop.begin makes the interaction, commit ends it', '''
with gocept.runner.runner.init(None, 'zope.conf') as root:
    zope.component.hooks.setSite(root)
    loop = gocept.runner.runner.MainLoop(root, 1, len, 'zope.mgr')
    loop.begin()
    seen.append(user())
    loop.commit()
    seen.append(zope.security.management.queryInteraction())
    loop.begin()
    loop.abort()
    seen.append(zope.security.management.queryInteraction())
seen
''', ['zope.mgr', None, None]),
    Row('MainLoop.begin, commit and abort overridden', '''
class Loop(gocept.runner.runner.MainLoop):
    def begin(self):
        seen.append('begin')
        super().begin()
    def commit(self):
        super().commit()
        seen.append('commit')
    def abort(self):
        super().abort()
        seen.append('abort')
def worker():
    seen.append('work')
    if len(seen) > 4:
        return gocept.runner.Exit
    raise ValueError('no such thing')
Loop(app(), 0.001, worker)()
seen
''', ['begin', 'work', 'abort', 'begin', 'work', 'commit']),
    Row('MainLoop.commit that swallows conflicts', '''
import ZODB.POSException
class Loop(gocept.runner.runner.MainLoop):
    def commit(self):
        try:
            super().commit()
        except ZODB.POSException.ConflictError:
            self.abort()
            seen.append('swallowed')
def worker():
    seen.append('work')
    root.store = len(seen)
    if len(seen) > 1:
        return gocept.runner.Exit
    transaction.get().addBeforeCommitHook(conflict)
def conflict():
    raise ZODB.POSException.ConflictError()
root = app()
loop = Loop(root, 0.001, worker)
loop()
seen, committed_of(root, 'store'), loop.failed
''', (['work', 'swallowed', 'work'], 3, False), 'has no attribute failed'),
    Row('a loop of its own', OWN_LOOP + '''
def worker():
    seen.append(len(seen))
    root.store = True
    if len(seen) == 3:
        return gocept.runner.Exit
root = app()
Loop(root, 0.001, worker)()
seen, committed_of(root, 'store'), zope.component.hooks.getSite()
''', ([0, 1, 2], True, None)),
    Row('stopMainLoop ends a loop of its own', OWN_LOOP + '''
def worker():
    seen.append(len(seen))
    if len(seen) == 2:
        loop.stopMainLoop(signal.SIGTERM, None)
    return gocept.runner.Exit if len(seen) > 2 else None
loop = Loop(app(), 0.001, worker)
loop()
seen
''', [0, 1]),
    Row('MainLoop.running in a loop of its own', '''
class Loop(gocept.runner.runner.MainLoop):
    def __call__(self):
        while self.running:
            self.begin()
            self.worker()
            self.commit()
def worker():
    seen.append(len(seen))
    if len(seen) == 2:
        loop.stopMainLoop(signal.SIGTERM, None)
loop = Loop(app(), 0.001, worker)
loop()
seen, loop.running
''', ([0, 1], False), 'has no attribute running'),
    Row('errors and conflicts in a loop of its own', OWN_LOOP + '''
import ZODB.POSException
def conflict():
    raise ZODB.POSException.ConflictError()
def worker():
    seen.append('work')
    if len(seen) == 1:
        raise ValueError('no such thing')
    if len(seen) > 3:
        return gocept.runner.Exit
    transaction.get().addBeforeCommitHook(conflict)
Loop(app(), 0.001, worker)()
seen
''', ['work', 'error', 'work', 'conflict', 'work']),
    Row('an error in a loop of its own that runs once', OWN_LOOP + '''
def worker():
    raise ValueError('no such thing')
Loop(app(), 0.001, worker, once=True)()
''', Raises(ValueError, 'no such thing')),
    Row('a decorator of its own', OWN_DECORATOR + '''
@runner(principal=gocept.runner.from_config('test', 'user'))
def main():
    seen.append(user())
    zope.component.hooks.getSite().store = True
main()
seen, committed('store')
''', (['zope.mgr'], True)),
    Row('a decorator of its own with ticks', OWN_DECORATOR + '''
@runner(ticks=0.001, principal='zope.mgr', once=False)
def main():
    seen.append(user())
    if len(seen) == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return gocept.runner.Exit if len(seen) > 3 else None
main()
seen
''', ['zope.mgr', 'zope.mgr', 'zope.mgr']),
    Row('a decorator of its own with ticks=Exit', '''
class runner(gocept.runner.appmain):
    def __init__(self, ticks=1, principal=None, once=True):
        super().__init__(ticks=ticks, principal=principal)
        self.once = once
    def __call__(self, worker_method):
        def run():
            gocept.runner.runner.MainLoop(
                app(), self.ticks, worker_method,
                principal=self.get_principal(), once=self.once)()
        return run
@runner(ticks=gocept.runner.Exit, once=False)
def main():
    seen.append(len(seen))
main()
seen
''', [0], 'TypeError'),
    Row('an appmain with an old-style super call', '''
class NdoMain(gocept.runner.appmain):
    def __init__(self, ticks=1, principal=None):
        gocept.runner.appmain.__init__(self, ticks, principal)
@NdoMain(ticks=0.001, principal='zope.mgr')
def runner():
    seen.append(user())
    return gocept.runner.Exit
runner(None, 'zope.conf')
seen
''', ['zope.mgr']),
    Row('init', '''
with gocept.runner.runner.init(None, 'zope.conf') as root:
    root.store = True
    transaction.commit()
committed('store')
''', True),
    Row('init of an unknown site', '''
with gocept.runner.runner.init('shop', 'zope.conf') as root:
    pass
''', Raises(KeyError, 'shop')),
]

ITEMS = [
    Row('transaction_per_item', '''
@gocept.runner.once()
@gocept.runner.transaction_per_item
def worker():
    for number in range(3):
        yield lambda: work(number)
def work(number):
    root = zope.component.hooks.getSite()
    root.store = getattr(root, 'store', ()) + (number,)
    if number == 1:
        raise ValueError('no such thing')
worker(None, 'zope.conf')
committed('store')
''', (0, 2)),
    Row('transaction_per_item after a conflict', '''
import ZODB.POSException
@gocept.runner.once()
@gocept.runner.transaction_per_item
def worker():
    for number in range(3):
        yield functools.partial(work, number)
def work(number):
    seen.append(number)
    if number == 1:
        raise ZODB.POSException.ConflictError()
worker(None, 'zope.conf')
sorted(set(seen))
''', [0, 1, 2]),
    Row('transaction_per_item called by a worker', '''
@gocept.runner.transaction_per_item
def update():
    return itertools.chain([lambda: seen.append(1)], [lambda: seen.append(2)])
@gocept.runner.once(principal='zope.mgr')
def worker():
    seen.append('started')
    update()
    seen.append('finished')
worker(None, 'zope.conf')
seen
''', ['started', 1, 2, 'finished']),
    Row('transaction_per_item outside a worker', '''
@gocept.runner.transaction_per_item
def update():
    yield lambda: seen.append(1)
update()
seen
''', [1]),
    Row('transaction_per_item with code after the last item', '''
@gocept.runner.once()
@gocept.runner.transaction_per_item
def worker():
    yield lambda: seen.append('item')
    seen.append('metrics')
worker(None, 'zope.conf')
seen
''', ['item', 'metrics']),
    Row('transaction_per_item with arguments', '''
@gocept.runner.transaction_per_item
def update(first, second=None):
    yield lambda: seen.append((first, second))
update(1, second=2)
seen
''', [(1, 2)], 'TypeError'),
    Row('transaction_per_item keeps the name', '''
@gocept.runner.transaction_per_item
def update():
    """Update all."""
update.__name__, update.__doc__
''', ('update', 'Update all.')),
    Row('a marked participation is that of the items', '''
@gocept.runner.once(principal='zope.mgr')
@gocept.runner.transaction_per_item
def worker():
    request().mark = 1
    yield lambda: seen.append(request().mark)
    yield lambda: seen.append(request().mark)
def request():
    return zope.security.management.getInteraction().participations[0]
worker(None, 'zope.conf')
seen
''', [1, 1]),
]

ROWS = [*NAMES, *APPMAIN, *PRINCIPALS, *LOOP, *ITEMS]
