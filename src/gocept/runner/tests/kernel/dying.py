"""The program of a kernel whose daemon kills itself at a certain instant.

The instant is the name of a file beside the control socket. The file is
removed, so that the next daemon lives.

The directory /hang is on a mount that does not answer.
"""

import importlib.util
import os
import select
import signal
import sys


def load():
    """The daemon, with the instants."""
    from gocept.runner.kernel.daemon import daemon, processes, starts
    from gocept.runner.process import direct, mounts

    def die_at(instant):
        path = os.path.join(os.path.dirname(address), instant)
        if os.path.exists(path):
            os.unlink(path)
            os.kill(os.getpid(), signal.SIGKILL)

    def around(owner, name, before, after):
        real = getattr(owner, name)

        def call(*args, **keywords):
            die_at(before)
            result = real(*args, **keywords)
            die_at(after)
            return result

        setattr(owner, name, call)

    address = ''

    def run(table, link, options):
        nonlocal address
        address = options.address
        return real_run(table, link, options)

    def chdir(path):
        if path == b'/hang':
            select.select([], [], [])
        real_chdir(path)

    real_run, daemon.run = daemon.run, run
    real_chdir, os.chdir = os.chdir, chdir
    mounts.Mounts.may_hang = lambda self, path: path == b'/hang'
    starts.PATIENCE = 0.5
    around(direct, 'spawn', 'before-spawn', 'after-spawn')
    around(direct.Preparation, 'fork', 'before-fork', 'after-fork')
    around(direct.Preparation, 'open_gate', 'before-gate', 'after-gate')
    around(starts.Starts, '_reported', 'before-report', 'after-report')
    around(processes.Processes, 'runs', 'before-pid', 'after-pid')
    around(processes.Processes, 'ended', 'before-end', 'after-end')
    return daemon


if __name__ == '__main__':
    spec = importlib.util.spec_from_file_location('start', os.path.join(
        os.path.dirname(__file__), *('..',) * 2, 'kernel', 'start.py'))
    start = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(start)
    sys.exit(start.main(load))
