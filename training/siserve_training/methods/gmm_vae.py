"""VAE of sentences with an explicit mixture of Gaussians as its posterior (paper eq. 6)."""

from __future__ import annotations

from siserve_training.methods.vae import vae_method

__all__ = ["METHOD"]

METHOD = vae_method(components="components")
