"""Scripts that run as children, each in the environment of its side.

Those that need gocept.runner use only names that 3.0 has as well. Each prints
its figures as JSON, or the instant when something happened, on the monotonic
clock, which all processes of a machine share.
"""
