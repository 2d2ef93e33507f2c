"""The descriptors 0 to 2: standard input, standard output, standard error."""

import os


def fill_standard() -> None:
    """Open /dev/null for those of the descriptors 0 to 2 that are closed.

    Else the next file to be opened gets such a number. Then it receives what
    other code writes to standard error, or a child has it as a standard
    stream. So this is called before anything is opened that stays open.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            new = os.open(os.devnull, os.O_RDWR)
            if new > 2:  # another thread has opened something meanwhile
                os.close(new)
            else:
                os.set_inheritable(new, True)  # as those of a new process
