"""Corpora: reading, vocabulary, (context, response) pairs and batches."""
