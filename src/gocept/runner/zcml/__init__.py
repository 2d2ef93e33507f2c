"""What ZCML declares: schemas, directives, and the life of the children.

The schemas of the directives are `gocept.runner.zcml.schema`.
"""

from gocept.runner.zcml.schema import (
    IAppDirective,
    IChildDirective,
    IExecutorDirective,
    IKernelDirective,
    IServerDirective,
    IWorkerDirective,
)

__all__ = [
    'IAppDirective',
    'IChildDirective',
    'IExecutorDirective',
    'IKernelDirective',
    'IServerDirective',
    'IWorkerDirective',
]
