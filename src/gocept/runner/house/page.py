"""The page with the workers of a house: HTML and SVG, without any script.

It renews itself by ``<meta http-equiv="refresh">``. What workers write of
themselves may come from anywhere, such as the text of an error with a line of
an e-mail in it. So each text is escaped, and a policy forbids the browser to
load or run anything (Content-Security-Policy). The style is known by its hash.
"""

import base64
import functools
import hashlib
import html
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from gocept.runner.house.census import Resident
from gocept.runner.operation import report
from gocept.runner.operation.amounts import NONE, duration
from gocept.runner.operation.hour import MINUTES, recent

if TYPE_CHECKING:
    from gocept.runner.house.record import HouseState
    from gocept.runner.operation.state import Minute

RENEWAL = 10
"""Seconds after which the page renews itself."""

TITLES = {
    'WORKER': 'Worker', 'PID': 'Process', 'STATE': 'State',
    'LAST TICK': 'Last tick', 'NEXT TICK': 'Next tick', 'TICKS': 'Ticks',
    'FAILED': 'Failed', 'CHILDREN': 'Children', 'MEMORY': 'Memory',
    'NOTE': 'Note'}
"""By those of `report.TITLES`."""

_NUMBERS = 'PID', 'TICKS', 'FAILED', 'CHILDREN', 'MEMORY'

_ALWAYS = 'former', 'http'
"""Parts of a house that tell nobody anything here."""

_HOUR = 'Last hour'
"""The title of the line, which stands before the number of ticks."""

WIDTH, HEIGHT = 120, 24
"""Of the line, in units of its own."""

_STYLE = '''
:root { color-scheme: light dark;
  --text: #1d2329; --soft: #5b6670; --rule: #d5dbe0; --ground: #fff;
  --band: #f4f6f8; --ill: #b3261e; --late: #8a5a00; --line: #1f6f8b; }
@media (prefers-color-scheme: dark) { :root {
  --text: #e3e7ea; --soft: #9aa5ae; --rule: #39424a; --ground: #14181b;
  --band: #1d2327; --ill: #ff8a80; --late: #ffc457; --line: #6cc4e0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1.25rem 3rem; max-width: 100rem;
  background: var(--ground); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.5rem; line-height: 1.25; }
h2 { margin: 2rem 0 .5rem; font-size: 1.15rem; }
h3 { margin: 1.25rem 0 .25rem; font-size: 1rem; }
p { margin: .35rem 0; }
a { color: inherit; }
.soft, .over td, .over th { color: var(--soft); }
.ill .state, .sum.ill, h3.ill { color: var(--ill); font-weight: 600; }
.late .state { color: var(--late); font-weight: 600; }
table { width: 100%; margin-top: 1rem; border-collapse: collapse; }
th, td { padding: .4rem .5rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--rule); overflow-wrap: anywhere; }
thead th { color: var(--soft); font-weight: 600; white-space: nowrap; }
tbody th { min-width: 9rem; font-weight: 600; }
.state { min-width: 7rem; }
.number { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
thead .number { text-align: right; }
.note { min-width: 15rem; max-width: 28rem; }
svg { display: block; width: 7.5rem; height: 1.5rem; overflow: visible; }
svg path { fill: none; stroke: var(--line); stroke-width: 1.5;
  stroke-linecap: round; stroke-linejoin: round; }
svg .base { stroke: var(--rule); stroke-width: 1; }
svg .tick { fill: var(--line); }
svg .failed { fill: var(--ill); }
.most { white-space: nowrap; color: var(--soft); font-size: .85em; }
pre { margin: .5rem 0; padding: .75rem; overflow-x: auto;
  background: var(--band); border-left: 3px solid var(--rule);
  font: 13px/1.45 ui-monospace, monospace; }
@media (max-width: 60rem) {
  .workers thead { position: absolute; left: -100rem; }
  .workers tr { display: grid; grid-template-columns: 1fr 1fr;
    column-gap: 1rem; padding: .6rem 0;
    border-bottom: 1px solid var(--rule); }
  .workers th, .workers td { padding: .1rem 0; border: 0; }
  .workers td { display: grid; grid-template-columns: 6rem 1fr;
    grid-column: span 2; text-align: left; white-space: normal;
    max-width: none; }
  .workers th, .workers .state { grid-column: span 2; order: -1; }
  .workers .number { grid-column: span 1; }
  .workers td::before { content: attr(data-title); color: var(--soft);
    font-weight: 400; }
  .workers .none { display: none; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
}
'''


