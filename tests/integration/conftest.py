"""What integration tests share."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from edge_eval_lib import __main__ as command_line
from edge_eval_lib.paths import project_root


@pytest.fixture
def call_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A command of edge_eval_lib in this process, whose signals and streams it leaves alone."""
    monkeypatch.chdir(project_root())
    monkeypatch.setattr(command_line.signal, "signal", lambda *_: None)
    monkeypatch.setattr(command_line.redaction, "redact_stream", lambda _: None)
    monkeypatch.setattr(command_line, "_make", lambda: None)
    monkeypatch.setattr("edge_eval_lib.runs.process.die_with_parent", lambda _: None)

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["edge_eval_lib", *arguments])
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        code, (out, err) = ended.value.code, capsys.readouterr()
        if isinstance(code, str):  # which the interpreter prints
            code, err = 1, f"{err}{code}\n"
        return subprocess.CompletedProcess(arguments, code or 0, out, err)

    return call
