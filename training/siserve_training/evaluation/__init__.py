"""Evaluation: metrics of models and of responses."""
