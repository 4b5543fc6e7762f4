"""The watch over the device by its reference model: from readings to what is told of each measurement.

Binds the pure rules of `drift` to the store. Must not know sockets or how a model is measured.
"""

from __future__ import annotations

import hashlib
import logging
from importlib.resources import files

import msgspec

from edge_bridge.device.drift import Drift, DriftPlan, Verdict
from edge_bridge.device.store import Standing, Store
from edge_bridge.wire.quantities import SHORTEST_S, Measurement, Reference, Settings

log = logging.getLogger("device")

#: Short: a reading delays whoever waits.
SETTINGS = Settings(min_seconds=0.05, max_seconds=2.0, warmup_max_seconds=0.3, attempts=1)
#: A model that cannot be measured this often in a row is not measured any more.
MOST_FAILURES = 3
DAY_S = 86_400.0


def reference_model() -> bytes:
    """Return the shipped model (made by tools/make_reference_model.py)."""
    return files("edge_bridge.device").joinpath("reference.onnx").read_bytes()


class ReferenceWatch:
    """What the device knows of its own drift.

    Parameters
    ----------
    plan
        When to take readings and what to make of them; None takes none.
    profile_digest
        Results are kept under it.
    forget
        Learn anew what to expect.
    """

    def __init__(self, plan: DriftPlan | None, store: Store, profile_digest: str, forget: bool = False) -> None:
        self._store, self._profile = store, profile_digest
        self._drift: Drift | None = None
        self._failures = 0
        self.model = b""
        if plan is None:
            store.settle(profile_digest, Standing.SOUND)
            return
        self.model = reference_model()
        self._key = hashlib.sha256(profile_digest.encode() + self.model).hexdigest()
        self._drift = Drift(plan, () if forget else store.readings(self._key))

    @property
    def cooling(self) -> bool:
        """Whether nothing may be measured until the next reading."""
        return self._drift is not None and self._drift.cooling

    @property
    def standing(self) -> Standing:
        """Standing of a result measured now. Out of band it says so itself."""
        return Standing.OPEN if self._drift is not None and self._drift.in_band else Standing.SOUND

    def due(self, now_s: float, waited_for: bool) -> bool:
        """Whether to take a reading before anything else."""
        return self._drift is not None and self._drift.due(now_s, waited_for)

    def wait_s(self, now_s: float) -> float:
        """Time until the next reading of a device that cools down."""
        return max(0.0, self._drift.wait_until_s - now_s) if self._drift is not None and self._drift.cooling else DAY_S

    def measured(self) -> None:
        """Count a request."""
        if self._drift is not None:
            self._drift.measured()

    def attach(self, measurement: Measurement, now_s: float) -> Measurement:
        """Return the measurement with the last reading in it."""
        drift = self._drift
        if drift is None or drift.last_p50_s is None or drift.expected_s is None:
            return measurement
        reference = Reference(
            p50_s=drift.last_p50_s,
            expected_s=drift.expected_s,
            age_s=min(DAY_S, drift.age_s(now_s)),
            in_band=drift.in_band,
        )
        return msgspec.structs.replace(measurement, reference=reference)

    def read(self, p50_s: float, now_s: float) -> tuple[list[str], str]:
        """Take a reading; return the request ids that are doubtful now, and why."""
        assert self._drift is not None
        self._failures = 0
        drift = self._drift
        expected_s = drift.expected_s
        verdict = drift.read(max(p50_s, SHORTEST_S), now_s)
        if expected_s is None:
            if drift.expected_s is not None:
                self._store.keep_readings(self._key, drift.learned_readings)
                self._store.settle(self._profile, Standing.SOUND)
                log.info("the reference model takes %.3f ms: expected from now on", drift.expected_s * 1e3)
            return [], ""
        detail = (
            f"the reference model took {p50_s * 1e3:.3f} ms, {p50_s / expected_s - 1:+.0%} from the "
            f"{expected_s * 1e3:.3f} ms expected"
        )
        match verdict:
            case Verdict.GOOD:
                log.info("%s: in band", detail)
                self._store.settle(self._profile, Standing.SOUND)
            case Verdict.AGAIN:
                log.info("%s: reading it once more", detail)
            case Verdict.COOLING:
                log.warning("%s: waiting %.0f s for it to come back", detail, drift.wait_until_s - now_s)
                return self._store.settle(self._profile, Standing.DOUBTFUL), detail
            case Verdict.OUT:
                log.warning("%s: going on, and each measurement says so", detail)
                return self._store.settle(self._profile, Standing.DOUBTFUL), detail
            case Verdict.FASTER:
                log.warning("%s: it was slowed down when that was learned, learning it anew", detail)
                return self._store.settle(self._profile, Standing.DOUBTFUL), detail
        return [], ""

    def failed(self, reason: str, detail: str) -> None:
        """Take the failure of a reading; after some in a row there are no more readings."""
        self._failures += 1
        log.warning("the reference model was not measured, %s: %s", reason, detail)
        if self._failures >= MOST_FAILURES:
            log.warning("the device's drift is not watched: start it with --no-reference, or mend this")
            self._drift = None
            self._store.settle(self._profile, Standing.SOUND)
