"""The task digits with epochs that last as long as the experiment says, on fast and on busy machines: to test time."""

import time

from mpinas.examples.digits import DigitsTask


class SlowDigits(DigitsTask):
    """`options = {epoch_seconds = 1.5}`: each validation takes so much longer; `{step_seconds = 0.5}`: each step."""

    option_names = ("epoch_seconds", "step_seconds")

    def __init__(self, settings, seed):
        super().__init__(settings, seed)
        self._epoch_s = settings.options.get("epoch_seconds", 0)
        self._step_s = settings.options.get("step_seconds", 0)

    def loss(self, outputs, targets):
        time.sleep(self._step_s)
        return super().loss(outputs, targets)

    def metrics(self, sums):
        time.sleep(self._epoch_s)
        return super().metrics(sums)
