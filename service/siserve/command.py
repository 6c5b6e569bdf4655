"""Run a room's typer application the way every siserve command behaves.

Exit code 0 = done, 1 = the work failed, 2 = wrong use; an error is one line on stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer

__all__ = ["one_line", "run_app"]

# typer carries its own copy of click in new versions and imports it in old ones.
_CLICK_ERROR: type[Exception] = typer.BadParameter.__mro__[2]  # ClickException


def run_app(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Parse the arguments, the command's name first, run it and return the exit code."""
    command = f"siserve {arguments[0]}"
    try:
        # The command itself and not through its room's group: to look at a group's options, of
        # which there are none, typer loads pydantic, which takes longer than all else of --help.
        room: Any = typer.main.get_command(app)
        code = room.commands[arguments[0]].main(
            args=list(arguments[1:]), prog_name=command, standalone_mode=False
        )
    except (KeyboardInterrupt, typer.Abort):
        print(one_line(command, "interrupted"), file=sys.stderr)
        return 130
    except _CLICK_ERROR as error:
        print(one_line(command, f"{_message(error)} See {command} --help."), file=sys.stderr)
        return 2
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(one_line(command, f"{place}{error.strerror or error}"), file=sys.stderr)
        return 1
    except Exception as error:
        from siserve.bundle.errors import SiserveError  # late: --help need not load the bundle

        if not isinstance(error, SiserveError):
            raise
        print(one_line(command, str(error)), file=sys.stderr)
        return error.exit_code
    return code if isinstance(code, int) else 0


def _message(error: Exception) -> str:
    message = str(getattr(error, "format_message", error.__str__)()).rstrip()
    return message if message.endswith(".") else f"{message}."


def one_line(command: str, message: str) -> str:
    """Write an error on one line, whatever its message holds."""
    return f"{command}: {' '.join(message.split())}"
