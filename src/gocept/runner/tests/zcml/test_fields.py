"""What the text of an attribute becomes."""

import os
import pathlib
import signal
import subprocess
import unittest
from typing import Any

import zope.schema.interfaces
import zope.testing.cleanup
from zope.app.appsetup import product
from zope.configuration.config import ConfigurationMachine
from zope.interface import Interface

from gocept.runner.boot import zopeconf
from gocept.runner.tests.support import TestCase
from gocept.runner.zcml import fields


class FieldTestCase(unittest.TestCase):

    def assertConverts(self, field: Any, *cases: tuple[str, object]) -> None:
        for text, expected in cases:
            with self.subTest(text):
                value = field.fromUnicode(text)
                self.assertEqual(expected, value)
                self.assertIs(type(expected), type(value))

    def assertRefuses(self, field: Any, *cases: tuple[str, str]) -> None:
        """Each text is refused, in words that say why."""
        for text, reason in cases:
            with self.subTest(text):
                with self.assertRaises(
                        zope.schema.interfaces.ValidationError) as caught:
                    field.fromUnicode(text)
                self.assertIn(reason, str(caught.exception))


class ValueTests(FieldTestCase):

    def test_text(self) -> None:
        # As a path it is no other one if it is written in another way.
        self.assertConverts(
            fields.Text(), ('as it is ', 'as it is '),
            ('decomposed: a\u0308', 'decomposed: a\u0308'))
        self.assertRefuses(fields.Text(), ('', 'the value is empty'))

    def test_a_choice(self) -> None:
        field = fields.Choice(values=('lazy', 'eager'), default='lazy')
        self.assertConverts(field, ('eager', 'eager'))
        for text in ('', 'Lazy', 'hurried'):
            self.assertRefuses(
                field, (text, f'{text!r} is none of lazy, eager'))

    def test_a_pattern(self) -> None:
        self.assertConverts(fields.Pattern(), ('^a$|b', '^a$|b'))
        self.assertRefuses(
            fields.Pattern(),
            ('', 'the value is empty'),
            ('(', "'(' is no regular expression: missing ), "))

    def test_bytes(self) -> None:
        self.assertConverts(
            fields.Bytes(), ('', b''), (r'PING\r\n', b'PING\r\n'),
            (r'\x00\xff\\', b'\0\xff\\'))
        for text in ('ä', r'\u1234', r'\x', 'x\\'):
            self.assertRefuses(
                fields.Bytes(), (text, 'is not written in ASCII, with esc'))

    def test_a_number_or_none(self) -> None:
        self.assertConverts(fields.NumberOrNone(), ('0', 0))
        self.assertRefuses(
            fields.NumberOrNone(),
            ('-1', "'-1' is neither a whole number >= 0"))

    def test_a_number(self) -> None:
        field = fields.Number(min=0, max=65535)
        self.assertConverts(field, ('0', 0), ('65535', 65535))
        self.assertRefuses(field, ('-1', ''), ('65536', ''), ('1.5', '1.5'),
                           ('one', 'one'), ('', ''))

    def test_a_mode(self) -> None:
        self.assertConverts(fields.Mode(), ('077', 0o77), ('22', 0o22),
                            ('0', 0), ('0777', 0o777))
        for text in ('', '8', '-1', '1000', '0o77', '7777777', 'u+x'):
            self.assertRefuses(
                fields.Mode(), (text, f'{text!r} is no mask of up to 777'))

    def test_true_or_false(self) -> None:
        self.assertConverts(fields.Bool(), ('true', True), ('False', False),
                            ('yes', True), ('no', False))
        self.assertRefuses(
            fields.Bool(), ('', ''),
            ('maybe', "'maybe' is neither true nor false"))

    def test_seconds(self) -> None:
        self.assertConverts(fields.Seconds(), ('0', 0), ('3', 3),
                            ('0.25', 0.25), ('1e3', 1000), ('60.0', 60),
                            ('inf', float('inf')))
        self.assertRefuses(fields.Seconds(), ('', ''), ('soon', 'soon'),
                           ('-1', "'-1' is no number of seconds >= 0"),
                           ('nan', "'nan' is no number of seconds >= 0"))

    def test_a_signal(self) -> None:
        for text in ('TERM', 'SIGTERM', 'sigterm', '15'):
            self.assertConverts(fields.Signal(), (text, signal.SIGTERM))
        self.assertRefuses(fields.Signal(), ('', ''), ('0', '0'), ('99', '99'),
                           ('STOPP', "there is no signal 'STOPP'"))

    def test_a_signal_or_not(self) -> None:
        self.assertConverts(
            fields.SignalOrBool(), ('true', True), ('Yes', True), ('on', True),
            ('false', False), ('no', False), ('OFF', False),
            ('HUP', signal.SIGHUP), ('9', signal.SIGKILL))
        self.assertRefuses(fields.SignalOrBool(), ('', ''),
                           ('perhaps', "there is no signal 'perhaps'"))

    def test_a_name_or_a_number(self) -> None:
        self.assertConverts(fields.NameOrNumber(), ('daemon', 'daemon'),
                            ('1001', 1001), ('^2', '^2'))

    def test_words(self) -> None:
        self.assertConverts(
            fields.Words(), ('', []), (' one  two ', ['one', 'two']),
            ('"one of these" two', ['one of these', 'two']))
        self.assertRefuses(fields.Words(), ('"one', 'No closing quotation'))

    def test_names_or_numbers(self) -> None:
        self.assertConverts(fields.Words(word=fields.NameOrNumber.convert),
                            ('adm 4 "no one"', ['adm', 4, 'no one']))

    def test_numbers(self) -> None:
        field = fields.Words(word=int)
        self.assertConverts(field, ('', []), ('3 -4', [3, -4]))
        self.assertRefuses(field, ('3 four', 'four'))

    def test_pairs(self) -> None:
        self.assertConverts(
            fields.Pairs(), ('', {}), ('A=1 B=', {'A': '1', 'B': ''}),
            ("A='x = y' B=b", {'A': 'x = y', 'B': 'b'}))
        self.assertRefuses(fields.Pairs(),
                           ('A=1 B', "'B' is not written NAME=VALUE"),
                           ('=1', "'=1' is not written NAME=VALUE"),
                           ('A="', 'No closing quotation'))

    def test_limits(self) -> None:
        self.assertConverts(
            fields.Limits(), ('', {}),
            ('nofile=64 core=0:-1', {'nofile': 64, 'core': (0, -1)}))
        self.assertRefuses(fields.Limits(), ('nofile', 'NAME=VALUE'),
                           ('nofile=many', 'many'), ('nofile=1:', ''))

    def test_a_stream_of_popen(self) -> None:
        for field in fields.PopenStream(), fields.PopenErrorStream():
            self.assertConverts(
                field, ('pipe', subprocess.PIPE),
                ('null', subprocess.DEVNULL), ('inherit', None),
                ('./a file', './a file'))
            self.assertRefuses(field, ('', 'nor a path with a slash'),
                               ('file', "'file' is none of pipe, null"))
        self.assertConverts(
            fields.PopenErrorStream(), ('merge', subprocess.STDOUT))
        self.assertRefuses(fields.PopenStream(), ('merge', "'merge'"))


