"""How public programs use the libraries that this package replaces.

The uses were run with the libraries themselves, too: gocept.runner 3.0,
yet-another-runner 0.6.0 with yet-another-io-channels-library 0.2.4, and
mirakuru 3.1. A row says where what came back was something else.
"""
