"""What stops an export."""

from __future__ import annotations

from siserve_training.errors import TrainingError

__all__ = ["ExportError"]


class ExportError(TrainingError):
    """A model that cannot be exported, or whose graphs do not answer as the model does.

    Nothing is written then.
    """
