"""What every command does alike: help with an example, one line and exit code 2 for wrong use."""

import subprocess
from collections.abc import Callable

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
COMMANDS = ("serve", "verify", "ask", "train", "evaluate", "export")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_shows_an_example(command: str, siserve: Run) -> None:
    asked = siserve(command, "--help")
    assert asked.returncode == 0, asked.stderr
    assert f"Example: siserve {command} " in asked.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_that_no_command_has_gets_one_line_that_names_it(
    command: str, siserve: Run
) -> None:
    asked = siserve(command, "--sead", "7")
    assert asked.returncode == 2
    assert len(asked.stderr.splitlines()) == 1 and asked.stdout == ""
    assert "--sead" in asked.stderr and "--help" in asked.stderr


@pytest.mark.parametrize("command", ["verify", "ask", "train", "evaluate", "export"])
def test_a_command_without_what_it_needs_gets_one_line(command: str, siserve: Run) -> None:
    asked = siserve(command)
    assert asked.returncode == 2
    assert len(asked.stderr.splitlines()) == 1 and "Traceback" not in asked.stderr


def test_a_misspelt_command_is_told_the_one_that_was_meant(siserve: Run) -> None:
    asked = siserve("trian")
    assert asked.returncode == 2
    assert len(asked.stderr.splitlines()) == 1 and "'train'" in asked.stderr
