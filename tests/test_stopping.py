"""A stop signal takes effect, whatever was running when it arrived."""

import signal
import sys
import time

import pytest

from nopr.lab import stopping


@pytest.fixture(autouse=True)
def listening(monkeypatch):
    """Listens for one test."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(stopping, "_received", [])
    stopping.listen()
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


KINDS = [
    (signal.SIGTERM, stopping.Terminated, 143),
    (signal.SIGINT, KeyboardInterrupt, 130),
]


@pytest.mark.parametrize(("number", "kind", "status"), KINDS)
def test_a_signal_is_raised_with_its_exit_status(number, kind, status):
    with pytest.raises(kind) as caught:
        signal.raise_signal(number)
    assert stopping.status(caught.value) == status


@pytest.mark.parametrize(("number", "kind", "status"), KINDS)
def test_a_signal_that_python_drops_is_raised_again(number, kind, status, capsys):
    class Thing:
        def __del__(self):
            signal.raise_signal(number)

    def drop_a_thing():
        Thing()
        time.sleep(5)

    del status
    with pytest.raises(kind):
        drop_a_thing()
    assert not capsys.readouterr().err


def test_what_a_signal_leaves_half_built_prints_nothing(capsys):
    class Archive:
        def __init__(self):
            signal.raise_signal(signal.SIGTERM)
            self.open = True

        def __del__(self):
            assert self.open

    with pytest.raises(stopping.Terminated):
        Archive()
    assert not capsys.readouterr().err


def test_other_errors_that_python_drops_are_still_printed(capsys):
    class Thing:
        def __del__(self):
            raise KeyError("lost")

    Thing()
    assert "KeyError: 'lost'" in capsys.readouterr().err


def test_a_stop_is_raised_only_once_while_it_propagates():
    cleared = []

    def work():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            for step in range(4):
                time.sleep(0.05)
                cleared.append(step)

    with pytest.raises(stopping.Terminated):
        work()
    assert cleared == [0, 1, 2, 3]


def test_signals_are_ignored_at_the_end():
    stopping.ignore()
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    time.sleep(0.1)
