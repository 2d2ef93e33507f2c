"""Fakes, fixtures and layers for the users' own tests.

The names are handed out lazily: each run of pytest loads the plugin of this
package, and a test of a channel needs no database.
"""

from typing import TYPE_CHECKING

from gocept.runner.waits.lazy import handing_out

if TYPE_CHECKING:
    from gocept.runner.testing.channel import TestChannel
    from gocept.runner.testing.children import fake_children
    from gocept.runner.testing.config import runner_config
    from gocept.runner.testing.layers import ExecutorLayer, KernelLayer
    from gocept.runner.testing.servers import private_kernel, private_server
    from gocept.runner.testing.ticks import run_ticks

__all__ = ['ExecutorLayer', 'KernelLayer', 'TestChannel', 'fake_children',
           'private_kernel', 'private_server', 'run_ticks', 'runner_config']

__getattr__, __dir__ = handing_out(__name__, {
    name: f'{__name__}.{module}' for module, names in {
        'channel': ['TestChannel'],
        'children': ['fake_children'],
        'config': ['runner_config'],
        'layers': ['ExecutorLayer', 'KernelLayer'],
        'servers': ['private_kernel', 'private_server'],
        'ticks': ['run_ticks']}.items() for name in names})
