"""A job in virtual time: the real coordinator, and around it everything that takes time on a real machine.

For planning (how many node-hours will this search take, and what will it wait for?) and for tests. Must not know torch,
MPI, sockets or what a network is: objectives of candidates are given as a function.
"""
