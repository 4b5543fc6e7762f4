"""For all tests."""

import os
import signal

# Tests run in several processes on few cores, where threads of torch that wait for each other keep all others waiting.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Started in the background of a script, pytest ignores SIGINT, and so would every command that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
