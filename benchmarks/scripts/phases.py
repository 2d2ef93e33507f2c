"""Milliseconds that each step of a start takes, up to the first tick.

usage: phases.py ZOPE_CONF STARTED

`STARTED` is the instant at which the parent started this process.
"""

import json
import sys
import time

took: dict[str, float] = {}
last = float(sys.argv[2])


def done(step: str) -> None:
    global last
    now = time.monotonic()
    took[step] = (now - last) * 1000
    last = now


def main() -> None:
    done('Python itself')
    import ZODB
    import ZODB.FileStorage  # noqa: F401
    done('import ZODB and FileStorage')
    import ZConfig
    import ZConfig.loader  # noqa: F401
    done('import ZConfig')
    import zope.component.hooks
    done('import zope.component')
    import zope.site.folder
    done('import zope.site.folder, the class of the root folder')
    from gocept.runner import runner
    from gocept.runner.boot import environments, toolkit  # noqa: F401
    done('import gocept.runner.runner, the rest')
    chosen = environments.choose(sys.argv[1])
    options = chosen.load(sys.argv[1])
    done('read the schema and zope.conf')
    import zope.configuration.xmlconfig  # noqa: F401
    done('import zope.configuration')
    with chosen.configured(options):
        done('set up loggers, run the ZCML')
        with chosen.opened(options) as root:
            app = chosen.find_site(root, None)
            done('open the database, find the site')

            def worker() -> object:
                done('enter the loop')
                return runner.Exit

            runner.MainLoop(app, 0, worker)()
    print(json.dumps(took))


if __name__ == '__main__':
    main()
