"""What it takes to watch a tree of a million items.

usage: tree.py
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import transaction
from BTrees.LOBTree import LOBTree
from ZODB.DB import DB

from benchmarks.environments import HOME
from benchmarks.scripts.memory import resident
from gocept.runner.boot.trees import Nodes

ITEMS = 1_000_000
CHANGES = 20
GAP = 10  # between two keys


def main() -> None:
    HOME.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HOME) as home:
        path = f'{home}/Data.fs'
        # In another process, which leaves no memory to be used again.
        subprocess.run([sys.executable, '-m', 'benchmarks.scripts.tree', path],
                       check=True)
        with contextlib.closing(DB(path)) as database:
            print(json.dumps([{'ours': each} for each in measure(database)]))


def create(path: str) -> None:
    """A database with the tree."""
    with (contextlib.closing(DB(path)) as database,
          database.transaction() as connection):
        connection.root()['tree'] = LOBTree(
            {number * GAP: None for number in range(ITEMS)})


def measure(database: DB) -> list[list[float]]:
    """The first walk, walks after a split and without one, and memory."""
    connection = database.open()
    tree = connection.root()['tree']
    nodes = Nodes(connection)
    before = resident()
    first = timed(lambda: nodes.find([tree]))
    kept = resident() - before
    split, same = [], []
    for number in range(CHANGES):
        place = number * ITEMS // CHANGES * GAP
        tree.update(dict.fromkeys(range(place, place + 10 * GAP)))
        stored = [each._p_oid for each in connection._registered_objects]
        transaction.commit()
        nodes.forget(stored)
        split.append(timed(lambda: nodes.find([tree])))
        tree[place] = number
        transaction.commit()
        same.append(timed(lambda: nodes.find([tree])))
    connection.close()
    return [[first], split, same, [kept]]


def timed(call: Callable[[], object]) -> float:
    """Milliseconds that it takes."""
    before = time.perf_counter()
    call()
    return (time.perf_counter() - before) * 1000


if __name__ == '__main__':
    if sys.argv[1:]:
        create(sys.argv[1])
    else:
        main()
