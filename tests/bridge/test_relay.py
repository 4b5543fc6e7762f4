"""The relay's decisions, by value: events in, commands out, no sockets and no clock."""

from __future__ import annotations

import msgspec

from edge_bridge.relay.core import Relay
from edge_bridge.relay.events import DeviceGone, DeviceSaid, JobGone, JobSaid, Note, Tick, ToDevice, ToJob
from edge_bridge.relay.records import Limits
from edge_bridge.wire.protocol import (
    Ack,
    Cancel,
    Devices,
    Doubt,
    Error,
    Failed,
    Hello,
    Measure,
    Message,
    Pong,
    Progress,
    Register,
    Registered,
    Result,
    Status,
    Task,
    Welcome,
    measure_of,
    task_of,
)
from edge_bridge.wire.quantities import Profile, Settings

JOB, JOB_2, DEVICE, DEVICE_2 = b"job", b"job 2", b"device", b"device 2"


def profile(name: str = "dut") -> Profile:
    return Profile(name=name, hardware="box", runtime="onnxruntime", provider="cpu", versions={})


def ask(model: bytes = b"model", wanted: str = "any") -> Message:
    return Message(measure_of(model, Settings(), wanted), (model,))


def result_of(measure: Measure) -> Result:
    return Result(request_id=measure.request_id, measurement=msgspec.Raw(b"{}"))


