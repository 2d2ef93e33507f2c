"""The environment of Zope 5, Zope 6 and Plone; see `IEnvironment`.

Only `gocept.runner.boot.zope.environment` is imported where no Zope is
installed. It imports the other modules when they are needed.
"""
