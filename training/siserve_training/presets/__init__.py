"""Presets: TOML files that change the defaults of `TrainConfig`."""
