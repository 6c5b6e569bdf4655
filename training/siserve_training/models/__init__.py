"""Models: a transformers config and model each; forward returns distributions."""
