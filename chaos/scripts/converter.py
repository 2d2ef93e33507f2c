"""A child that answers each line with the same in capital letters."""

import signal
import sys
import time

PAUSE = 0.002
"""Between two lines, in seconds; it is not speed that is tested."""


def main() -> None:
    """Answer until there are no more lines."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(line.upper())
        sys.stdout.buffer.flush()
        time.sleep(PAUSE)


if __name__ == '__main__':
    main()
