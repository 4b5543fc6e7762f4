"""For all tests."""

import signal

# Started in the background of a script, pytest ignores SIGINT, and so would every command that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
