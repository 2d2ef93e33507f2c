"""One child: its start, its end and that of its descendants; see `IProcess`.
"""

from gocept.runner.process.child import LOST_STATUS, Process
from gocept.runner.process.registry import terminate_all

__all__ = ['LOST_STATUS', 'Process', 'terminate_all']
