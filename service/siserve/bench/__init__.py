"""Measurements that users can repeat: the decoder, the engine, a server under load, training."""
