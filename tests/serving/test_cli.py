"""The command line: which words it knows, what it prints, how it ends."""

import json
import subprocess
from collections.abc import Callable

import pytest
from siserve.cli import run
from siserve.client.cli import make_context
from siserve.serving.models import embedded_bundle

EMBEDDED_FIELDS = {
    "responses",
    "distinct_1",
    "distinct_2",
    "seed",
    "model",
    "timings",
    "latency_seconds",
}


@pytest.fixture
def run_here(capsys) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command that ends by itself in this process: the same, without a start of Python."""

    def run_command(*arguments: object) -> subprocess.CompletedProcess[str]:
        words = [str(argument) for argument in arguments]
        code = run(words)
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(words, code, out, err)

    return run_command


def test_help_lists_every_command(run_here):
    for arguments in ((), ("--help",), ("-h",)):
        asked = run_here(*arguments)
        assert asked.returncode == 0 and asked.stderr == ""
        for command in ("serve", "ask", "verify", "train", "export", "data"):
            assert f"\n  {command} " in asked.stdout


@pytest.mark.parametrize("command", ["serve", "ask", "verify"])
def test_help_of_a_command_has_an_example(run_here, command):
    asked = run_here(command, "--help")
    assert asked.returncode == 0 and f"Example: siserve {command}" in asked.stdout


def test_every_server_option_names_its_variable(run_here):
    words = " ".join(run_here("serve", "--help").stdout.split())
    options = [word for word in words.split() if word.startswith("--") and word != "--help"]
    for option in options:
        if not option.startswith("--no-"):
            assert f"SISERVE_{option[2:].upper().replace('-', '_')}" in words


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["frobnicate"], "no command"),
        (["serv"], "'serve'"),
        (["serve", "--port", "many"], "--port"),
        (["serve", "--port", "65536"], "--port"),
        (["serve", "--device", "abacus"], "--device"),
        (["serve", "--frobnicate"], "--frobnicate"),
        (["verify"], "bundle"),
        (["ask"], "nothing to answer"),
        (["ask", "hi", "-n", "0"], "-n"),
        (["ask", "hi", "--seed", "-1"], "--seed"),
        (["ask", "hi", "--turn", "no speaker"], "names no speaker"),
        (["ask", "hi", "--address", "localhost:1", "--bundle", "."], "--bundle"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(run_here, arguments, expected):
    ended = run_here(*arguments)
    assert ended.returncode == 2 and ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert expected in line and line.startswith("siserve")


def test_verify_of_nothing_is_one_line_and_exit_code_1(run_here, tmp_path):
    ended = run_here("verify", tmp_path)
    assert ended.returncode == 1 and ended.stdout == ""
    assert "manifest.json" in ended.stderr and len(ended.stderr.splitlines()) == 1


def test_ask_without_a_server_gives_what_a_server_gives(run_siserve, server, bundle):
    question = ["ask", "what did you do", "--turn", "A:hi", "--seed", "11", "-n", "4", "--json"]
    answers = []
    for where in (["--address", server.address], ["--bundle", str(bundle)]):
        asked = run_siserve(*question, *where)
        assert asked.returncode == 0, asked.stderr
        answer = json.loads(asked.stdout)
        assert set(answer) == EMBEDDED_FIELDS
        answers.append({key: answer[key] for key in ("responses", "distinct_1", "seed", "model")})
    assert answers[0] == answers[1]
    assert len(answers[0]["responses"]) == 4


def test_ask_shows_responses_diversity_and_latency(run_siserve, server):
    asked = run_siserve("ask", "how was it?", "--address", server.address, "--seed", "3")
    assert asked.returncode == 0
    for part in ("A: how was it?", "distinct-1", "distinct-2", " ms", "seed 3", "tiny@1"):
        assert part in asked.stdout
    as_json = run_siserve("ask", "how was it?", "--address", server.address, "--seed=3", "--json")
    for reply in json.loads(as_json.stdout)["responses"]:
        assert reply["text"].split()[0] in asked.stdout


@pytest.mark.parametrize(
    "arguments, code, expected",
    [
        (["-n", "65"], 2, "n: must be from 1 to 64"),
        (["--model", "huge"], 2, "no such model"),
        (["--topic", "NONSENSE"], 2, "topic: "),
        (["--temperature", "nan"], 2, "temperature: "),
    ],
)
def test_what_the_server_refuses_ask_tells_in_one_line(run_here, server, arguments, code, expected):
    ended = run_here("ask", "hi", "--address", server.address, *arguments)
    assert ended.returncode == code and ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert expected in line


def test_no_server_is_one_line_and_exit_code_1(run_here):
    ended = run_here("ask", "hi", "--address", "127.0.0.1:1")
    assert ended.returncode == 1
    assert "no server answers at 127.0.0.1:1" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_text_is_said_by_the_other_speaker():
    assert make_context([], "hi") == [("A", "hi")]
    assert make_context(["A:hi"], "yo") == [("A", "hi"), ("B", "yo")]
    assert make_context(["ann: hi", "bob: at 10:30"], "ok") == [
        ("ann", "hi"),
        ("bob", "at 10:30"),
        ("ann", "ok"),
    ]
    assert make_context(["A:hi", "B:yo"], "") == [("A", "hi"), ("B", "yo")]


def test_without_a_bundle_ask_uses_the_embedded_model_or_says_that_there_is_none(run_siserve):
    asked = run_siserve("ask", "hi", "--json")
    try:
        name = embedded_bundle().name
    except Exception:
        assert asked.returncode == 1 and "embedded" in asked.stderr
    else:
        assert json.loads(asked.stdout)["model"].startswith(f"{name}@")
