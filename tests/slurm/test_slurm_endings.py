"""Jobs that end before their search does: the walltime is over, a node goes. The job goes on, and loses nothing."""

from __future__ import annotations

import re
from functools import partial

import pytest
from cluster.slurm import until
from submissions import Submission, begun, check_finished, epochs_trained, evaluations

#: Two trainers with a GPU each and rank 0, on one node.
TWO_GPUS = """
gpus = 2
cores = 3
partitions = [{name = "main"}]
"""
#: The same, with rank 0 on another node.
AND_A_COORDINATOR = TWO_GPUS.replace("main", "gpu") + 'coordinator = {partition = "cpu", cores = 1}'
#: One rank on each node that a job has.
A_RANK_A_NODE = """
cores = 1
cores_per_rank = 1
partitions = [{name = "all"}]
"""

#: Values of a test that are run apart: `pytest -m variant`.
variant = partial(pytest.param, marks=pytest.mark.variant)


@pytest.fixture
def submission(tmp_path):
    return Submission(tmp_path)


@pytest.mark.timeout(900)
def test_a_walltime_of_two_minutes_ends_in_peace_and_the_requeued_job_finishes(one_node, submission):
    # 6 candidates of 15 epochs of 2 s and more on 2 trainers: 90 s after the start, which takes 10 s, or much longer
    submission.prepare(evaluations=6, epochs=15, epoch_s=2.0)
    number = one_node.submit(submission.script(TWO_GPUS, 1, time="0:02:00"), cwd=submission.folder)
    job = one_node.wait(number, 880)
    told = submission.output()
    assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), told
    check_finished(submission.run, 6)
    requeues = int(job["Restarts"])
    assert requeues >= 1
    # on a slow machine a later job may reach its walltime when it has just found all, and be killed on its way out
    codes = re.findall(r"ended with code (\d+); back into the queue, to go on", told)
    assert (codes[0], len(codes)) == ("75", requeues), told
    assert begun(submission.run) == [2] * (requeues + 1)
    first, _ = told.split("back into the queue", 1)
    assert not re.search("DUE TO TIME LIMIT|Killed", first), told
    assert not re.search("Traceback|did not requeue", told), told
    assert "started again" not in told, "Slurm's signal comes to relay, agent and exporters, too: they must bear it"
    assert set(epochs_trained(submission.run).values()) == {1}, "half-trained candidates go on where they were"


def evaluating(submission):
    """Waits until a candidate is evaluated, and others are under way."""
    until(lambda: sum(evaluations(submission.run).values()) >= 1, 300, "nothing was evaluated")


def went_on_once(job, submission, trainers):
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("COMPLETED", "0:0", "1"), submission.output()
    check_finished(submission.run, 4)
    assert begun(submission.run) == [trainers] * 2


def test_a_heterogeneous_job_that_is_told_to_save_goes_back_into_the_queue_as_a_whole(three_nodes, submission):
    submission.prepare(evaluations=4, epochs=6, epoch_s=1.0)
    script = submission.script(AND_A_COORDINATOR, 1, layout="heterogeneous")
    number = three_nodes.submit(script, cwd=submission.folder)
    evaluating(submission)
    three_nodes.run("scancel", "--signal=USR2", str(number))
    job = three_nodes.wait(number, 280)
    went_on_once(job, submission, 2)
    assert "ended with code 75; back into the queue, to go on" in submission.output()
    assert set(epochs_trained(submission.run).values()) == {1}, "half-trained candidates go on where they were"


#: Sends signal $1 to rank $2. srun and relay, agent and exporters are no ranks.
TO_RANK = """
for process in /proc/[0-9]*; do
  grep -qzx "SLURM_PROCID=$2" $process/environ && grep -q python $process/comm && grep -qzx search $process/cmdline &&
    kill -$1 ${process#/proc/} && told=yes
done
[ -n "$told" ]
"""


@pytest.mark.parametrize(("signal", "rank"), [("KILL", 0), variant("KILL", 2), variant("STOP", 0), variant("STOP", 1)])
def test_a_rank_that_is_killed_or_stopped_is_named_and_the_job_goes_on(one_node, submission, signal, rank):
    submission.prepare(evaluations=4, epochs=6, epoch_s=1.0)
    number = one_node.submit(submission.script(TWO_GPUS, 1), cwd=submission.folder)
    evaluating(submission)
    one_node.machine.run("sh", "-c", TO_RANK, "to-rank", signal, str(rank))
    job = one_node.wait(number, 280)
    went_on_once(job, submission, 2)
    # Slurm's PMIx kills the others as soon as one is gone: they may have no time to say which, then srun does
    named = {
        "KILL": rf"rank {rank} on \S+ \(process|srun: error: node1: task {rank}: Killed",
        "STOP": rf"rank {rank}\b.* has given no sign of life for",
    }
    assert re.search(named[signal], submission.output()), submission.output()


@pytest.mark.parametrize("rank", [0, variant(1)])
def test_a_killed_rank_that_is_alone_on_its_node_is_named_and_the_job_goes_on(three_nodes, submission, rank):
    """No neighbour speaks of it, and the code of the step is what PMIx made of the end of the other rank."""
    submission.prepare(evaluations=4, epochs=3, epoch_s=1.0)
    number = three_nodes.submit(submission.script(A_RANK_A_NODE, 2), cwd=submission.folder)
    evaluating(submission)
    three_nodes.machine.run("sh", "-c", TO_RANK, "to-rank", "KILL", str(rank))
    job = three_nodes.wait(number, 280)
    went_on_once(job, submission, 1)
    assert re.search(rf"srun: error: \S+: task {rank}: Killed", submission.output()), submission.output()


def test_a_job_that_is_cancelled_ends_in_peace_and_is_not_requeued(one_node, submission):
    submission.prepare(evaluations=4, epochs=6, epoch_s=1.0)
    number = one_node.submit(submission.script(TWO_GPUS, 1), cwd=submission.folder)
    evaluating(submission)
    one_node.run("scancel", str(number))
    job = one_node.wait(number, 280)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("CANCELLED", "75:0", "0"), submission.output()
    assert "mpinas: ended with code 75, because it was told to; submit this script again" in submission.output()
    assert begun(submission.run) == [2]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("place", [variant(0, id="the coordinator's"), pytest.param(1, id="a trainer's")])
def test_a_node_whose_link_is_cut_is_replaced(three_nodes, submission, place):
    submission.prepare(evaluations=4, epochs=6, epoch_s=1.0)
    number = three_nodes.submit(submission.script(A_RANK_A_NODE, 2), cwd=submission.folder)
    evaluating(submission)
    hosts = three_nodes.run("scontrol", "show", "hostnames", three_nodes.job(number)["NodeList"]).stdout.split()
    assert len(hosts) == 2
    three_nodes.cut(hosts[place])
    try:
        job = three_nodes.wait(number, 400)
    finally:
        three_nodes.mend(hosts[place])
    went_on_once(job, submission, 1)
    others = three_nodes.run("scontrol", "show", "hostnames", job["NodeList"]).stdout.split()
    assert len(others) == 2
    assert hosts[place] not in others
