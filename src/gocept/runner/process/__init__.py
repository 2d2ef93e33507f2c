"""One child: its start, its end and that of its descendants; see `IProcess`.

The names are imported when they are asked for: a daemon that only uses the
lower modules starts in a fraction of the time.
"""

from typing import TYPE_CHECKING

from gocept.runner.waits.lazy import handing_out

if TYPE_CHECKING:
    from gocept.runner.process.child import LOST_STATUS, Process
    from gocept.runner.process.registry import terminate_all

__all__ = ['LOST_STATUS', 'Process', 'terminate_all']

__getattr__, __dir__ = handing_out(__name__, {
    **dict.fromkeys(('LOST_STATUS', 'Process'), f'{__name__}.child'),
    'terminate_all': f'{__name__}.registry',
})
