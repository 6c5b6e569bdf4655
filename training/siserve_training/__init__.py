"""Train and export semi-implicit latent-variable text models."""
