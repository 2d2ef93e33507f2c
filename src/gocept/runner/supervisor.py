"""The utilities that ``configure.zcml`` registers.

They are made in `gocept.runner.zcml`; ZCML may know them by this name.
"""

from gocept.runner.zcml.supervisor import Supervisor
from gocept.runner.zcml.utilities import WorkerPoller, WorkerRunner

__all__ = ['Supervisor', 'WorkerPoller', 'WorkerRunner']
