"""Where a program logs to, as its configuration says."""

import contextlib
import logging
import os.path
import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence

from ZConfig.components.logger.logger import LoggerFactoryBase
from ZConfig.components.logger.loghandler import NullHandler

from gocept.runner.boot.environments import ConfigFile
from gocept.runner.errors import ConfigurationError

installed: weakref.WeakSet[logging.Handler] = weakref.WeakSet()
"""The handlers that a configuration of this process has installed."""


LIBRARIES = ('ZConfig', 'ZEO', 'ZODB', 'asyncio', 'concurrent', 'config',
             'persistent', 'relstorage', 'txn', 'zc', 'zodburi', 'zope')
"""The loggers of the libraries that a worker needs, not of its application.

The loggers of ZCML and of transactions are `config` and `txn`.
"""


def set_up(undo: contextlib.ExitStack, configfile: ConfigFile, *,
           factories: Sequence[LoggerFactoryBase] = (),
           log_config: str | None = None, log_format: str | None = None,
           verbose: int = 0) -> list[logging.Handler]:
    """Set up the loggers that a configuration names; `undo` puts all back.

    `factories` are what ``<eventlog>`` and ``<logger>`` in `configfile` make,
    and `log_config` is a file for `logging.config`. If none of them is about
    the root logger, and nobody has set it up, it writes messages from the
    level info on to standard error. With the `log_format` 'json', all handlers
    that there are write a line of JSON for each message. For `verbose`, see
    `IEnvironment`.

    Returns handlers of an earlier configuration that were replaced, and are to
    be closed when nothing has failed.
    """
    root = logging.getLogger()
    if log_config is not None:
        _read(log_config, undo)
    replaced = [handler for factory in factories
                for handler in _made_by(factory, configfile, undo)]
    _restore_on_error(root, undo)
    if verbose:
        root.setLevel(logging.DEBUG)
        for library in map(logging.getLogger, LIBRARIES):
            _restore_on_error(library, undo)
            if verbose > 1:
                library.setLevel(logging.DEBUG)
            elif library.level == logging.NOTSET:  # unless a <logger> sets it
                library.setLevel(logging.INFO)
        _write_to_standard_error(root)
    elif not root.handlers and all(factory.name for factory in factories):
        root.setLevel(logging.INFO)
        _write_to_standard_error(root)
    if log_format == 'json':
        _write_json(undo)
    return replaced


def _write_to_standard_error(root: logging.Logger) -> None:
    if not any(getattr(handler, 'stream', None) is sys.stderr
               for handler in root.handlers):
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(
            '%(asctime)s %(levelname)s %(name)s %(message)s'))
        root.addHandler(handler)
        installed.add(handler)


def _write_json(undo: contextlib.ExitStack) -> None:
    # Few need it, and it takes several milliseconds.
    from gocept.runner.boot.jsonlines import JSONFormatter
    for handler in {each for logger in known() for each in logger.handlers}:
        undo.callback(handler.setFormatter, handler.formatter)
        handler.setFormatter(JSONFormatter())


def _read(log_config: str, undo: contextlib.ExitStack) -> None:
    import logging.config  # which takes its time
    before = {handler for logger in known() for handler in logger.handlers}
    for logger in known():
        _restore_on_error(logger, undo)
    path = os.path.abspath(log_config)
    try:
        logging.config.fileConfig(
            path, {'here': os.path.dirname(path)},
            disable_existing_loggers=False, encoding='utf-8')
    except Exception as error:  # whatever is wrong with it
        raise ConfigurationError(
            f'{log_config} cannot set up logging: {type(error).__name__}: '
            f'{error}') from error
    for logger in known():
        for handler in set(logger.handlers) - before:
            installed.add(handler)
            _make_encodable(handler)


def known() -> Iterator[logging.Logger]:
    """All loggers that there are."""
    yield logging.getLogger()
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            yield logger


def _made_by(factory: LoggerFactoryBase, configfile: ConfigFile,
             undo: contextlib.ExitStack) -> list[logging.Handler]:
    """Set up a logger; returns the handlers that were replaced."""
    logger = logging.getLogger(factory.name)
    _restore_on_error(logger, undo)
    before = list(logger.handlers)
    try:
        factory()
    except OSError as error:
        raise ConfigurationError(
            f'{configfile}: the log file of {factory.name or "<eventlog>"} '
            f'cannot be opened: {error}') from error
    new = [h for h in logger.handlers if h not in before]
    installed.update(new)
    for handler in new:
        _make_encodable(handler)
    # Handlers of an earlier zope.conf in this process are replaced, so that no
    # line is logged twice.
    if all(isinstance(handler, NullHandler) for handler in new):
        return []
    replaced = list(installed.intersection(before))
    for handler in replaced:
        logger.removeHandler(handler)
    return replaced


def close(replaced: Iterable[logging.Handler]) -> None:
    """Close what `set_up` has returned."""
    for handler in replaced:
        with contextlib.suppress(ValueError):  # one that was not reopened
            handler.close()


def _make_encodable(handler: logging.Handler) -> None:
    """Let no character keep a line out of the log, such as a surrogate."""
    original = handler.format

    def encodable(record: logging.LogRecord) -> str:
        stream = getattr(handler, 'stream', None)
        encoding = getattr(stream, 'encoding', None) or 'utf-8'
        return original(record).encode(
            encoding, 'backslashreplace').decode(encoding)
    handler.format = encodable  # type: ignore[method-assign]


def _restore_on_error(logger: logging.Logger,
                      undo: contextlib.ExitStack) -> None:
    handlers, level = list(logger.handlers), logger.level
    propagate = logger.propagate

    def restore() -> None:
        for handler in logger.handlers:
            if handler not in handlers:
                handler.close()
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate
    undo.callback(restore)
