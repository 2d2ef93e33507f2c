"""The page with the workers."""

import base64
import hashlib
import html.parser
import os
import re
import time
from typing import Any

from gocept.runner.house import page
from gocept.runner.house.census import Resident
from gocept.runner.tests.house.houses import house_state, worker_state
from gocept.runner.tests.house.test_census import CensusCase

VOID = {'meta', 'link', 'circle', 'path'}

EVIL = '"><script>alert(1)</script>\'&\x1b\u202e\x00\ud800'


class Document(html.parser.HTMLParser):
    """The elements of a page; AssertionError if they are in disorder."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert len(attrs) == len(dict(attrs)), attrs
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert tag == self._open.pop(), tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements
                if name == tag]


class PageCase(CensusCase):

    def page(self, *workers: Any, **changes: Any) -> str:
        house = house_state(*workers, **changes)
        return page.page(house, self.census.take(house), 'here')


class PageTests(PageCase):

    def test_a_table(self) -> None:
        self.put()
        text = self.page(worker_state(), worker_state('mail', phase='given up',
                                                      pid=None, failures=3))
        document = Document(text)
        self.assertEqual(
            [None, '', 'ill'],
            [each.get('class') for each in document.of('tr')])
        for expected in (
                'nightly', str(os.getpid()), 'waiting', 'given up, 3 failed',
                '1.0 MiB', 'Workers on here', '1 of 2 not healthy: mail'):
            self.assertIn(expected, document.texts)
        self.assertIn('/srv/shop/zope.conf; process 4, running, started 0 s '
                      'ago; template 1 ready; with zeo', document.texts)

    def test_each_row_has_as_many_cells_as_titles(self) -> None:
        self.put(hour=[{'at': int(time.time() // 60), 'ticks': 1, 'failed': 0,
                        'longest': 1.0}])
        text = self.page(worker_state(), worker_state('mail'))
        rows = re.findall(r'<tr.*?</tr>', text)
        self.assertEqual(
            {11}, {len(re.findall('<t[hd][ >]', row)) for row in rows})
        titles = re.findall(r'<th scope="col"[^>]*>([^<]*)', rows[0])
        for row in rows[1:]:  # as they stand on a telephone
            self.assertEqual(titles[1:],
                             re.findall('data-title="([^"]*)"', row))

    def test_how_the_house_is(self) -> None:
        for changes, expected in (
                ({'phase': 'reloading', 'successor': {
                    'pid': 9, 'generation': 2, 'phase': 'starting'}},
                 'reloading, started 0 s ago; template 1 ready; template 2 '
                 'starting; with zeo'),
                ({'template': None, 'phase': 'starting',
                  'parts': ['http', 'former']},
                 'starting, started 0 s ago</p>')):
            self.assertIn(expected, self.page(**changes))
        for count, expected in (0, '>No workers yet<'), (1, '>Healthy<'), (
                2, 'All 2 healthy'):
            self.assertIn(expected, self.page(*[
                worker_state(f'w{number}') for number in range(count)]))

    def test_it_renews_itself(self) -> None:
        house = house_state()
        document = Document(page.page(house, [], 'here', renewal=7))
        self.assertIn({'http-equiv': 'refresh', 'content': '7'},
                      document.of('meta'))
        self.assertEqual(['?still'], [
            each['href'] for each in document.of('a')])
        document = Document(page.page(house, [], 'here', renewal=None))
        self.assertEqual([], [each for each in document.of('meta')
                              if 'http-equiv' in each])
        self.assertEqual(['/'], [each['href'] for each in document.of('a')])

    def test_the_policy_allows_the_style_and_nothing_else(self) -> None:
        style = re.search('<style>(.*)</style>', self.page(), re.DOTALL)
        assert style is not None
        digest = base64.b64encode(
            hashlib.sha256(style[1].encode()).digest()).decode()
        policy = dict(each.strip().split(' ', 1)
                      for each in page.policy().split(';'))
        self.assertEqual("'none'", policy.pop('default-src'))
        self.assertEqual(f"'sha256-{digest}'", policy.pop('style-src'))
        self.assertEqual('data:', policy.pop('img-src'))
        self.assertEqual({"'none'"}, {*policy.values()})
        self.assertEqual({'base-uri', 'form-action', 'frame-ancestors'},
                         {*policy})

    def test_children(self) -> None:
        self.assertNotIn('Children</h2>', self.page(worker_state()))
        self.put(children=[{'name': 'web', 'pid': 2, 'state': 'ready'},
                           {'name': 'db', 'pid': 3, 'state': 'ended 1'}])
        text = self.page(worker_state())
        for expected in (
                '<tr><td>nightly</td><td>web</td><td class="number">2</td>'
                '<td>ready</td>', '<tr class="over"><td>nightly</td><td>db<'):
            self.assertIn(expected, text)
        self.assertNotIn('Children</h2>', self.page(
            worker_state(phase='pausing', pid=None)))

    def test_errors(self) -> None:
        self.assertNotIn('Last errors', self.page(worker_state()))
        now = time.time()
        error = {'tick': 3, 'time': now - 61, 'error': 'ValueError: x'}
        self.put('run/a.json', worker='a', last_error=error)
        self.put('run/b.json', worker='b', failures=2, last_error={
            **error, 'time': now - 5, 'traceback': 'Traceback:\n  File\nX\n'})
        text = self.page(worker_state('a'), worker_state('b'))
        first, second = text.split('<section>')[1:]
        self.assertIn('<h3 class="ill">b</h3>', first)
        self.assertIn('Tick 3, 5 s ago; none has succeeded since', first)
        self.assertIn('<pre>Traceback:\n  File\nX</pre>', first)
        self.assertIn('<h3>a</h3>', second)
        self.assertIn('1 min 01 s ago; succeeded since', second)
        self.assertIn('<pre>ValueError: x</pre>', second)


class EscapeTests(PageCase):

    def test_what_anybody_may_have_written(self) -> None:
        self.put(worker=EVIL, site=EVIL, failures=1, children=[
            {'name': EVIL, 'pid': 1, 'state': EVIL}], last_error={
                'tick': 1, 'time': 0.0, 'error': EVIL, 'traceback': EVIL})
        text = self.page(
            worker_state(EVIL, site=EVIL),
            worker_state(EVIL, phase='given up', pid=None),
            config=EVIL, parts=[EVIL],
            template={'pid': 1, 'generation': 1, 'phase': EVIL})
        text.encode()
        document = Document(text)
        self.assertLessEqual(
            {name for name, _ in document.elements},
            {'html', 'head', 'meta', 'title', 'link', 'style', 'body', 'h1',
             'h2', 'h3', 'p', 'a', 'table', 'thead', 'tbody', 'tr', 'th', 'td',
             'span', 'section', 'pre'})
        for name, attributes in document.elements:
            for attribute, value in attributes.items():
                self.assertFalse(attribute.startswith('on'), attributes)
                self.assertNotIn('alert', value or '', name)
        for character in '\x1b\u202e\x00\ud800':
            self.assertNotIn(character, text)
        self.assertIn(page.escaped(EVIL), text)

    def test_escaped(self) -> None:
        for text, expected in (
                ('a\n\tb', 'a\n\tb'), ('<&"\'>', '&lt;&amp;&quot;&#x27;&gt;'),
                ('\x9b\u2066\U000e0001', '\ufffd' * 3), ('日本é', '日本é'),
                (7, '7')):
            self.assertEqual(expected, page.escaped(text))


class LineTests(PageCase):

    now = 1_000_000 * 60.0

    def minute(self, ago: int, longest: float = 1.0, failed: int = 0) -> Any:
        return {'at': 1_000_000 - ago, 'ticks': 2, 'failed': failed,
                'longest': longest}

    def points(self, svg: str) -> list[tuple[float, float]]:
        found = re.search(r'<path d="([^"]*)"/>', svg)
        assert found is not None
        pairs = re.findall(r'([ML])([\d.]+) ([\d.]+)', found[1])
        self.assertEqual('M' + 'L' * (len(pairs) - 1),
                         ''.join(kind for kind, _, _ in pairs))
        return [(float(x), float(y)) for _, x, y in pairs]

    def test_where_the_points_are(self) -> None:
        svg = page.line([self.minute(30, 2.0), self.minute(0, 4.0),
                         self.minute(59, 0.0)], self.now)
        top, bottom = 2.0, page.HEIGHT - 1
        self.assertEqual(
            [(2.0, bottom), (60.0, (top + bottom) / 2), (120.0, top)],
            self.points(svg))

    def test_all_is_within_the_picture(self) -> None:
        svg = page.line([self.minute(ago, ago) for ago in range(60)], self.now)
        for x, y in self.points(svg):
            self.assertTrue(0 <= x <= page.WIDTH and 0 <= y <= page.HEIGHT)
        self.assertNotIn('circle', svg)

    def test_few_ticks_have_marks(self) -> None:
        svg = page.line([self.minute(7)], self.now)
        self.assertEqual(1, svg.count('<circle class="tick"'))

    def test_failures_have_marks(self) -> None:
        svg = page.line([self.minute(ago, 1.0, ago % 2) for ago in range(60)],
                        self.now)
        self.assertEqual((30, 0), (svg.count('<circle class="failed"'),
                                   svg.count('<circle class="tick"')))
        self.assertIn(
            'aria-label="120 ticks in the last hour, 30 of them failed"', svg)

    def test_ticks_that_took_no_time(self) -> None:
        self.assertEqual([(120.0, page.HEIGHT - 1)], self.points(
            page.line([self.minute(0, 0.0)], self.now)))

    def test_what_is_shown_of_a_worker(self) -> None:
        at = int(time.time() // 60)
        for longest, expected in (
                (0.00123, '1.23 ms at most'), (2.5, '2.5 s at most'),
                (61.0, '1 min 01 s at most')):
            self.put(hour=[
                {'at': at, 'ticks': 1, 'failed': 0, 'longest': longest},
                {'at': at - 100, 'ticks': 1, 'failed': 0, 'longest': 999.0}])
            text = self.page(worker_state())
            self.assertEqual(1, text.count('<svg'))
            self.assertIn(expected, text)
        self.put(hour=[])
        self.assertNotIn('<svg', self.page(worker_state()))

    def test_no_state(self) -> None:
        resident = Resident(worker_state(), None)
        self.assertIn('class="none"', ''.join(page._hour(resident)))
