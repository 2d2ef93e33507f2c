"""gocept.runner: an application runner for Zope and the ZODB."""

from pathlib import Path

from setuptools import find_namespace_packages, setup

here = Path(__file__).parent

setup(
    name='gocept.runner',
    version='4.0.0.dev0',
    description='Run small programs against a ZODB, tick by tick',
    long_description='\n\n'.join(
        (here / name).read_text(encoding='utf-8')
        for name in ('README.rst', 'CHANGES.rst')),
    long_description_content_type='text/x-rst',
    author='The gocept.runner developers',
    license='ZPL-2.1',
    keywords='zope zodb runner worker cron service',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Environment :: Console',
        'Framework :: Zope :: 3',
        'Framework :: Pytest',
        'Framework :: ZODB',
        'Operating System :: POSIX',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Database',
        'Typing :: Typed',
    ],
    python_requires='>=3.11',
    package_dir={'': 'src'},
    packages=find_namespace_packages('src', include=['gocept.runner*']),
    include_package_data=True,
    package_data={'gocept.runner': [
        'py.typed', '*.zcml', '*.rst', '*/*.zcml', '*/*.xml', '*/*.rst']},
    zip_safe=False,
    install_requires=[
        'ZConfig',
        'ZODB',
        'tqdm',
        'transaction',
        'zc.lockfile',
        'zope.app.appsetup',
        'zope.authentication',
        'zope.component[zcml]',
        'zope.configuration',
        'zope.event',
        'zope.exceptions',
        'zope.interface',
        'zope.lifecycleevent',
        'zope.principalregistry',
        'zope.processlifetime',
        'zope.publisher',
        'zope.schema',
        'zope.security[zcml]',
        'zope.site',
    ],
    entry_points={'console_scripts': [
        'gocept-runner = gocept.runner.cli:main',
    ]},
    extras_require={
        'example': [
            'BTrees',
            'docutils',
            'persistent',
            'zope.container',
            'zope.index',
        ],
        'pytest': ['pytest'],
        'test': [
            'RelStorage',
            'ZEO',
            'hypothesis',
            'pytest',
            'zope.testing',
            'zope.testrunner',
        ],
    },
)
