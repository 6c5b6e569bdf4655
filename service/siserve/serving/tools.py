"""`siserve verify` and `siserve key`: what an operator needs beside the server itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["key", "verify"]


def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
) -> None:
    """Check every byte of a bundle: exit code 0 if it is whole, 1 and the reason if not.

    Example: siserve verify ./my-bundle
    """
    from siserve.bundle.verify import open_bundle

    manifest = open_bundle(bundle).manifest
    typer.echo(f"{manifest.full_name} is whole: {len(manifest.files) + 1} files checked")


def key(
    name: Annotated[str, typer.Argument(help="Whose key it is; limits and logs go by it.")],
    file: Annotated[Path, typer.Option(metavar="FILE", help="Where its digest is added.")],
    admin: Annotated[
        bool, typer.Option("--admin", help="It may also load models and roll them back.")
    ] = False,
) -> None:
    """Make an API key, print it once, and add its digest to a file for serve --keys-file.

    To revoke a key remove its line; a running server sees that by itself.

    Example: siserve key ann --file keys.txt
    """
    from siserve.serving.keys import add_key

    typer.echo(add_key(file, name, admin))
