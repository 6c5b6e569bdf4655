"""SI-CVAE, the system of the paper; with `prior_noise` its prior is semi-implicit too."""

from __future__ import annotations

from siserve_training.methods.cvae import cvae_method

__all__ = ["METHOD"]

METHOD = cvae_method(noise="noise", prior_noise="prior_noise")
