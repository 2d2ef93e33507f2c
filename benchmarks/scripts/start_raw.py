"""The instant when a database is open: Python and ZODB alone.

usage: start_raw.py DATA_FS
"""

import sys
import time

import ZODB
import ZODB.FileStorage

database = ZODB.DB(ZODB.FileStorage.FileStorage(sys.argv[1]))
database.open().root()
print(time.monotonic())
database.close()
