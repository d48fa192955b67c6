"""A terminal for tests of what is printed: it keeps what was written and says how wide its lines are."""

import io
import re

import pytest

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Screen(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True

    def read_text(self) -> str:
        """Return what was written, without colours and movements of the cursor."""
        return ESCAPE.sub("", self.getvalue())

    def list_lines(self) -> list[str]:
        """Return each line that was shown, also those that were overwritten later."""
        return [line.rstrip() for line in re.split(r"[\r\n]+", self.read_text()) if line.strip()]


def open_screen(monkeypatch: pytest.MonkeyPatch, *, width: int, colours: bool = True) -> Screen:
    """Make stdout and stderr one terminal of this width for the rest of the test."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    if not colours:
        monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm-256color")
    screen = Screen()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setattr("sys.stderr", screen)
    return screen
