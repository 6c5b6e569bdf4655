"""The room that serves: limits, noise, engine, servicer, server, metrics."""
