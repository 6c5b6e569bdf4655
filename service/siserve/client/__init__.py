"""The room that asks: a Python client, and the command line on it."""

from siserve.client.aio import AsyncClient
from siserve.client.answer import Answer, Reply, Score, Timings, make_request
from siserve.client.channel import ClientError
from siserve.client.client import Client
from siserve.client.credentials import Credentials

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "ClientError",
    "Credentials",
    "Reply",
    "Score",
    "Timings",
    "make_request",
]
