"""siserve: varied dialog responses from latent-variable models, served over gRPC."""

__version__ = "0.1.0"
