"""What the tests of executors need."""

import gc
import os
from typing import Any

from gocept.runner import proc
from gocept.runner.executor import (
    SimpleExecutor,
)
from gocept.runner.tests.support import (
    TestCase,
    end_background,
    open_descriptors,
)
from gocept.runner.tests.victims import adopt_no_more


class ExecutorTestCase(TestCase):
    """No child and no descriptor may be left."""

    def setUp(self) -> None:
        super().setUp()
        end_background()
        before = open_descriptors().keys(), set(proc.children(os.getpid()))
        self.addCleanup(self.check_left, before)
        self.addCleanup(end_background)

    def check_left(self, before: Any) -> None:
        gc.collect()
        end_background()
        adopt_no_more()
        # What is kept back to end processes with is kept for ever.
        left = {fd: target for fd, target in open_descriptors().items()
                if fd not in before[0] and target != os.devnull}
        children = set(proc.children(os.getpid())) - before[1]
        self.assertEqual(({}, set()), (left, children))

    def stopping(self, executor: SimpleExecutor) -> Any:
        self.addCleanup(executor.kill)
        return executor


def is_gone(pid: int) -> bool:
    now = proc.stat(pid)
    return now is None or now.state in 'ZX'
