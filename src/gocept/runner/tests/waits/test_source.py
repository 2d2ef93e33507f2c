import unittest

from gocept.runner.waits.source import Source


class Recorder:

    def __init__(self):
        self.told = []

    def source_ready(self, source):
        self.told.append(('ready', source))

    def source_fetched(self, source):
        self.told.append(('fetched', source))

    def source_sending(self, source):
        self.told.append(('sending', source))

    def source_closing(self, source, fd):
        self.told.append(('closing', source, fd))


class SourceTests(unittest.TestCase):

    def test_tells_each_watcher_once(self):
        mine, other, watcher = Source(), Source(), Recorder()
        self.assertTrue(mine.attach(watcher))
        self.assertFalse(mine.attach(watcher))
        mine._tell_ready()
        mine.tell_fetched()
        mine._tell_sending()
        mine._tell_closing(7)
        other._tell_ready()
        self.assertEqual(
            [('ready', mine), ('fetched', mine), ('sending', mine),
             ('closing', mine, 7)], watcher.told)

    def test_tells_no_more_who_is_detached(self):
        mine, one, two = Source(), Recorder(), Recorder()
        for watcher in (one, two):
            mine.attach(watcher)
        mine.detach(one)
        mine.detach(one)
        mine._tell_ready()
        self.assertEqual([], one.told)
        self.assertEqual([('ready', mine)], two.told)

    def test_what_every_source_has_to_say(self):
        mine = Source()
        self.assertEqual([mine], list(mine.layers()))
        self.assertFalse(mine.buffered)
        with self.assertRaisesRegex(NotImplementedError, 'no descriptor'):
            mine.fileno()
        with self.assertRaises(NotImplementedError):
            mine.collect()
