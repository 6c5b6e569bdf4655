"""Trained models to bundles: graphs by hand, parity with the model, and the files around them.

Nothing here imports torch; `run.py`, which opens a run folder, does and is imported when called.
"""

from siserve_training.export.bundle import MakeReference, Release, export_bundle
from siserve_training.export.errors import ExportError
from siserve_training.export.model import TrainedModel
from siserve_training.export.reference import PosteriorDraw, Reference

__all__ = [
    "ExportError",
    "MakeReference",
    "PosteriorDraw",
    "Reference",
    "Release",
    "TrainedModel",
    "export_bundle",
]
