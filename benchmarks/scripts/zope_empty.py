"""When a script of ``zconsole run`` begins: the instant, processor time."""

import time

print(time.monotonic(), time.process_time(), flush=True)
