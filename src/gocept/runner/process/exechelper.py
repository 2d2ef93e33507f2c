"""Become another program, after some steps that Popen cannot take.

This runs as a script of its own, between the fork and the program. First it
sets the resource limits, then groups and user, as limits may need privileges;
then the signal for the death of the parent, as a change of user revokes that.
The script writes `EXEC` to a pipe before the last step, which is to become the
program. If a step fails, it writes the step and the error. The program does
not get the pipe.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import warnings  # noqa: F401, which os.execvpe() could not import as the user

_PR_SET_PDEATHSIG = 1

FAILED = 127

EXEC = b'\n'
"""What is reported when only the program itself can fail."""


def main() -> None:
    """Arguments: options as JSON, the program, and all its arguments."""
    options = json.loads(sys.argv[1])
    os.set_inheritable(options['report'], False)
    step = ''
    try:
        for name, limits in options['rlimits'].items():
            step = f'rlimit {name}'
            resource.setrlimit(
                getattr(resource, f'RLIMIT_{name.upper()}'), tuple(limits))
        step = 'groups'
        if options['extra_groups'] is not None:
            os.setgroups(options['extra_groups'])
        step = 'group'
        if options['group'] is not None:
            os.setregid(options['group'], options['group'])
        step = 'user'
        if options['user'] is not None:
            os.setreuid(options['user'], options['user'])
        step = 'die_with_parent'
        if options['death_signal']:
            _die_with(options['parent'], options['death_signal'])
        for signum in options['restored_signals']:
            signal.signal(signum, signal.SIG_DFL)
        os.environ.pop('LC_CTYPE', None)
        if options['locale'] is not None:
            os.environ['LC_CTYPE'] = options['locale']
        step = ''
        os.write(options['report'], EXEC)
        # One that waits ends the program, and not this script.
        signal.pthread_sigmask(
            signal.SIG_UNBLOCK, options['restored_signals'])
        os.execvpe(sys.argv[2], sys.argv[3:], os.environ)
    except Exception as error:  # the parent raises it
        report = step, getattr(error, 'errno', None), str(error)
        os.write(options['report'], json.dumps(report).encode())
        os._exit(FAILED)


def _die_with(parent: int, signum: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signum):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if os.getppid() != parent:  # it died before
        os.kill(os.getpid(), signum)


if __name__ == '__main__':
    main()