class FunctionTests(FieldTestCase):

    def setUp(self) -> None:
        self.machine = ConfigurationMachine()
        self.field = fields.Function().bind(self.machine)

    def test_both_ways_to_write_it(self) -> None:
        for text in ('os.path:join', 'os.path.join', ' os.path:join '):
            self.assertEqual('os.path:join', self.field.fromUnicode(text))

    def test_from_the_package_of_the_file(self) -> None:
        self.machine.package = os
        self.assertEqual('os.path:join',
                         self.field.fromUnicode('.path.join'))

    def test_what_is_none(self) -> None:
        self.assertRefuses(
            self.field, ('no_such_module:function', 'no_such_module'),
            ('os:sep', "is no function, but '/'"))


class ObjectTests(FieldTestCase):

    def setUp(self) -> None:
        self.field = fields.Object().bind(ConfigurationMachine())

    def test_both_ways_to_write_it(self) -> None:
        for text in ('pathlib:Path', 'pathlib.Path', ' pathlib:Path '):
            self.assertIs(pathlib.Path, self.field.fromUnicode(text))

    def test_something_in_something(self) -> None:
        self.assertIs(subprocess, self.field.fromUnicode('subprocess'))
        self.assertEqual('signal', self.field.fromUnicode('signal:__name__'))

    def test_what_is_not_there(self) -> None:
        self.assertRefuses(
            self.field, ('no_such_module:function', 'no_such_module'),
            ('pathlib:NoSuchClass', 'NoSuchClass'), ('what is this', ''))


