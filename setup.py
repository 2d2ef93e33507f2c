"""gocept.runner: an application runner for Zope and the ZODB."""

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

here = Path(__file__).parent


def page(name):
    """A document for an index, where a link to another file leads nowhere."""
    return re.sub(r'`([^`<>]+?)\s+<(?!\w+:)([^`<>]+)>`__?', r'\1 (``\2``)',
                  (here / name).read_text(encoding='utf-8'))


setup(
    name='gocept.runner',
    version='4.0.0.dev0',
    description='Run small programs against a ZODB, tick by tick',
    long_description='\n\n'.join(map(page, ('README.rst', 'CHANGES.rst'))),
    long_description_content_type='text/x-rst',
    author='The gocept.runner developers',
    url='https://github.com/gocept/gocept.runner',
    project_urls={
        'Changelog': 'https://github.com/gocept/gocept.runner/blob/HEAD/'
                     'CHANGES.rst',
    },
    license='ZPL-2.1',
    keywords='zope zodb runner worker cron service',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Environment :: Console',
        'Framework :: Zope :: 3',
        'Framework :: Pytest',
        'Framework :: ZODB',
        'Intended Audience :: Developers',
        'Operating System :: POSIX',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Database',
        'Typing :: Typed',
    ],
    python_requires='>=3.11',
    package_dir={'': 'src'},
    packages=find_namespace_packages(
        'src', include=['gocept.runner*'], exclude=['gocept.runner.tests*']),
    include_package_data=False,  # it would bring the tests back
    package_data={'gocept.runner': [
        'py.typed', '*.zcml', '*.rst', '*/*.zcml', '*/*.xml', '*/*.rst',
        'example/queue/*.zcml']},
    zip_safe=False,
    # The oldest versions with which the tests were run, on Python 3.11.
    install_requires=[
        'BTrees>=4.11.0',
        'ZConfig>=3.6.1',
        'ZODB>=5.8.0',
        'cloudpickle>=2.2.0',
        'cronsim>=2.8',
        'persistent>=5.0',
        'tqdm>=4.64.1',
        'transaction>=3.0.1',
        'tzdata>=2022.7',  # for systems that have no time zones
        'zc.lockfile>=2.0',
        'zope.app.appsetup>=4.2.0',
        'zope.authentication>=4.5.0',
        'zope.component[zcml]>=5.0.1',
        'zope.configuration>=4.4.1',
        'zope.event>=4.5.0',
        'zope.interface>=6.2',
        'zope.lifecycleevent>=4.4',
        'zope.principalregistry>=4.3',
        'zope.processlifetime>=2.3.0',
        'zope.publisher>=6.1.0',
        'zope.schema>=6.2.1',
        'zope.security[zcml]>=6.0',
        'zope.site>=4.6',
    ],
    entry_points={
        'console_scripts': ['gocept-runner = gocept.runner.cli:main'],
        # With the name of the module, a conftest.py may name it as well.
        'pytest11': [
            'gocept.runner.testing.plugin = gocept.runner.testing.plugin'],
    },
    extras_require={
        'bench': ['execnet', 'rpyc'],
        'example': [
            'BTrees>=5.0',
            'docutils>=0.19',
            'zope.annotation>=5.0',
            'zope.container>=5.1',
            'zope.index>=6.1',
        ],
        'metrics': ['prometheus_client>=0.20'],
        # Zope, for workers of its applications; one of the three, with the
        # versions of constraints/NAME.txt. (Plone 6.2 does not exclude a
        # layout for Plone 7, which breaks it.)
        'plone': ['Plone>=6,<7', 'plone.app.layout<7'],
        # The oldest whose own constraints have a zope.interface for us.
        'zope5': ['ZODB<6', 'Zope>=5.10,<6'],
        'zope6': ['Zope>=6,<7'],
        'pytest': ['pytest>=7.2'],
        'test': [
            'RelStorage',
            'ZEO',
            'circus',
            'hypothesis',
            'papa',
            'prometheus_client',
            'pytest',
            'zope.securitypolicy',
            'zope.testing',
            'zope.testrunner',
        ],
        'zeo': ['ZEO>=6.0'],
        'test-plone': ['plone.app.testing'],
        'test-zope': [
            'Products.TemporaryFolder',
            'RelStorage',
            'ZEO',
            'psycopg2-binary',
            'zope.testing',
            'zope.testrunner',
        ],
    },
)
