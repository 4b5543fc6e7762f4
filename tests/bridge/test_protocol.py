"""The wire format: what goes in comes out, and nothing that a stranger sends does more than raise ProtocolError."""

from __future__ import annotations

import contextlib
import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_bridge.errors import ProtocolError
from edge_bridge.wire import protocol as wire
from edge_bridge.wire.quantities import Measurement, Profile, Reference, Settings, encode_settings, request_id

ID = "ab" * 32
PROFILE = Profile(name="dut", hardware="box", runtime="onnxruntime", provider="cpu", versions={"onnxruntime": "1"})
MEASUREMENT = Measurement(
    p50_s=0.001, p90_s=0.002, p95_s=0.003, p99_s=0.004, mean_s=0.0012, min_s=0.0005, samples=64,
    coefficient_of_variation=0.1, complete=True, unsteady=False, warmup_runs=15, warmup_settled=True, load_s=0.1,
    batch=1, input_shape=[1, 16], input_type="float32", threads=1, peak_memory_bytes=1000, device="dut",
    hardware="box", runtime="onnxruntime", provider="cpu", versions={},
)  # fmt: skip
MESSAGES = [
    (wire.Hello(client="me", versions={}), wire.JOB_TO_RELAY),
    (wire.Cancel(request_id=ID), wire.JOB_TO_RELAY),
    (wire.Welcome(devices=[PROFILE], jobs=1, queued=2, running=3, uptime_s=4.5, versions={}), wire.RELAY_TO_JOB),
    (wire.Devices(devices=[PROFILE]), wire.RELAY_TO_JOB),
    (wire.Ack(request_id=ID), wire.RELAY_TO_JOB),
    (wire.Progress(request_id=ID, phase="warming", device="dut"), wire.RELAY_TO_JOB),
    (wire.Result(request_id=ID, measurement=msgspec.Raw(msgspec.json.encode(MEASUREMENT))), wire.RELAY_TO_JOB),
    (wire.Failed(request_id=ID, reason="time-out", detail="slow"), wire.DEVICE_TO_RELAY),
    (wire.Error(code="version", detail="old"), wire.RELAY_TO_DEVICE),
    (wire.Register(profile=PROFILE, instance="one", busy_with=ID), wire.DEVICE_TO_RELAY),
    (wire.Registered(versions={}), wire.RELAY_TO_DEVICE),
    (wire.Ping(), wire.RELAY_TO_DEVICE),
    (wire.Pong(), wire.DEVICE_TO_RELAY),
]
DIRECTIONS = [wire.JOB_TO_RELAY, wire.RELAY_TO_JOB, wire.DEVICE_TO_RELAY, wire.RELAY_TO_DEVICE]


@pytest.mark.parametrize(("header", "direction"), MESSAGES, ids=lambda each: type(each).__name__)
def test_what_goes_in_comes_out(header, direction):
    assert wire.decode(wire.encode(header), direction) == wire.Message(header)


def test_a_model_travels_with_its_digest_in_frames_of_its_own():
    model = bytes(range(256)) * 20_000
    measure = wire.measure_of(model, Settings(percentile="p95"), "dut")
    frames = wire.encode(measure, wire.cut(model))
    assert frames[:2] == [b"MPINAS-EDGE/1", b"MEASURE"]
    assert {len(frame) for frame in frames[3:-1]} == {256 << 10}
    message = wire.decode(frames, wire.JOB_TO_RELAY)
    assert message.joined() == model
    assert message.header.model_sha256 == hashlib.sha256(model).hexdigest()
    assert message.header.decoded_settings() == Settings(percentile="p95")
    task = wire.decode(wire.encode(wire.task_of(measure), wire.cut(model)), wire.RELAY_TO_DEVICE).header
    assert task.request_id == measure.request_id


def test_a_measurement_survives_the_relay():
    raw = msgspec.Raw(msgspec.json.encode(MEASUREMENT))
    there = wire.decode(wire.encode(wire.Result(request_id=ID, measurement=raw)), wire.DEVICE_TO_RELAY).header
    back = wire.decode(wire.encode(there), wire.RELAY_TO_JOB).header
    assert back.decoded_measurement() == MEASUREMENT


def test_a_latency_of_no_time_at_all_is_no_measurement():
    there = wire.Result(
        request_id=ID, measurement=msgspec.Raw(msgspec.json.encode(msgspec.structs.replace(MEASUREMENT, p50_s=0.0)))
    )
    with pytest.raises(ProtocolError, match="p50_s"):
        there.decoded_measurement()


def test_request_id_is_what_the_document_says():
    # Fixed for ever: stores on devices are keyed by it.
    settings = encode_settings(Settings())
    assert settings == (
        b'{"attempts":3,"batches":[1],"max_seconds":30.0,"min_seconds":0.2,"pause_seconds":1.0,"percentile":"p90",'
        b'"precision":"model","repetition":0,"samples":0,"threads":1,"warmup_max_seconds":3.0,"warmup_min_runs":10}'
    )
    assert request_id("00" * 32, "any", b"{}") == "dbb77e5c42cd5418a88ccc37e8f8b20e669a8b71e63cb6d9a5e9983fbc4d9d9d"


