"""The task digits with epochs that last as long as the experiment says, on fast and on busy machines: to test time."""

import time

from mpinas.examples.digits import DigitsTask


class SlowDigits(DigitsTask):
    """`options = {epoch_seconds = 1.5}`: each validation takes so much longer."""

    def __init__(self, settings, seed):
        super().__init__(settings, seed)
        self._epoch_s = settings.options["epoch_seconds"]

    def metrics(self, sums):
        time.sleep(self._epoch_s)
        return super().metrics(sums)
