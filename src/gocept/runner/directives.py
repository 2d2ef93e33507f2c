"""What the ZCML directives do.

It is in `gocept.runner.zcml.directives`; ZCML may know it by this name.
"""

from gocept.runner.zcml.directives import app, executor, worker

__all__ = ['app', 'executor', 'worker']
