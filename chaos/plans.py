"""What a program of `chaos.children` is to do, chosen at random.

A plan is JSON: `chaos.scripts.program` carries it out, and hands parts of it
to `chaos.scripts.child`. All choices are made here, so that a seed makes them
again; when something happens is another matter.
"""

import random
import signal
import sys
from typing import Any

from chaos.scripts import child

SIZES = ([1, 2, 3], [1, 100, 4096], [65536, 3000], [7, 70000, 200000])
"""Of pieces that are sent and received."""

LONGEST_TALK = 300_000
"""How much is sent to be echoed at most; less if it goes byte by byte."""

FATAL = (signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGUSR1,
         signal.SIGABRT)

ENDINGS = ('return', 'return', 'exit', 'raise', 'SIGINT', 'handled SIGTERM',
           'SIGTERM', 'SIGKILL')
"""`SIGINT` raises KeyboardInterrupt, the handler of SIGTERM SystemExit."""

SUDDEN = ('SIGTERM', 'SIGKILL')
"""Where no code of ours runs any more."""

LONGEST_DELAY = 0.8
"""How long a program runs at most before its signal comes, in seconds."""


class Plan:
    """The choices of one run."""

    def __init__(self, randomly: random.Random, directory: str, word: str,
                 ) -> None:
        self._randomly = randomly
        self._directory = directory
        self._word = word
        self._records = f'{directory}/records'
        self.apps: dict[str, dict[str, Any]] = {}
        ending = randomly.choice(ENDINGS)
        self.content = {
            'directory': directory, 'word': word, 'records': self._records,
            'ending': ending, 'status': randomly.randrange(1, 255),
            'delay': randomly.uniform(0, LONGEST_DELAY),
            'closes': ending in SUDDEN or randomly.random() < 0.6,
            'own_poller': randomly.random() < 0.3,
            'fallback': randomly.random() < 0.15,
            'forks': randomly.random() < 0.15,
            'apps': self.apps,
            'actors': self._actors(ending in SUDDEN)}

    def _chance(self, probability: float) -> bool:
        return self._randomly.random() < probability

    def _actors(self, sudden: bool) -> list[dict[str, Any]]:
        randomly = self._randomly
        actors = []
        for _ in range(randomly.randrange(3)):
            actors.append(self._talk())
        for make in (self._listen, self._restart):
            if self._chance(0.5):
                actors.append(make())
        meddlers = randomly.randrange(4)
        if meddlers or not actors:
            shared = [self._add(*self._wild())
                      for _ in range(randomly.randrange(1, 4))]
            # Who talks is left alone half of the time.
            aliases = shared + [actor['app'] for actor in actors
                                if self._chance(0.2)]
            actors += [self._meddle(aliases) for _ in range(meddlers or 1)]
        if sudden:
            actors.append(self._leave())
        randomly.shuffle(actors)
        return actors

    # What the program does with its children.

    def _talk(self) -> dict[str, Any]:
        randomly = self._randomly
        sizes = randomly.choice(SIZES)
        kind = randomly.choice(['bytes', 'line', 'text'])
        keywords: dict[str, Any] = {
            'bytes': {}, 'line': {'buffering': 'line'},
            'text': {'encoding': 'utf-8'}}[kind]
        if kind == 'line':
            keywords['limit'] = randomly.choice([10, 1000, 2 ** 20])
        if self._chance(0.5):
            keywords['high_water'] = randomly.choice([0, 1, 1000, 100_000])
        echoed = randomly.choice(SIZES)
        plan = self._plan(
            'echo', seed=randomly.getrandbits(32), sizes=echoed,
            pausing=randomly.choice([0, 0.01]) if min(echoed) > 3 else 0)
        if self._chance(0.3):
            plan |= {'does': 'serve', 'late': randomly.uniform(0, 0.05),
                     'socket': f'{self._directory}/{len(self.apps)}.socket'}
            keywords |= {'type': 'socket', 'socket': plan['socket']}
        return {
            'acts': 'talk', 'app': self._add(plan, keywords), 'kind': kind,
            'seed': randomly.getrandbits(32), 'sizes': sizes,
            'size': randomly.randrange(
                LONGEST_TALK if min(sizes) > 3 else 5000),
            'pausing': randomly.choice([0, 0, 0.05]),
            'killed': randomly.uniform(0, 0.1) if self._chance(0.4) else None}

    def _listen(self) -> dict[str, Any]:
        randomly = self._randomly
        late = self._chance(0.3)
        most = 15_000 if late else 200_000  # what two pipes hold surely
        plan = self._plan('say', out=randomly.randrange(most),
                          err=randomly.randrange(most),
                          piece=randomly.choice([1000, 4096, 70_000]),
                          life=0)
        return {'acts': 'listen', 'late': late,
                'app': self._add(plan, {'stderr': 'pipe'})}

    def _restart(self) -> dict[str, Any]:
        randomly = self._randomly
        plan = self._plan('wait', life=randomly.uniform(0, 0.02))
        plan['statuses'] = [self._status()
                            for _ in range(randomly.randrange(1, 5))]
        keywords = self._restarting()
        keywords['restart_limit'] = randomly.randrange(4)
        return {'acts': 'restart', 'app': self._add(plan, keywords)}

    def _leave(self) -> dict[str, Any]:
        plan = self._plan('wait', life=None, must_die=True)
        return {'acts': 'leave',
                'app': self._add(plan, {'die_with_parent': True})}

    def _meddle(self, aliases: list[str]) -> dict[str, Any]:
        return {'acts': 'meddle',
                'ops': [self._op(aliases)
                        for _ in range(self._randomly.randrange(2, 15))]}

    def _op(self, aliases: list[str]) -> dict[str, Any]:
        randomly = self._randomly
        op = randomly.choice([
            'start', 'start', 'ensure', 'insist', 'terminate', 'terminate',
            'signal', 'signal', 'signal_one', 'look', 'write', 'close'])
        if op == 'close' and self._chance(0.7):
            op = 'look'
        stop = randomly.choice([signal.SIGSTOP, signal.SIGCONT])
        return {
            'op': op, 'alias': randomly.choice(aliases),
            'signum': stop if self._chance(0.3) else randomly.choice(FATAL),
            'default': self._chance(0.6),
            'timeout': randomly.choice([None, None, 0, 0.05]),
            'number': randomly.randrange(100),
            'size': randomly.randrange(100_000),
            'pause': randomly.uniform(0, randomly.choice([0, 0.02, 0.1]))}

    # The children.

    def _add(self, plan: dict[str, Any], keywords: dict[str, Any]) -> str:
        name = f'{plan["does"]}{len(self.apps)}'
        keywords.setdefault('stop_timeout', 60)
        self.apps[name] = {**keywords, 'command': [
            sys.executable, '-I', '-S', child.__file__, self._word, plan]}
        plan['counter'] = f'{self._directory}/{name}.count'
        return name

    def _plan(self, does: str, **details: Any) -> dict[str, Any]:
        return {'does': does, 'records': self._records,
                'statuses': [self._randomly.randrange(255)], **details}

    def _status(self) -> int:
        randomly = self._randomly
        return randomly.choice([
            0, randomly.randrange(255), -randomly.choice(FATAL)])

    def _restarting(self) -> dict[str, Any]:
        return {'restart': self._randomly.choice(
                    ['never', 'on-failure', 'always']),
                'restart_delay': self._randomly.uniform(0, 0.02)}

    def _wild(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """A child that has manners of its own."""
        randomly = self._randomly
        does = randomly.choice(
            ['wait', 'wait', 'wait', 'hush', 'stop', 'say', 'breed'])
        plan = self._plan(
            does, out=randomly.randrange(100_000), err=0, piece=4096,
            life=randomly.uniform(0, 0.2) if self._chance(0.4) else None)
        plan['statuses'] = [self._status()]
        keywords = self._restarting() if self._chance(0.3) else {}
        keywords['stderr'] = randomly.choice(['pipe', 'null', 'inherit'])
        group = self._chance(0.4)
        if group:
            keywords[randomly.choice(['setpgrp', 'setsid'])] = True
        if self._chance(0.1):
            keywords['rlimits'] = {'core': 0}
        if self._chance(0.15):
            keywords['adopt'] = True
        if self._chance(0.2) and does != 'breed':
            keywords['die_with_parent'] = plan['must_die'] = True
        elif self._chance(0.6) or does == 'breed':
            self._found_family(plan, group)
        if self._chance(0.25):
            plan['ignores'] = [signal.SIGTERM]
            keywords['stop_timeout'] = randomly.uniform(0, 0.3)
        elif self._chance(0.4):
            plan['at_term'] = randomly.randrange(255)
        if does in ('stop', 'breed') or plan.get('family'):
            keywords['stop_timeout'] = randomly.uniform(0, 0.5)
        return plan, keywords

    def _found_family(self, plan: dict[str, Any], group: bool) -> None:
        randomly = self._randomly
        if plan['does'] == 'breed':
            plan['member'] = self._member(2)
            plan['members'] = randomly.randrange(1, 10)
            plan['pause'] = randomly.choice([0, 0.002, 0.02])
        plan['family'] = [self._member(0)
                          for _ in range(randomly.randrange(1, 4))]
        if group and self._chance(0.5):
            # Known by its group only, when its parent is dead.
            forgetful = self._member(2)
            forgetful |= {'forgets': True, 'setsid': False, 'leaves': False}
            plan['family'].append(forgetful)

    def _member(self, depth: int) -> dict[str, Any]:
        randomly = self._randomly
        life = randomly.uniform(0, 0.3) if self._chance(0.3) else None
        plan = self._plan('wait', life=life, leaves=self._chance(0.4),
                          setsid=self._chance(0.4))
        if self._chance(0.2):
            plan['ignores'] = [signal.SIGTERM]
        if depth < 2 and self._chance(0.3):
            plan['family'] = [self._member(depth + 1)
                              for _ in range(randomly.randrange(1, 3))]
        return plan


def expected_statuses(app: dict[str, Any], plan: dict[str, Any]) -> list[int]:
    """What a child ends with, each time that it is restarted, if let alone."""
    found: list[int] = []
    while True:
        found.append(plan['statuses'][:len(found) + 1][-1])
        again = app['restart'] == 'always' or (
            app['restart'] == 'on-failure' and found[-1] != 0)
        if not again or len(found) > app['restart_limit']:
            return found
