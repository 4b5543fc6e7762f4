"""Search spaces and the networks that their genomes describe. Networks only: no data, no training, no search.

Every network takes uint8 frames (batch, frames, height, width) as the camera gives them and does its own scaling,
so that the exported model is all there is to run on the device.
"""

from mpinas.models.networks import (
    Networks,
    baseline_genome,
    check_baseline,
    check_compressible,
    check_supernet,
    make_space,
    make_supernet,
)
from mpinas.models.protocol import TRAINING_GENES, NetworkSpace, Shape

__all__ = [
    "TRAINING_GENES",
    "NetworkSpace",
    "Networks",
    "Shape",
    "baseline_genome",
    "check_baseline",
    "check_compressible",
    "check_supernet",
    "make_space",
    "make_supernet",
]
