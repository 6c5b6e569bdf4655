"""Semi-amortised VAE of sentences (Kim et al. 2018): the encoder's posterior is refined by SVI."""

from __future__ import annotations

from siserve_training.methods.vae import vae_method

__all__ = ["METHOD"]

METHOD = vae_method(refine_steps="num_refine_steps")
