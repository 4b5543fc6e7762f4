"""Hardware-aware neural architecture search as one MPI job, with the edge device in the loop."""

__version__ = "0.1.0"