class FromZopeConfTests(TestCase, FieldTestCase):
    """What ``<product-config>`` says, in place of a reference to it."""

    FIELDS = {
        'text': (fields.Text(), 'cat -n', 'cat -n'),
        'pattern-or-number': (fields.PatternOrNumber(), '200', 200),
        'name': (fields.Name(), 'main', 'main'),
        'absolute-path': (fields.AbsolutePath(), '/a/../b', '/b'),
        'choice': (fields.Choice(values=('lazy', 'eager')), 'eager', 'eager'),
        'number': (fields.Number(), '80', 80),
        'number-or-none': (fields.NumberOrNone(), 'none', None),
        'pattern': (fields.Pattern(), '^a', '^a'),
        'bytes': (fields.Bytes(), r'\n', b'\n'),
        'mode': (fields.Mode(), '077', 0o77),
        'bool': (fields.Bool(), 'yes', True),
        'seconds': (fields.Seconds(), '2.5', 2.5),
        'signal': (fields.Signal(), 'HUP', signal.SIGHUP),
        'signal-or-bool': (fields.SignalOrBool(), 'true', True),
        'name-or-number': (fields.NameOrNumber(), '7', 7),
        'words': (fields.Words(), 'a "b c"', ['a', 'b c']),
        'numbers': (fields.Words(word=int), '3 4', [3, 4]),
        'pairs': (fields.Pairs(), 'A=1', {'A': '1'}),
        'limits': (fields.Limits(), 'core=0', {'core': 0}),
        'popen-stream': (fields.PopenStream(), 'null', subprocess.DEVNULL),
        'popen-error-stream': (
            fields.PopenErrorStream(), 'merge', subprocess.STDOUT),
        'object': (fields.Object().bind(ConfigurationMachine()),
                   'pathlib:Path', pathlib.Path),
        'function': (fields.Function().bind(ConfigurationMachine()),
                     'os.path.join', 'os.path:join'),
    }

    def setUp(self) -> None:
        super().setUp()
        self.configure('\n'.join(
            f'{name} {text}' for name, (_, text, _) in self.FIELDS.items()))

    def configure(self, body: str, section: str = 'house') -> None:
        options = zopeconf.load(self.zope_conf(
            f'<product-config {section}>\n{body}\n</product-config>\n'))
        product.setProductConfigurations(options.product_config)

    def test_there_is_an_example_of_each_type(self) -> None:
        types = {each for each in vars(fields).values()
                 if isinstance(each, type) and hasattr(each, 'fromUnicode')
                 and each.__module__ == fields.__name__
                 and not each.__name__.startswith('_')}
        self.assertEqual(
            types, {type(field) for field, _, _ in self.FIELDS.values()})

    def test_each_type(self) -> None:
        for name, (field, _, expected) in self.FIELDS.items():
            self.assertConverts(
                field, (f'${{product-config:house:{name}}}', expected))

    def test_several_within_text(self) -> None:
        self.assertConverts(
            fields.Text(),
            ('--port=${product-config:house:number} '
             '-${product-config:house:mode}-', '--port=80 -077-'))

    def test_the_case_does_not_matter_as_in_zope_conf(self) -> None:
        self.configure('Some-Key Some Value', 'My.House')
        self.assertConverts(fields.Text(), (
            '${product-config:My.House:Some-Key}', 'Some Value'))

    def test_a_section_with_a_colon_in_its_name(self) -> None:
        product.setProductConfiguration('my:house', {'key': 'value'})
        self.assertConverts(
            fields.Text(), ('${product-config:my:house:key}', 'value'))

    def test_a_wrong_value_is_shown(self) -> None:
        reference = '${product-config:house:text}'
        for field in (fields.Choice(values=('lazy',)), fields.Number(),
                      fields.Mode(), fields.Bool(), fields.Seconds(),
                      fields.Signal(), fields.SignalOrBool(),
                      fields.Words(word=int), fields.Pairs(), fields.Limits(),
                      fields.PopenStream()):
            self.assertRefuses(field, (reference, 'cat'))

    def test_what_zope_conf_does_not_say(self) -> None:
        for field, _, _ in self.FIELDS.values():
            self.assertRefuses(
                field,
                ('${product-config:garden:text}',
                 'zope.conf has no <product-config garden>'),
                ('${product-config:house:door}',
                 'the <product-config house> of zope.conf has no door'))

    def test_what_is_no_reference(self) -> None:
        for text in ('${product-config}', '${product-config:house}',
                     '${product-config:house:}', '${product-config::text}',
                     '${product-config house:text}', '${product-config:a'):
            self.assertRefuses(fields.Text(), (
                text, 'write ${product-config:SECTION:KEY}'))

    def test_others_are_left_alone(self) -> None:
        self.assertConverts(fields.Text(), ('$HOME ${HOME} {port}',
                                            '$HOME ${HOME} {port}'))

    def test_an_empty_value(self) -> None:
        self.configure('nothing')
        reference = '${product-config:house:nothing}'
        self.assertRefuses(fields.Text(), (reference, 'the value is empty'))
        self.assertConverts(fields.Words(), (reference, []))


class SchemaTests(unittest.TestCase):

    def test_fields_can_be_attributes_of_an_interface(self) -> None:
        class ISchema(Interface):
            name = fields.Text('A name.', required=True)
            start = fields.Choice(values=('a', 'b'), default='b')
        self.assertEqual('b', ISchema['start'].default)
        self.assertFalse(ISchema['start'].required)
        self.assertTrue(ISchema['name'].required)
        self.assertEqual('A name.', ISchema['name'].description)