def policy() -> str:
    """The Content-Security-Policy of the page."""
    return (f"default-src 'none'; style-src 'sha256-{_digest()}'; img-src "
            "data:; base-uri 'none'; form-action 'none'; frame-ancestors "
            "'none'")


@functools.cache
def _digest() -> str:
    return base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()


def escaped(text: object) -> str:
    """The text as it can stand anywhere in the page.

    Characters that cannot be printed, such as those that change the direction
    of text, and those that no UTF-8 can have, are shown as a sign.
    """
    return html.escape(''.join(
        each if each.isprintable() or each in '\n\t' else '\ufffd'
        for each in str(text)))


def page(house: 'HouseState', residents: Sequence[Resident], host: str, *,
         renewal: int | None = RENEWAL) -> str:
    """The whole page. With `renewal` None it does not renew itself."""
    ill = [each for each in residents if not each.healthy]
    title = (f'{len(ill)} of {len(residents)} not healthy' if ill
             else f'{len(residents)} healthy')
    refresh = (f'<meta http-equiv="refresh" content="{renewal}">\n'
               if renewal else '')
    return ''.join((
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, '
        'initial-scale=1">\n', refresh,
        f'<title>{escaped(title)}: workers on {escaped(host)}</title>\n'
        f'<link rel="icon" href="data:,">\n<style>{_STYLE}</style>\n'
        '</head>\n<body>\n',
        *_beginning(house, residents, ill, host, renewal),
        *_table(residents),
        *_children(residents), *_errors(residents),
        '</body>\n</html>\n'))


def _beginning(house: 'HouseState', residents: Sequence[Resident],
               ill: Sequence[Resident], host: str, renewal: int | None,
               ) -> Iterator[str]:
    now = time.time()
    yield f'<h1>Workers on {escaped(host)}</h1>\n'
    if ill:
        names = ', '.join(each.name for each in ill)
        yield (f'<p class="sum ill">{len(ill)} of {len(residents)} not '
               f'healthy: {escaped(names)}</p>\n')
    else:
        text = {0: 'No workers yet', 1: 'Healthy'}.get(
            len(residents), f'All {len(residents)} healthy')
        yield f'<p class="sum">{text}</p>\n'
    facts = [house['config'],
             f'process {house["pid"]}, {house["phase"]}, started '
             f'{_ago(house["started"]["realtime"], now)}']
    facts += [f'template {each["generation"]} {each["phase"]}'
              for each in (house['template'], house['successor']) if each]
    parts = [name for name in house['parts'] if name not in _ALWAYS]
    if parts:
        facts.append(f'with {", ".join(parts)}')
    yield f'<p class="soft">{escaped("; ".join(facts))}</p>\n'
    clock = time.strftime('%Y-%m-%d %H:%M:%S %Z', time.localtime(now))
    yield f'<p class="soft">{escaped(clock)}, ' + (
        f'renewed every {renewal} s: <a href="?still">stop</a>' if renewal
        else '<a href="/">renew</a>') + '</p>\n'


def _table(residents: Iterable[Resident]) -> Iterator[str]:
    yield '<table class="workers">\n<thead><tr>'
    for name, title in TITLES.items():
        if name == 'TICKS':
            yield f'<th scope="col">{_HOUR}</th>'
        kind = ' class="number"' * (name in _NUMBERS)
        yield f'<th scope="col"{kind}>{title}</th>'
    yield '</tr></thead>\n<tbody>\n'
    for resident in residents:
        yield f'<tr class="{resident.tone}">'
        for name, text in zip(report.TITLES, resident.row, strict=True):
            if name == 'WORKER':
                yield f'<th scope="row">{escaped(text)}</th>'
                continue
            if name == 'TICKS':
                yield from _hour(resident)
            kinds = ' '.join(kind for kind, applies in (
                ('state', name == 'STATE'), ('note', name == 'NOTE'),
                ('number', name in _NUMBERS), ('none', text == NONE),
                ) if applies)
            yield (f'<td class="{kinds}" data-title="{TITLES[name]}">'
                   f'<span>{escaped(text)}</span></td>')
        yield '</tr>\n'
    yield '</tbody>\n</table>\n'


# The line

