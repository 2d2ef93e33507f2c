"""What help() says of the public names."""

import inspect
import unittest

from gocept.runner import background


class HelpTests(unittest.TestCase):

    def test_it_helps_at_a_prompt(self) -> None:
        for name in background.__all__:
            value = getattr(background, name)
            with self.subTest(name):
                self.assertHelps(value)
            if name in ('Client', 'ClientSocket', 'Server'):
                for method, each in inspect.getmembers(
                        value, inspect.isfunction):
                    if not method.startswith('_'):
                        with self.subTest(f'{name}.{method}'):
                            self.assertHelps(each)

    def assertHelps(self, value: object) -> None:
        text = inspect.getdoc(value) or ''
        self.assertGreater(len(text), 15)
        self.assertFalse(text.startswith('See '), text)

    def test_each_option_of_the_classes_is_there(self) -> None:
        for made in background.Client, background.Server:
            text = inspect.getdoc(made) or ''
            for option in inspect.signature(made).parameters:
                if option != 'status_key':  # for the commands
                    self.assertIn(f'`{option}`', text)
