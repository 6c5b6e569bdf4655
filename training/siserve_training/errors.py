"""What a user can get wrong in training, one exception each.

    SiserveError
    └── TrainingError
        ├── ConfigError      a key, a value, a preset or a command that cannot be meant
        ├── CorpusError      a file of the corpus that is missing, empty or malformed
        ├── ResponseError    responses, or a dump of them, that cannot be scored or compared
        ├── RunError         a run folder that cannot be written, resumed or read
        └── DivergenceError  a loss that is not a number or explodes

Messages are one line: what was expected, what came, what to do.
"""

from __future__ import annotations

from siserve.bundle.errors import SiserveError

__all__ = [
    "ConfigError",
    "CorpusError",
    "DivergenceError",
    "ResponseError",
    "RunError",
    "TrainingError",
]


class TrainingError(SiserveError):
    """Base of the errors that end a command with one line and no traceback."""


class ConfigError(TrainingError):
    """A configuration that cannot be meant."""

    exit_code = 2


class CorpusError(TrainingError):
    """A corpus that cannot be read."""

    exit_code = 2


class ResponseError(TrainingError):
    """Sampled responses that cannot be scored, or two sets that cannot be compared."""

    exit_code = 2


class RunError(TrainingError):
    """A run folder that cannot be used as asked."""

    exit_code = 2


class DivergenceError(TrainingError):
    """A loss that is not finite or explodes."""
