"""Tasks that a server finds itself: in an `init_file`, or by their names."""

import os
import sys
from collections.abc import Sequence

from gocept.runner.background.tasks import Definition, Task
from gocept.runner.errors import ServerNotStarted


def definition(path: str) -> Definition:
    """Run the file as a module, and return its tasks.

    Other modules in its directory can be imported. ServerNotStarted if there
    is no such file, or it lacks a task; what its code raises is raised.
    """
    from importlib.util import module_from_spec, spec_from_file_location
    directory, file = os.path.split(path)
    name = file.removesuffix('.py')
    if name in sys.modules:  # so not for imports
        name = f'{__name__}.{name}'
    spec = spec_from_file_location(name, path)
    if not os.path.isfile(path) or spec is None or spec.loader is None:
        raise ServerNotStarted(
            f'the init file {path} is not there, or its name does not end '
            'with .py')
    module = module_from_spec(spec)
    sys.modules[name] = module
    if directory not in sys.path:
        sys.path.append(directory)
    spec.loader.exec_module(module)
    tasks: dict[str, Task] = {}
    for field in Definition._fields:
        task = getattr(module, f'{field}_task', None)
        if task is None and field == 'exit':
            continue
        if not callable(task):
            raise ServerNotStarted(
                f'the init file {path} has to define the functions init_task '
                f'and exec_task, and may define exit_task: its {field}_task '
                + ('is missing' if task is None else
                   f'is no function, but {task!r}'))
        tasks[field] = task
    return Definition(**tasks)


def named(names: Sequence[str | None]) -> Definition:
    """The tasks with these names, such as ``my.package:init``.

    ServerNotStarted if there is none; what its module raises is raised.
    """
    from pkgutil import resolve_name
    tasks = []
    for name in filter(None, names):
        try:
            task = resolve_name(name)
        except AttributeError as error:
            raise ServerNotStarted(f'there is no {name}: {error}') from error
        if not callable(task):
            raise ServerNotStarted(f'{name} is no function, but {task!r}')
        tasks.append(task)
    return Definition(*tasks)
