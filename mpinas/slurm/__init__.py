"""Job scripts, walltime and systems of a Slurm cluster. Knows nothing of MPI, torch or the search."""
