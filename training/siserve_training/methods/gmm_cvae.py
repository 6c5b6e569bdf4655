"""CVAE with an explicit mixture of Gaussians as its posterior (paper eq. 6)."""

from __future__ import annotations

from siserve_training.methods.cvae import cvae_method

__all__ = ["METHOD"]

METHOD = cvae_method(components="components")
