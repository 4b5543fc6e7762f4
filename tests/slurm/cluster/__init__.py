"""A Slurm of its own for the tests: real daemons in namespaces that nothing outside can see, gone with the tests."""