class Bench:
    """A relay, and what it says without the log."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.relay = Relay(limits or Limits(), 0.0)

    def job(self, header_or_message, peer: bytes = JOB):
        message = header_or_message if isinstance(header_or_message, Message) else Message(header_or_message)
        return self._without_notes(JobSaid(peer, "name", message))

    def device(self, header, peer: bytes = DEVICE, now_s: float = 0.0):
        return self._without_notes(DeviceSaid(peer, "name", Message(header)), now_s)

    def register(self, peer: bytes = DEVICE, name: str = "dut", now_s: float = 0.0, **fields):
        header = Register(profile=profile(name), **{"instance": peer.decode(), "minor": 1, **fields})
        return self.device(header, peer, now_s)

    def gone(self, event, now_s: float = 0.0):
        return self._without_notes(event, now_s)

    def _without_notes(self, event, now_s: float = 0.0):
        return [each for each in self.relay.handle(event, now_s) if not isinstance(each, Note)]


def kinds(commands) -> list[tuple[bytes, type]]:
    return [(each.peer, type(each.header)) for each in commands]


def test_a_request_goes_to_the_device_and_its_result_to_the_job():
    bench = Bench()
    (welcome,) = bench.job(Hello(client="me", versions={}))
    assert isinstance(welcome.header, Welcome)
    assert welcome.header.devices == []
    assert kinds(bench.register()) == [(DEVICE, Registered), (JOB, Devices)]
    message = ask()
    acknowledged, task = bench.job(message)
    assert acknowledged == ToJob(JOB, Ack(request_id=message.header.request_id))
    assert task == ToDevice(DEVICE, task_of(message.header), (b"model",))
    progress = Progress(request_id=message.header.request_id, phase="loading")
    (told,) = bench.device(progress)
    assert told == ToJob(JOB, Progress(request_id=message.header.request_id, phase="loading", device="dut"))
    assert bench.device(result_of(message.header)) == [ToJob(JOB, result_of(message.header))]


def test_requests_wait_for_a_device_first_come_first_served():
    bench = Bench()
    first, second = ask(b"1"), ask(b"2")
    assert kinds(bench.job(first)) == kinds(bench.job(second)) == [(JOB, Ack)]
    assert bench.register()[-1] == ToDevice(DEVICE, task_of(first.header), (b"1",))
    result, task = bench.device(result_of(first.header))
    assert (result.header, task.header) == (result_of(first.header), task_of(second.header))


def test_two_jobs_that_ask_the_same_share_one_measurement():
    bench = Bench()
    bench.register()
    message = ask()
    bench.job(message, JOB)
    assert kinds(bench.job(message, JOB_2)) == [(JOB_2, Ack)]
    assert kinds(bench.device(result_of(message.header))) == [(JOB, Result), (JOB_2, Result)]


def test_a_task_of_a_lost_device_goes_to_the_head_of_the_queue():
    bench = Bench()
    bench.register()
    first, second = ask(b"1"), ask(b"2")
    bench.job(first)
    bench.job(second)
    assert kinds(bench.gone(DeviceGone(DEVICE, "unplugged"), now_s=1.0)) == [(JOB, Devices)]
    assert bench.gone(Tick(), now_s=11.0) == []
    assert bench.register(DEVICE_2, now_s=12.0)[-1].header == task_of(first.header)


def test_what_a_device_was_at_is_kept_for_it_a_while():
    bench = Bench(Limits(grace_s=10.0))
    bench.register(DEVICE, instance="1", device_id="factory")
    first, second = ask(b"1"), ask(b"2")
    bench.job(first)
    bench.job(second)
    bench.gone(DeviceGone(DEVICE, "killed"), now_s=1.0)
    assert bench.register(DEVICE_2, now_s=2.0)[-1].header == task_of(second.header)
    back = bench.register(b"again", now_s=10.9, instance="2", device_id="factory")
    assert ToDevice(b"again", task_of(first.header), (b"1",)) in back


def test_a_link_that_comes_and_goes_costs_no_request():
    bench = Bench(Limits(devices_lost=2))
    message = ask()
    bench.job(message)
    bench.register(DEVICE, instance="agent")
    for _ in range(5):
        bench.gone(DeviceGone(DEVICE, "link cut"))
        bench.register(DEVICE, instance="agent", busy_with=message.header.request_id)
    assert kinds(bench.device(result_of(message.header))) == [(JOB, Result)]


def test_higher_priority_goes_first_and_jobs_take_turns():
    bench = Bench()
    many = [ask(b"a%d" % number) for number in range(3)]
    urgent = Message(measure_of(b"u", Settings(), priority=9), (b"u",))
    few = [ask(b"b%d" % number) for number in range(2)]
    for message in [*many, urgent]:
        bench.job(message, JOB)
    for message in few:
        bench.job(message, JOB_2)
    given = bench.register()[-1].header
    order = []
    for _ in range(6):
        order.append(given)
        answer = bench.device(Result(request_id=given.request_id, measurement=msgspec.Raw(b"{}")))
        given = answer[-1].header
    wanted = [urgent, many[0], few[0], many[1], few[1], many[2]]
    assert order == [task_of(each.header) for each in wanted]


def test_a_request_waits_for_a_device_that_understands_it():
    bench = Bench()
    settings = Settings(batches=(1, 8))
    message = Message(measure_of(b"m", settings), (b"m",))
    bench.job(message)
    assert kinds(bench.register(DEVICE, minor=0)) == [(DEVICE, Registered), (JOB, Devices)]
    assert bench.register(DEVICE_2, minor=1)[-1].header == task_of(message.header)


def test_a_full_relay_sends_the_newest_of_the_greediest_away():
    bench = Bench(Limits(requests=3))
    greedy = [ask(b"g%d" % number) for number in range(3)]
    for message in greedy:
        bench.job(message, JOB)
    bench.job(Hello(client="", versions={}), JOB_2)
    away, acknowledged = bench.job(ask(b"modest"), JOB_2)
    assert (away.peer, away.header.request_id, away.header.reason) == (JOB, greedy[2].header.request_id, "busy")
    assert acknowledged == ToJob(JOB_2, Ack(request_id=ask(b"modest").header.request_id))
    assert bench.job(ask(b"modest 2"), JOB_2)[0].header.reason == "busy"


def test_what_nobody_wants_any_more_is_stopped_on_the_device():
    bench = Bench()
    bench.register()
    message = ask()
    bench.job(message)
    cancel = Cancel(request_id=message.header.request_id)
    assert bench.job(cancel) == [ToDevice(DEVICE, cancel)]
    # asked for again before the device has answered: measured after all
    assert kinds(bench.job(message)) == [(JOB, Ack)]
    stopped = Failed(request_id=message.header.request_id, reason="cancelled", detail="")
    assert bench.device(stopped) == [ToDevice(DEVICE, task_of(message.header), (b"model",))]
    assert kinds(bench.device(result_of(message.header))) == [(JOB, Result)]


def test_doubts_go_to_every_job_that_knows_them():
    bench = Bench()
    for job, minor in ((JOB, 1), (JOB_2, 1), (b"old", 0)):
        bench.job(Hello(client="", versions={}, minor=minor), job)
    bench.register()
    doubt = Doubt(request_ids=["0" * 64], detail="hot")
    assert bench.device(doubt) == [ToJob(JOB, doubt), ToJob(JOB_2, doubt)]


def test_doubts_are_kept_for_a_job_that_comes_later_until_it_is_measured_anew():
    bench = Bench(Limits(doubts=3))
    bench.register()
    message = ask()
    ids = [message.header.request_id, "1" * 64, "2" * 64]
    bench.device(Doubt(request_ids=["0" * 64], detail="hot"))
    bench.device(Doubt(request_ids=ids, detail="hotter"))
    welcome, kept = bench.job(Hello(client="", versions={}, minor=1))
    assert (type(welcome.header), kept) == (Welcome, ToJob(JOB, Doubt(request_ids=ids, detail="hotter")))
    assert kinds(bench.job(Hello(client="", versions={}), b"old")) == [(b"old", Welcome)]
    bench.job(message)
    bench.device(result_of(message.header))
    (_, kept) = bench.job(Hello(client="", versions={}, minor=1), JOB_2)
    assert kept.header.request_ids == ids[1:]


def test_an_old_job_is_told_of_old_phases_only():
    bench = Bench()
    bench.job(Hello(client="", versions={}))
    bench.job(Hello(client="", versions={}, minor=1), JOB_2)
    bench.register()
    message = ask()
    bench.job(message, JOB)
    bench.job(message, JOB_2)
    told = {
        phase: [each.peer for each in bench.device(Progress(request_id=message.header.request_id, phase=phase))]
        for phase in ("measuring", "cooling")
    }
    assert told == {"measuring": [JOB, JOB_2], "cooling": [JOB_2]}


def test_hello_is_answered_right_after_status_and_neither_without_end():
    bench = Bench()
    hello = Hello(client="", versions={})
    assert [len(bench.job(each)) for each in (Status(), hello, hello, Status())] == [1, 1, 0, 0]
    assert len(bench.gone(JobSaid(JOB, "name", Message(hello)), now_s=0.1)) == 1


def test_what_every_device_there_is_too_old_for_is_refused_after_a_while():
    bench = Bench(Limits(outdated_s=60.0))
    message = Message(measure_of(b"m", Settings(batches=(1, 8)), "dut"), (b"m",))
    bench.job(message)
    bench.register(DEVICE, minor=0)
    bench.register(b"another", "other", minor=1)
    assert bench.gone(Tick(), now_s=5.0) == []
    for now_s in range(6, 65, 10):
        for device in (DEVICE, b"another"):
            bench.device(Pong(), device, now_s)
    assert bench.gone(Tick(), now_s=64.9) == []
    (refused,) = bench.gone(Tick(), now_s=65.0)
    assert refused.header.reason == "unsupported"
    assert refused.header.detail == "device dut speaks protocol 1.0, 1.1 is needed: update it"
    assert bench.relay._requests == {}
    # with a newer device away for less than that, nothing is refused
    bench.job(message)
    bench.gone(Tick(), now_s=70.0)
    assert bench.register(DEVICE_2, minor=1, now_s=75.0)[-1].header == task_of(message.header)


def test_a_device_that_comes_back_does_not_get_what_another_one_has():
    bench = Bench()
    bench.register(DEVICE, instance="1", device_id="factory")
    message = ask()
    bench.job(message)
    bench.gone(DeviceGone(DEVICE, "cut off"), now_s=1.0)
    bench.gone(JobGone(JOB, "cut off"), now_s=1.0)
    # both away: asked for again, it waits for the device that has it
    assert kinds(bench.job(message)) == [(JOB, Ack)]
    assert kinds(bench.register(DEVICE_2, now_s=2.0)) == [(DEVICE_2, Registered), (JOB, Devices)]
    bench.gone(Tick(), now_s=11.0)
    assert bench.relay._requests[message.header.request_id].device == DEVICE_2
    assert kinds(bench.register(b"back", now_s=12.0, instance="1", device_id="factory")) == [
        (b"back", Registered),
        (JOB, Devices),
    ]
    # nor does its going away take it from the one that has it
    bench.gone(DeviceGone(b"back", "cut off"), now_s=13.0)
    bench.gone(Tick(), now_s=14.0)
    assert bench.relay._requests[message.header.request_id].device == DEVICE_2
    assert kinds(bench.device(result_of(message.header), DEVICE_2, now_s=14.0))[:1] == [(JOB, Result)]


def test_an_agent_that_ends_with_a_request_again_and_again_is_counted_however_fast_it_is_back():
    bench = Bench(Limits(devices_lost=3))
    message = ask()
    bench.job(message)
    said = [bench.register(b"%d" % run, instance=f"{run}", device_id="factory") for run in range(4)]
    assert [each[-1].header for each in said[:3]] == [task_of(message.header)] * 3
    assert [each.header.reason for each in said[3] if isinstance(each.header, Failed)] == ["device-lost"]


def test_state_tells_who_is_at_what():
    bench = Bench()
    bench.register(DEVICE, now_s=1.0)
    first, second = ask(b"1"), ask(b"2")
    bench.job(first)
    bench.job(second)
    bench.device(Progress(request_id=first.header.request_id, phase="measuring"), now_s=2.0)
    failed = Failed(request_id=second.header.request_id, reason="bad-model", detail="no ONNX")
    (told,) = bench.gone(JobSaid(JOB, "name", Message(Status())), now_s=5.0)
    state = told.header
    (device,) = state.devices
    assert (device.doing, device.doing_for_s, device.request_id) == ("measuring", 3.0, first.header.request_id)
    assert (state.queued, state.running, state.bytes_held, state.last_error) == (1, 1, 2, "")
    assert [(each.queued, each.running, each.answered) for each in state.jobs] == [(1, 1, 0)]
    bench.device(result_of(first.header), now_s=6.0)
    bench.device(failed, now_s=7.0)
    state = bench.gone(JobSaid(JOB, "name", Message(Status())), now_s=30.0)[0].header
    assert (state.answered_per_minute, state.last_error_ago_s) == (2, 23.0)
    assert state.last_error == f"dut: request {second.header.request_id[:8]}: bad-model: no ONNX"
    assert (state.devices[0].measured, state.devices[0].failed, state.devices[0].doing) == (1, 1, "idle")
    assert bench.gone(JobSaid(JOB, "name", Message(Status())), now_s=70.0)[0].header.answered_per_minute == 0


def test_a_request_that_ends_every_device_fails():
    bench = Bench(Limits(devices_lost=2))
    message = ask()
    bench.job(message)
    bench.register(DEVICE)
    bench.gone(DeviceGone(DEVICE, "gone"), now_s=0.0)
    bench.gone(Tick(), now_s=10.0)
    bench.register(DEVICE_2, now_s=10.0)
    bench.gone(DeviceGone(DEVICE_2, "gone"), now_s=10.0)
    failed = bench.gone(Tick(), now_s=20.0)[0].header
    assert (type(failed), failed.reason) == (Failed, "device-lost")
    assert kinds(bench.register(b"third")) == [(b"third", Registered), (JOB, Devices)]


def test_a_device_that_comes_back_over_a_new_connection_keeps_its_task():
    bench = Bench()
    bench.register(DEVICE, instance="agent")
    message = ask()
    bench.job(message)
    back = bench.register(DEVICE_2, busy_with=message.header.request_id, instance="agent")
    assert kinds(back) == [(DEVICE_2, Registered)]
    assert bench.gone(DeviceGone(DEVICE, "old connection")) == []
    assert kinds(bench.device(result_of(message.header), DEVICE_2)) == [(JOB, Result)]


def test_a_device_that_comes_back_idle_gets_its_task_again():
    bench = Bench()
    bench.register(DEVICE, instance="agent")
    message = ask()
    bench.job(message)
    assert bench.register(DEVICE_2, instance="agent")[-1].header == task_of(message.header)


def test_a_device_that_was_given_up_and_comes_back_still_measuring_takes_its_task_off_the_queue():
    bench = Bench()
    bench.register(DEVICE, instance="agent")
    message = ask()
    bench.job(message)
    bench.gone(DeviceGone(DEVICE, "link cut"))
    bench.register(DEVICE_2, busy_with=message.header.request_id, instance="agent")
    assert kinds(bench.register(b"idle one")) == [(b"idle one", Registered), (JOB, Devices)]
    assert kinds(bench.device(result_of(message.header), DEVICE_2)) == [(JOB, Result)]


def test_a_restarted_relay_does_not_give_a_device_what_it_is_measuring():
    bench = Bench()
    message, other = ask(b"1"), ask(b"2")
    bench.register(busy_with=message.header.request_id)
    assert kinds(bench.job(message)) == [(JOB, Ack)]
    assert kinds(bench.job(other)) == [(JOB, Ack)]
    assert kinds(bench.device(result_of(message.header))) == [(JOB, Result), (DEVICE, Task)]


def test_a_request_for_a_profile_waits_for_it_and_lets_others_pass():
    bench = Bench()
    for_gpu, for_any = ask(b"1", "gpu"), ask(b"2")
    bench.job(for_gpu)
    bench.job(for_any)
    assert bench.register(DEVICE, "cpu")[-1].header == task_of(for_any.header)
    assert bench.register(DEVICE_2, "gpu")[-1].header == task_of(for_gpu.header)


def test_what_nobody_waits_for_is_dropped():
    bench = Bench()
    mine, shared = ask(b"1"), ask(b"2")
    bench.job(mine)
    bench.job(shared)
    bench.job(shared, JOB_2)
    bench.gone(JobGone(JOB, "killed"))
    assert bench.register()[-1].header == task_of(shared.header)
    bench.job(ask(b"3"), JOB_2)
    bench.job(Cancel(request_id=ask(b"3").header.request_id), JOB_2)
    assert kinds(bench.device(result_of(shared.header))) == [(JOB_2, Result)]


def test_a_full_relay_asks_to_come_again():
    bench = Bench(Limits(requests=1, bytes_held=5))
    assert kinds(bench.job(ask(b"model"))) == [(JOB, Ack)]
    assert kinds(bench.job(ask(b"model"))) == [(JOB, Ack)]
    (refused,) = bench.job(ask(b"other"))
    assert refused.header.reason == "busy"
    bench.register()
    bench.device(result_of(ask(b"model").header))
    assert bench.job(ask(b"longer"))[0].header.reason == "busy"
    assert kinds(bench.job(ask(b"other"))) == [(JOB, Ack), (DEVICE, Task)]


def test_jobs_and_devices_are_bounded():
    bench = Bench(Limits(jobs=1, devices=1))
    bench.job(Hello(client="", versions={}))
    assert bench.job(Hello(client="", versions={}), JOB_2)[0].header.code == "full"
    bench.register(DEVICE)
    assert bench.register(DEVICE_2)[0].header.code == "full"


def test_an_unregistered_device_is_told_to_register():
    (told,) = Bench().device(Pong())
    assert isinstance(told.header, Error)
    assert told.header.code == "unregistered"


def test_a_device_whose_agent_is_silent_is_given_up():
    bench = Bench(Limits(silence_s=15.0))
    bench.job(Hello(client="", versions={}))
    bench.register()
    bench.device(Pong(), now_s=10.0)
    assert bench.gone(Tick(), now_s=25.0) == []
    assert bench.gone(Tick(), now_s=25.1) == [ToJob(JOB, Devices(devices=[]))]
