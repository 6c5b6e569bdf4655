"""Libraries that would draw over what we show."""

from __future__ import annotations

__all__ = ["quiet_libraries"]


def quiet_libraries() -> None:
    """Switch off the bars that transformers draws over ours for files of a second."""
    from transformers.utils import logging

    logging.disable_progress_bar()
