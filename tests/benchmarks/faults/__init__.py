"""Trials that break something around a running server and count what its clients saw."""
