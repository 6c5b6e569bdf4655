"""The room that asks: a Python client, and the command line on it."""

from siserve.client.answer import Answer, Reply, Timings
from siserve.client.client import Client, ClientError

__all__ = ["Answer", "Client", "ClientError", "Reply", "Timings"]
