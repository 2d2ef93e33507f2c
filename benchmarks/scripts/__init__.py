"""Scripts that run as children.

Those of ``bench worker``, of which ``bench events`` has the ticks, run in the
environment of each side, so of gocept.runner they use only names that 3.0 has
as well. Those of the others have all sides in one process; they are run as
modules of the checkout, and share `benchmarks.scripts.sides`,
`benchmarks.scripts.executors` and `benchmarks.turns`.

Each prints its figures as JSON, or the instant when something happened, on the
monotonic clock, which all processes of a machine share.
"""
