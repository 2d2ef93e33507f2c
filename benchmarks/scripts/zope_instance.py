"""Make an instance of Zope with a site, for the scripts beside this one.

usage: zope_instance.py zope|plone DIRECTORY

The site is ``/site`` with the user ``admin`` in the user folder of the root,
or ``/Plone``. Beside them is what `zope_memory` reads.
"""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import transaction
from zope_bare import opened

OBJECTS = 20_000
SIZE = 1000


def main() -> None:
    kind, directory = sys.argv[1], Path(sys.argv[2])
    if kind == 'plone':
        from gocept.runner.tests.zope.plones import Instance
        Instance(directory)
    else:
        subprocess.run(
            [Path(sys.prefix, 'bin', 'mkwsgiinstance'), '--dir', directory,
             '--user', 'admin:secret'], check=True)
    with opened(str(directory / 'etc' / 'zope.conf')) as root:
        if kind == 'zope':
            root.manage_addFolder('site')
            make_site(root.site)
        fill(root)
        transaction.commit()


def make_site(folder: Any) -> None:
    """What the ZMI does for a site manager."""
    from Products.Five.component import enableSite
    from zope.component import getGlobalSiteManager
    from zope.component.persistentregistry import PersistentComponents
    enableSite(folder)
    folder.setSiteManager(
        PersistentComponents(bases=(getGlobalSiteManager(),)))


def fill(root: Any) -> None:
    """More objects than the cache of a connection holds."""
    from BTrees.IOBTree import IOBTree
    from persistent.mapping import PersistentMapping
    items = root._p_jar.root()['items_of_bench'] = IOBTree()
    for number in range(OBJECTS):
        items[number] = PersistentMapping(data=random.randbytes(SIZE))


if __name__ == '__main__':
    main()
