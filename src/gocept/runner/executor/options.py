"""The keywords that all executors have; see `IExecutor`."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

from gocept.runner.process.base import Kernel
from gocept.runner.process.keywords import Keywords
from gocept.runner.process.launch import Redirection

if TYPE_CHECKING:
    from gocept.runner.executor.base import SimpleExecutor


class Options(TypedDict, total=False):
    """The parameters of `SimpleExecutor`, but for the command."""

    cwd: str | os.PathLike[str] | None
    shell: bool
    timeout: float | None
    sleep: float
    stop_signal: int
    kill_signal: int
    expected_returncode: int | None
    envvars: Mapping[str, str] | None
    stdin: Redirection
    stdout: Redirection
    stderr: Redirection
    popen_kwargs: Keywords | None
    stop_timeout: float | None
    output_size: int
    log_file: str | os.PathLike[str] | None
    requires: 'Sequence[SimpleExecutor]'
    die_with_parent: bool | int
    name: str
    kernel: Kernel | None
