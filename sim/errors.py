"""Everything kvtwin raises on purpose.

Each class takes exactly one message string: SimPy rebuilds the exception of a failed process as
``type(e)(*e.args)``, so any other constructor would turn the message into a ``TypeError``.
"""


class SimError(Exception):
    """Base of what we raise on purpose."""


class ConfigError(SimError, ValueError):
    """The user's configuration is wrong: says key, value and allowed range."""


class TraceError(SimError, ValueError):
    """A trace file is wrong: says file, line, column and value."""


class ProfileError(SimError, ValueError):
    """A kernel profile is missing, altered or does not fit: says file, range and how to recalibrate."""


class InvariantError(SimError, AssertionError):
    """A law of the simulation broke: a bug in us, never in the input."""
