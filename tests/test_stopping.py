"""A stop signal takes effect, whatever was running when it arrived."""

import contextlib
import signal
import time

import pytest

from nopr.lab import stopping


@pytest.fixture(autouse=True)
def listening(monkeypatch):
    """Listens for one test, with short waits before raising again."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(stopping, "_AGAIN_SECONDS", 0.05)
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
def test_a_signal_in_a_callback_is_raised_after_it(number, kind, status):
    class Thing:
        def __del__(self):
            signal.raise_signal(number)  # Python would only print an exception raised here.

    def drop_a_thing():
        Thing()
        time.sleep(5)

    del status
    with pytest.raises(kind):
        drop_a_thing()


@pytest.mark.parametrize(("number", "kind", "status"), KINDS)
def test_a_stop_that_was_swallowed_is_raised_again(number, kind, status):
    del status
    with contextlib.suppress(BaseException):
        signal.raise_signal(number)
    with pytest.raises(kind):
        time.sleep(5)


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
