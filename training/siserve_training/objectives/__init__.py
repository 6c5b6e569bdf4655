"""Objectives: they know distributions and schedules, not models."""
