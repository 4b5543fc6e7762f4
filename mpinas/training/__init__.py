"""Trains, judges and exports one candidate. Knows no search, no device and no MPI: ranks meet in `Collectives`."""
