"""Time left is an estimate from the rate so far."""

import io

import pytest

from duet_dev.progress import JobProgress, duration, time_left


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0, 59.9, 75, 3600)] == ["0:00", "0:59", "1:15", "60:00"]


def test_time_left_follows_the_rate() -> None:
    assert time_left(done=100, total=400, elapsed_seconds=60) == "about 3:00 left"


@pytest.mark.parametrize(("done", "elapsed"), [(5, 60), (100, 2), (400, 60)])
def test_no_estimate_from_too_little_or_at_the_end(done: int, elapsed: float) -> None:
    assert time_left(done=done, total=400, elapsed_seconds=elapsed) == ""


def test_without_a_terminal_it_says_begin_and_end(capsys: pytest.CaptureFixture[str]) -> None:
    with JobProgress("a job", total=2) as progress:
        progress.advance("one")
        progress.advance("two")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "a job …"
    assert lines[-1].startswith("a job: done in 0:0")
    assert progress.done == 2


def test_a_job_that_failed_is_not_called_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), JobProgress("a job"):
        raise RuntimeError
    assert "done" not in capsys.readouterr().err


def test_on_a_terminal_the_line_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with JobProgress("a job", total=3) as progress:
        progress.advance("one")
        progress.advance("two")
    assert "2/3, two" in terminal.getvalue()
    assert "a job: done in 0:0" in terminal.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True
