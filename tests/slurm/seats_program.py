"""Who sits where: rank 0 prints, as JSON, what each rank of COMM_WORLD sees. Takes the place of a search."""

import json
import os

from mpi4py import MPI

world = MPI.COMM_WORLD
seat = {
    "rank": world.Get_rank(),
    "host": os.uname().nodename,
    "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
    "threads": os.environ.get("OMP_NUM_THREADS"),
}
seats = world.gather(seat)
if seats is not None:
    print("SEATS", json.dumps(seats), flush=True)
