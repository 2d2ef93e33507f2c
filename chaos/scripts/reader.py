"""A client of a kernel that stores what it reads, and may be killed.

usage: reader.py KERNEL JOURNAL NAME...

A record of the journal has what was read, and the position after it. One that
is killed while it writes leaves a torn record, which the next one removes.
"""

import json
import os
import pathlib
import sys
from typing import Any

from gocept.runner.kernel import Kernel, ProcessOutput

LONGEST_WAIT = 60
"""For an answer of the kernel, in seconds."""


def records(path: pathlib.Path) -> list[dict[str, Any]]:
    """What is stored, without a torn record."""
    data = path.read_bytes() if path.exists() else b''
    return [*map(json.loads, data[:data.rfind(b'\n') + 1].splitlines())]


def last_position(path: pathlib.Path) -> Any:
    """Where to go on; the journal has only complete records afterwards."""
    if not path.exists():
        return None
    with open(path, 'rb+') as journal:
        data = journal.read()
        end = data.rfind(b'\n') + 1
        journal.truncate(end)
    last = data[data.rfind(b'\n', 0, max(end - 1, 0)) + 1:end]
    return json.loads(last)['position'] if last else None


def text(output: ProcessOutput) -> tuple[str, str]:
    """A name, and what JSON can hold of any bytes."""
    assert isinstance(output.data, bytes)
    return output.name, output.data.decode('latin-1')


def main() -> None:
    where, path, *names = sys.argv[1:]
    journal_path = pathlib.Path(path)
    position = last_position(journal_path)
    with (Kernel(where, LONGEST_WAIT) as kernel,
          kernel.watch_processes(*names, after=position) as watcher,
          open(journal_path, 'ab', 0) as journal):
        while watcher:
            out, err, closed = watcher.read() or ((), (), ())
            record = {
                'out': [*map(text, out)], 'err': [*map(text, err)],
                'closed': [(each.name, each.data) for each in closed],
                'missing': watcher.missing, 'position': watcher.position}
            data = json.dumps(record).encode() + b'\n'
            while data:
                data = data[os.write(journal.fileno(), data):]


if __name__ == '__main__':
    main()