def _hour(resident: Resident) -> Iterator[str]:
    state, now = resident.state, time.time()
    minutes = [] if state is None else recent(state.get('hour', ()), now)
    if minutes:
        longest = max(minute['longest'] for minute in minutes)
        yield (f'<td data-title="{_HOUR}"><div>{line(minutes, now)}'
               f'<span class="most">{_seconds(longest)} at most</span></div>'
               '</td>')
    else:
        yield f'<td class="none" data-title="{_HOUR}">{NONE}</td>'


def line(minutes: Iterable['Minute'], now: float) -> str:
    """The durations of an hour, which ends at the right: an SVG.

    A minute without ticks does not interrupt the line, since a worker may have
    few of them. A minute with a tick that has failed has a mark of its own.
    """
    by_minute = {minute['at']: minute for minute in minutes}
    last = int(now // 60)
    most = max((minute['longest'] for minute in by_minute.values()),
               default=0.0) or 1.0
    points = [(WIDTH - (last - at) * WIDTH / MINUTES,
               HEIGHT - 1 - max(0.0, minute['longest']) / most * (HEIGHT - 3),
               minute['failed'] > 0)
              for at, minute in sorted(by_minute.items())]
    path = ' '.join(f'{"L" if number else "M"}{x:.1f} {y:.1f}'
                    for number, (x, y, _) in enumerate(points))
    marks = ''.join(
        f'<circle class="{"failed" if failed else "tick"}" cx="{x:.1f}" '
        f'cy="{y:.1f}" r="{2.2 if failed else 1.6}"/>'
        for x, y, failed in points if failed or len(points) <= MINUTES // 3)
    ticks = sum(minute['ticks'] for minute in by_minute.values())
    failures = sum(minute['failed'] for minute in by_minute.values())
    label = f'{ticks} ticks in the last hour, {failures} of them failed'
    return (f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label='
            f'"{label}"><title>{label}</title><path class="base" '
            f'd="M0 {HEIGHT - .5} H{WIDTH}"/><path d="{path}"/>{marks}</svg>')


def _seconds(seconds: float) -> str:
    """A duration of a tick."""
    if seconds < 0.1:
        return f'{seconds * 1000:.3g} ms'
    return f'{seconds:.3g} s' if seconds < 60 else duration(seconds)


def _ago(instant: float, now: float) -> str:
    return f'{duration(max(0.0, now - instant))} ago'


# What stands below the table

def _children(residents: Iterable[Resident]) -> Iterator[str]:
    rows = [(resident.name, child['name'], str(child['pid']), child['state'])
            for resident in residents
            if resident.speaks is not None and resident.state is not None
            for child in resident.state['children']]
    if not rows:
        return
    yield ('<h2>Children</h2>\n<table class="children">\n<thead><tr>'
           '<th scope="col">Worker</th><th scope="col">Child</th>'
           '<th scope="col" class="number">Process</th>'
           '<th scope="col">State</th></tr></thead>\n<tbody>\n')
    for worker, name, pid, state in rows:
        tone = ' class="over"' * state.startswith('ended')
        yield (f'<tr{tone}><td>{escaped(worker)}</td><td>{escaped(name)}</td>'
               f'<td class="number">{escaped(pid)}</td>'
               f'<td>{escaped(state)}</td></tr>\n')
    yield '</tbody>\n</table>\n'


def _errors(residents: Iterable[Resident]) -> Iterator[str]:
    now = time.time()
    errors = [(error['time'], resident, error) for resident in residents
              if resident.state is not None
              and (error := resident.state['last_error']) is not None]
    if errors:
        yield '<h2>Last errors</h2>\n'
    for at, resident, error in sorted(
            errors, key=lambda each: each[0], reverse=True):
        assert resident.state is not None
        failures = resident.state['failures']
        tone = ' class="ill"' * (failures > 0)
        then = ('none has succeeded since' if failures
                else 'succeeded since')
        yield (f'<section>\n<h3{tone}>'
               f'{escaped(resident.name)}</h3>\n<p class="soft">Tick '
               f'{error["tick"]}, {_ago(at, now)}; {then}</p>\n'
               f'<pre>{escaped(_text(error.get("traceback"), error["error"]))}'
               '</pre>\n</section>\n')


def _text(traceback: str | None, error: str) -> str:
    return re.sub(r'\n+\Z', '', traceback or error)
