"""The MPI shell: starts MPI, lays out the ranks, moves orders and reports. The only importer of mpi4py and horovod.

Loops here hold no decision; those are in `coordination`.
"""
