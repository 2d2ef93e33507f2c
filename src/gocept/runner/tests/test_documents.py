"""What the documents name exists: files, modules and the names in them."""

import importlib
import pathlib
import re
import unittest

import gocept.runner

PACKAGE = pathlib.Path(gocept.runner.__file__).parent
CHECKOUT = PACKAGE.parents[2]
DOCUMENTS = sorted([
    *CHECKOUT.glob('*.rst'), *CHECKOUT.glob('docs/*.rst'),
    *PACKAGE.rglob('*.rst')])

LINK = re.compile(r'`[^`<>]+<([^`<>]+)>`_')
NAME = re.compile(r'\bgocept\.runner(?:\.\w+)*')
PATH = re.compile(r'``([\w./-]+/|[\w./-]+/[\w.-]+\.(?:py|rst|zcml|xml))``')
ROOM = re.compile(  # a row of a table, up to the next one
    r'^(top|``[a-z/]+``) ((?:.|\n )*)', re.MULTILINE)
MODULE = re.compile(r'``(\w+)``')
THREAD = re.compile(r'\bThread(?:PoolExecutor)?\(')
# Loggers are no modules.
LOG_LINE = re.compile(
    r'^ *(?:(?:20)?\.\.\. ?)?(?:DEBUG|INFO|WARNING|ERROR) .*$'
    r'|^\.\.\. +name .*$',
    re.MULTILINE)


def resolve(name: str) -> object:
    """The module of that name, or what a module has under that name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
    module, _, attribute = name.rpartition('.')
    return getattr(resolve(module), attribute)


class DocumentTests(unittest.TestCase):

    def test_the_documents_are_found(self) -> None:
        found = {path.name for path in DOCUMENTS}
        self.assertLessEqual({'README.rst', 'design.rst', 'zcml.rst'}, found)

    def test_each_link_leads_to_a_file(self) -> None:
        for document in DOCUMENTS:
            for target in LINK.findall(document.read_text()):
                with self.subTest(document=document.name, target=target):
                    if '://' not in target:
                        self.assertTrue((document.parent / target).exists())

    def test_each_path_exists(self) -> None:
        # Paths in the narratives are those of the reader's files.
        for document in DOCUMENTS:
            if (PACKAGE in document.parents
                    or document.name == 'tutorial.rst'):
                continue
            for path in PATH.findall(document.read_text()):
                with self.subTest(document=document.name, path=path):
                    self.assertTrue(any(
                        (base / path).exists()
                        for base in (CHECKOUT, PACKAGE)))

    def test_each_dotted_name_can_be_imported(self) -> None:
        for document in DOCUMENTS:
            text = LOG_LINE.sub('', document.read_text())
            for name in sorted({*NAME.findall(text)}):
                with self.subTest(document=document.name, name=name):
                    resolve(name)

    def test_the_map_of_contributing_has_each_module(self) -> None:
        text = (CHECKOUT / 'CONTRIBUTING.rst').read_text()
        table = text.partition('\nroom  ')[2].rpartition('\n====')[0]
        rows = {room.strip('`/'): sorted({*MODULE.findall(row)})
                for room, row in ROOM.findall(table)}
        modules = {
            (folder.relative_to(PACKAGE).as_posix()
             if folder != PACKAGE else 'top'): sorted(
                path.stem for path in folder.glob('*.py')
                if path.name != '__init__.py')
            for folder in {path.parent for path in PACKAGE.rglob('*.py')}
            if PACKAGE / 'tests' not in (folder, *folder.parents)}
        self.assertEqual(modules | {'tests': []}, rows)

    def test_design_names_each_module_that_begins_threads(self) -> None:
        text = (CHECKOUT / 'docs/design.rst').read_text()
        _, _, text = text.partition('\nThreads\n=')
        table, _, _ = text.partition('\nDecisions')
        self.assertEqual(
            sorted({*PATH.findall(table)}),
            sorted(path.relative_to(PACKAGE).as_posix()
                   for path in PACKAGE.rglob('*.py')
                   if PACKAGE / 'tests' not in path.parents
                   and THREAD.search(path.read_text())))
