"""Decisions of the job, as pure code: an event comes in, commands go out. No MPI, no socket, no file, no clock."""
