"""The metrics of a house whose workers are killed."""

import contextlib
import os
import re
import signal
import urllib.request

from gocept.runner.tests.support import DEADLINE, TestCase
from gocept.runner.tests.victims import until

SITE = '''\
    <configure xmlns="http://namespaces.zope.org/zope"
               xmlns:runner="http://namespaces.gocept.com/runner">
      <include package="gocept.runner" file="site.zcml" />
      <include package="gocept.runner" />
      <runner:worker name="work" handler="jobs:work" ticks="0.05" />
    </configure>
    '''

UP = '''\
    import sys
    from gocept.runner.cli import main
    sys.exit(main())
    '''


class RestartTests(TestCase):

    level = 2  # takes some seconds

    def get(self, path: str) -> str:
        """What is served there; '' as long as nobody serves it."""
        with contextlib.suppress(OSError), urllib.request.build_opener(
                urllib.request.ProxyHandler({})).open(
                    self.address + path, timeout=DEADLINE) as answer:
            return answer.read().decode()
        return ''

    def samples(self) -> dict[str, float]:
        """The values of `work` by the names of the metrics."""
        return {name: float(value) for name, value in re.findall(
            r'^gocept_runner_(\w+){(?:outcome="committed",)?site="/",'
            r'worker="work"} (\S+)$', self.get('/metrics'), re.MULTILINE)}

    def test_counters_go_on(self) -> None:
        self.write('site.zcml', SITE)
        self.write('jobs.py', 'def work():\n    pass\n')
        config = self.zope_conf('site-definition site.zcml')
        program = self.program(
            UP, 'up', '--config', config, '--http', '0', environment={
                'XDG_STATE_HOME': str(self.dir / 'home')})
        program.wait_for('Serving http://127.0.0.1:')
        found = re.search('http://[0-9.]+:[0-9]+', program.output)
        assert found is not None
        self.address = found[0]
        before = self.killed(starts=1)
        for starts in 2, 3:
            after = self.killed(starts=starts)
            for name in ('ticks_total', 'tick_duration_seconds_count',
                         'tick_duration_seconds_sum'):
                self.assertLess(before[name], after[name], name)
            before = after
        program.send(signal.SIGTERM)
        program.end()

    def killed(self, starts: int) -> dict[str, float]:
        """The samples when the worker was started so often, and has done
        some ticks; it is killed then."""
        least = self.samples().get('ticks_total', 0)

        def ready() -> dict[str, float] | None:
            samples = self.samples()
            return samples if (
                samples.get('worker_starts_total') == starts
                and samples.get('ticks_total', 0) >= least + 3
                and samples.get('worker_running')) else None
        samples = until(ready)
        assert samples is not None
        pid = re.search(r'data-title="Process"><span>(\d+)', self.get('/'))
        assert pid is not None
        os.kill(int(pid[1]), signal.SIGKILL)
        return samples
