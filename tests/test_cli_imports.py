"""`--help` answers without loading what only real work needs."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
HEAVY = {"boto3", "lmdb", "pyfuse3", "rich", "trio", "yaml"}


def console_script(name: str) -> str:
    """The `module:function` that setup.cfg gives to a command."""
    config = configparser.ConfigParser()
    config.read(PROJECT / "setup.cfg")
    scripts = configparser.ConfigParser()
    scripts.read_string("[scripts]" + config["options.entry_points"]["console_scripts"])
    return scripts["scripts"][name]


def run_counting_imports(script: str, *arguments: str) -> tuple[str, set[str]]:
    """Runs a command in a new interpreter: what it printed, and the top-level modules that it imported."""
    module, _, function = console_script(script).partition(":")
    program = f"import sys; from {module} import {function} as main; sys.argv[0] = {script!r}; sys.exit(main())"
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program, *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    timed = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    said = [line for line in result.stderr.splitlines() if line not in timed]
    assert result.returncode == 0, "\n".join([result.stdout, *said])
    names = {line.rpartition("|")[2].strip().partition(".")[0] for line in timed}
    return result.stdout, names


@pytest.mark.parametrize(
    ("script", "arguments"),
    [("pfs", ["--help"]), ("pfs", ["put", "--help"]), ("pfsjob", ["--help"]), ("pfsjob", ["run", "--help"])],
)
def test_help_imports_nothing_heavy(script: str, arguments: list[str]) -> None:
    output, imported = run_counting_imports(script, *arguments)
    assert "Usage:" in output
    assert "typer" in imported, "the list of imports was not read"
    assert imported & HEAVY == set()
