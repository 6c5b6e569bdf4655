"""DialogWAE-GMP of Gu et al. 2019: the noise of the prior is a mixture of Gaussians."""

from __future__ import annotations

from siserve_training.methods.dialogwae import dialogwae_method

__all__ = ["METHOD"]

METHOD = dialogwae_method(components="prior_components")
