"""What the ``<product-config>`` of a zope.conf says."""

from collections.abc import Callable

from gocept.runner.boot import environments
from gocept.runner.errors import NoSuchSetting


def from_config(section: str, variable: str) -> Callable[[], str]:
    """See `IFromConfig`."""
    return lambda: setting(section, variable)


def setting(section: str, key: str) -> str:
    """The value of a key; NoSuchSetting if zope.conf has none."""
    find = environments.current().product_configuration
    # ZConfig makes the names lower-case; other code may have set others.
    for name, variable in (section, key), (section.lower(), key.lower()):
        config = find(name)
        if config is not None and variable in config:
            return config[variable]
    if config is None:
        raise NoSuchSetting(f'zope.conf has no <product-config {section}>')
    raise NoSuchSetting(
        f'the <product-config {section}> of zope.conf has no {key}')