def test_request_id_tells_apart_all_that_matters():
    model = b"model"
    asked = [
        wire.measure_of(model, Settings()),
        wire.measure_of(b"other", Settings()),
        wire.measure_of(model, Settings(), "dut"),
        wire.measure_of(model, Settings(threads=2)),
        wire.measure_of(model, Settings(repetition=1)),
    ]
    assert len({each.request_id for each in asked}) == len(asked)
    assert wire.measure_of(model, Settings()) == asked[0]


def test_percentiles_ask_for_the_samples_they_need():
    assert [Settings(percentile=each).enough_samples() for each in ("p90", "p95", "p99")] == [64, 130, 662]
    assert Settings(samples=200).enough_samples() == 200


def test_a_field_of_a_later_version_is_ignored():
    frames = [wire.VERSION, b"PING", b'{"nonce": 7}']
    assert wire.decode(frames, wire.RELAY_TO_JOB).header == wire.Ping()


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ([], "0 frames"),
        ([wire.VERSION, b"PING"], "2 frames"),
        ([b"MPINAS-EDGE/2", b"PING", b"{}"], "peer speaks 'MPINAS-EDGE/2', this is MPINAS-EDGE/1"),
        ([wire.VERSION, b"MEASURE", b"{}"], "type 'MEASURE' is not one that this peer may send"),
        ([wire.VERSION, b"PING", b"{}", b"payload"], "payload of 7 bytes, the header says 0"),
        ([wire.VERSION, b"PING", b"[" * 100_000], "PING: "),
        ([wire.VERSION, b"PING", b" " * (1 << 20) + b"{}"], "header of 1048578 bytes"),
        ([wire.VERSION, b"ACK", b'{"request_id": "short"}'], "ACK: "),
        ([wire.VERSION, b"ACK", b'{"request_id": 5}'], "ACK: "),
        ([wire.VERSION, b"PROGRESS", b'{"request_id": "%s", "phase": "asleep"}' % ID.encode()], "PROGRESS: "),
        ([wire.VERSION, b"RESULT", b'{"request_id": "%s"}' % ID.encode()], "RESULT: "),
    ],
)
def test_what_is_not_a_message_says_why(frames, says):
    with pytest.raises(ProtocolError) as caught:
        wire.decode(frames, wire.RELAY_TO_JOB)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_size_that_does_not_match_the_payload_is_refused():
    frames = wire.encode(wire.measure_of(b"model", Settings()), [b"mod"])
    with pytest.raises(ProtocolError, match="payload of 3 bytes, the header says 5"):
        wire.decode(frames, wire.JOB_TO_RELAY)


@pytest.mark.parametrize("payload", [[b"mo", b"", b"del"], [b"m"] * 4097], ids=["empty", "many"])
def test_a_payload_of_too_many_or_empty_frames_is_refused(payload):
    frames = wire.encode(wire.measure_of(b"".join(payload), Settings()), payload)
    with pytest.raises(ProtocolError, match="frames: at most 4096, none of them empty"):
        wire.decode(frames, wire.JOB_TO_RELAY)


def test_headers_that_would_not_fit_further_on_are_refused():
    measure = msgspec.structs.replace(
        wire.measure_of(b"model", Settings()), settings=msgspec.Raw(b"{" + b" " * 65_536 + b"}")
    )
    with pytest.raises(ProtocolError, match=r"header of 65... bytes, at most 65536"):
        wire.decode(wire.encode(measure, [b"model"]), wire.JOB_TO_RELAY)
    profile = Profile(name="a", hardware="b" * 1900, runtime="c", provider="d", versions={"e": "f" * 200})
    with pytest.raises(ProtocolError, match=r"header of 2... bytes, at most 2048"):
        wire.decode(wire.encode(wire.Register(profile=profile, instance="i")), wire.DEVICE_TO_RELAY)


def _decode_or_refuse(frames, direction):
    with contextlib.suppress(ProtocolError):
        header = wire.decode(frames, direction).header
        if isinstance(header, wire.Measure):
            header.decoded_settings()
        if isinstance(header, wire.Result):
            header.decoded_measurement()


@given(st.lists(st.binary(max_size=200), max_size=6), st.sampled_from(DIRECTIONS))
def test_random_frames_only_ever_raise_protocol_error(frames, direction):
    _decode_or_refuse(frames, direction)


@given(st.sampled_from(MESSAGES), st.integers(0, 2), st.integers(0, 5000), st.binary(max_size=4))
def test_mutated_messages_only_ever_raise_protocol_error(message, which, where, put):
    header, direction = message
    frames = wire.encode(header)
    where %= len(frames[which]) + 1
    frames[which] = frames[which][:where] + put + frames[which][where + len(put) :]
    _decode_or_refuse(frames, direction)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(st.sampled_from(sorted(wire.JOB_TO_RELAY | wire.DEVICE_TO_RELAY)), _JSON)
def test_any_json_only_ever_raises_protocol_error(tag, value):
    for direction in DIRECTIONS:
        _decode_or_refuse([wire.VERSION, tag, msgspec.json.encode(value)], direction)


@pytest.mark.parametrize("field", ["p50_s", "expected_s"])
@pytest.mark.parametrize("seconds", [1e-300, 1e300])
def test_readings_that_would_make_latencies_nothing_or_endless_are_refused(field, seconds):
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.convert({"p50_s": 1e-3, "expected_s": 1e-3, "age_s": 1.0, "in_band": True, field: seconds}, Reference)
