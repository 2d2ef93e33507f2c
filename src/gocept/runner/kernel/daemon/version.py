"""The version of this program, which the daemon tells without any imports."""

VERSION = '4.0.0.dev0'
"""The same as in setup.py; a test compares them."""
