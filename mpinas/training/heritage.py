"""What a candidate begins with and whom it learns from: nothing and nobody, the supernet, or the trained baseline.

Every rank of a group finds the same here, in the files of the run. Must not know groups, nor how a network is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from mpinas.models import TRAINING_GENES, Networks
from mpinas.models.elastic import Supernet
from mpinas.search import Genome
from mpinas.tasks import Samples, Task
from mpinas.training.collectives import SerialCollectives
from mpinas.training.deployed import Deployed
from mpinas.training.supernet import adapt, recalibrate
from mpinas.training.weights import load_weights

#: Outputs for a batch of uint8 (n, frames, height, width), without gradients.
Answer = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Teacher:
    """A trained network to learn from: its outputs, and how many frames of a sample it takes."""

    answer: Answer
    frames: int


@dataclass(slots=True)
class Heritage:
    """Of one run, on one rank.

    Attributes
    ----------
    networks, device
        What genomes describe, and where they are trained.
    supernet_file, baseline_file
        Trained weights, read when they are first needed.
    baseline
        Genome of the human-designed baseline.
    inherits
        Do candidates begin with the supernet's weights?
    teacher_name
        "", "baseline", "supernet" or the path of an ONNX file.
    make_supernet
        The supernet of the run's space, untrained; None where nothing needs one.
    """

    networks: Networks
    device: torch.device
    supernet_file: Path = Path()
    baseline_file: Path = Path()
    baseline: Genome = field(default_factory=dict)
    inherits: bool = False
    teacher_name: str = ""
    make_supernet: Callable[[], Supernet] | None = None
    _supernet: Supernet | None = field(default=None, init=False)
    _teacher: Teacher | None = field(default=None, init=False)

    @property
    def training_genes(self) -> Genome:
        """How a network is trained whose genome does not say it; one made from the baseline: as the baseline."""
        return self.baseline if self.networks.compressed else TRAINING_GENES

    def network(self, genome: Genome, task: Task, training: Samples, batch_size: int) -> nn.Module:
        """The network of a genome on the device, with the weights that its training begins with.

        `training`: if it inherits, it is adapted to these, by each rank for itself.
        """
        if "baseline" in genome or not (self.networks.compressed or self.inherits):
            return self.networks.build(genome).to(self.device)
        if not self.networks.compressed:
            return self._subnet(genome, task, training, batch_size)
        trained = load_weights(self.networks.build(self.baseline), self.baseline_file)
        model = self.networks.inherit(genome, trained).to(self.device)
        recalibrate(model, self._shown(genome, training), batch_size, SerialCollectives(), self.device)
        return model

    def _subnet(self, genome: Genome, task: Task, training: Samples, batch_size: int) -> nn.Module:
        model = self.supernet().subnet(genome).to(self.device)
        return adapt(model, task, self._shown(genome, training), batch_size, SerialCollectives(), self.device)

    def _shown(self, genome: Genome, samples: Samples) -> Samples:
        return samples.middle(self.networks.shape(genome)[0])

    def teacher(self, genome: Genome, task: Task, training: Samples, batch_size: int) -> Teacher | None:
        """Whom the network of a genome learns from, if it is to learn from anybody.

        `training`: a subnet is adapted to these, by each rank for itself.
        """
        if float(genome.get("distillation", 0.0)) == 0.0:
            return None
        if self._teacher is None:
            self._teacher = self._find_teacher(task, training, batch_size)
        return self._teacher

    def new_supernet(self) -> Supernet:
        """Untrained, with fresh weights from torch's generator."""
        assert self.make_supernet is not None
        return self.make_supernet()

    def supernet(self) -> Supernet:
        """The trained one, on the CPU."""
        if self._supernet is None:
            supernet = self.new_supernet()
            load_weights(supernet, self.supernet_file)
            self._supernet = supernet
        return self._supernet

    def _find_teacher(self, task: Task, training: Samples, batch_size: int) -> Teacher:
        match self.teacher_name:
            case "baseline":
                genome = self.baseline
                model = load_weights(self.networks.build(genome), self.baseline_file)
            case "supernet":
                genome = self.supernet().teacher
                model = self._subnet(genome, task, training, batch_size)
            case file:
                deployed = Deployed(Path(file), torch.get_num_threads())
                return Teacher(lambda inputs: torch.from_numpy(deployed.run(inputs.cpu().numpy())).to(inputs.device),
                               deployed.input_shape[0])  # fmt: skip
        model = model.to(self.device).eval()

        def answer(inputs: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                out: torch.Tensor = model(inputs)
            return out

        return Teacher(answer, self.networks.shape(genome)[0])
