"""The room that asks: a Python client, and the command line on it."""

from siserve.client.answer import Answer, Reply, Score, Timings
from siserve.client.client import Client, ClientError
from siserve.client.credentials import Credentials

__all__ = ["Answer", "Client", "ClientError", "Credentials", "Reply", "Score", "Timings"]
