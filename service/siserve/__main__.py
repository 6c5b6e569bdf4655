"""`python -m siserve`."""

from siserve.cli import main

main()
