"""For all tests."""

import contextlib
import os
import resource
import signal

import pytest

# Tests run in several processes on few cores, where threads of torch that wait for each other keep all others waiting.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Started in the background of a script, pytest ignores SIGINT, and so would every command that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def files_up_to():
    """`with files_up_to(100):` no file of this process may grow beyond 100 bytes: writing fails as it does on a full
    disk ("File too large"), whoever runs the test."""

    @contextlib.contextmanager
    def limited(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited
