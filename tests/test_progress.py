"""Progress: silent when short, a line now and then in a log, a bar on a terminal."""

import io
import re
from contextlib import redirect_stderr

import pytest

from mobilenets.data import progress as module
from mobilenets.data.progress import format_seconds, progress


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (0.4, "0:00"),
        # Rounded before it is split: never 0:60.
        (59.6, "1:00"),
        (61, "1:01"),
        (3599.5, "1:00:00"),
        (3600, "1:00:00"),
        (4000, "1:06:40"),
        # Days are hours.
        (100 * 3600, "100:00:00"),
    ],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


class Clock:
    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def run(clock, steps, total, unit="images"):
    with progress("reading", total, unit) as advance:
        for seconds, units in steps:
            clock.now += seconds
            advance(units)


@pytest.mark.parametrize(
    ("steps", "total", "lines"),
    [
        # Short: nothing at all.
        ([(0.1, 50), (0.1, 50)], 100, []),
        # Half a minute is not over yet.
        ([(29.9, 50)], 100, []),
        ([(30, 50)], 200, ["reading: 50 of 200 images, 2/s, 1:30 left"]),
        # The end is no news: what comes next says it.
        ([(40, 100)], 100, []),
        # One line each half minute, whatever the number of steps.
        (
            [(10, 1000)] * 7,
            100_000,
            [
                "reading: 3,000 of 100,000 images, 100/s, 16:10 left",
                "reading: 6,000 of 100,000 images, 100/s, 15:40 left",
            ],
        ),
        # Nothing is done yet: no speed to divide by.
        ([(30, 0), (30, 60)], 120, ["reading: 60 of 120 images, 1/s, 1:00 left"]),
    ],
)
def test_lines(clock, capsys, steps, total, lines):
    run(clock, steps, total)
    shown = capsys.readouterr()
    assert shown.err.splitlines() == lines
    # Standard output belongs to results.
    assert shown.out == ""


def test_unit_and_seconds_between_lines(clock, capsys, monkeypatch):
    monkeypatch.setattr(module, "LINE_SECONDS", 1.0)
    run(clock, [(1, 2), (1, 2)], 8, "batches")
    assert capsys.readouterr().err == (
        "reading: 2 of 8 batches, 2/s, 0:03 left\nreading: 4 of 8 batches, 2/s, 0:02 left\n"
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    return Terminal()


def test_no_bar_for_two_seconds(clock, terminal):
    with redirect_stderr(terminal):
        run(clock, [(0.5, 30), (1.5, 30), (0, 40)], 100)
    assert terminal.getvalue() == ""


def test_bar(clock, terminal):
    with redirect_stderr(terminal):
        run(clock, [(1, 1000), (1.5, 1500), (0.5, 500)], 5000)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert "reading" in shown
    assert "2,500 of 5,000 images" in shown
    assert "1,000/s" in shown
    # It leaves the terminal as it was: the cursor is back.
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")


@pytest.mark.parametrize("seconds", [0.1, 3.0])
def test_an_error_inside_passes_and_the_bar_stops(clock, terminal, seconds):
    def work():
        with progress("reading", 10) as advance:
            clock.now += seconds
            advance(1)
            raise KeyError("inside")

    with redirect_stderr(terminal), pytest.raises(KeyError, match="inside"):
        work()
    assert bool(terminal.getvalue()) == (seconds > 2)
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h")
