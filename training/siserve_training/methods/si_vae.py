"""SI-VAE, the system of the paper for sentences: a semi-implicit posterior."""

from __future__ import annotations

from siserve_training.methods.vae import vae_method

__all__ = ["METHOD"]

METHOD = vae_method(noise="noise")
