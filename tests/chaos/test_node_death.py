"""A run on a Ray cluster of several nodes, whose nodes are lost with everything on them and come back.

One run with two workers goes through all of it. Half of what it plays is kept in the buffer, so that with a node much is
lost that the learner would have used. The program checks every fragment before it trains on it (`verified_train`).
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.ray_nodes import Node, RayNodes
from tests.chaos.settings import SHORT
from tests.rollout.processes import is_alive, wait_until
from tests.run.programs import Program, metrics, wait_for_iteration, whole_records

pytestmark = pytest.mark.timeout(400)

WITHIN_S = 90.0  # for anything that must happen


class ClusterRun:
    """The cluster and the run on it."""

    def __init__(self, folder: Path, cluster: RayNodes, nodes: list[Node]) -> None:
        self.run_dir, faults = folder / "run", folder / "faults"
        faults.mkdir()
        self.cluster, self.nodes = cluster, nodes
        self.program = Program(
            "tests.chaos.verified_train",
            f"--run.dir={self.run_dir}",
            f"--run.ray_address={self.cluster.address}",
            f'--env.options={{"step_s": 0.01, "fault_dir": "{faults}"}}',
            *SHORT,
            "--rollout.num_cpus_per_worker=1",
            "--rollout.num_rollout_workers=2",
            "--rollout.num_envs=2",
            "--rollout.inference_batch_size=2",
            "--replay.max_chunks=256",
            "--replay.samples_per_insert=0.5",
            "--replay.max_staleness=1000000",
            "--replay.when_full=drop_oldest",
            environment=cluster.environment,
        )

    def last(self, name: str) -> float:
        return float(metrics(self.run_dir)[-1][name])

    def goes_on(self) -> bool:
        target = self.last("iteration") + 5
        return wait_until(lambda: self.program.process.poll() is not None or self.last("iteration") >= target, WITHIN_S)

    def states(self) -> list[str]:
        """Of the workers."""
        workers = json.loads((self.run_dir / "status.json").read_text())["rollout"]["workers"]
        return [worker["state"] for worker in workers]

    def episodes(self, worker: int) -> int:
        """That a worker has finished."""
        return sum(episode["worker"] == worker for episode in whole_records(self.run_dir / "episodes.jsonl"))

    def log(self) -> str:
        return (self.run_dir / "logs" / "run.log").read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Iterator[ClusterRun]:
    with ExitStack() as cleanup:
        cluster = RayNodes()
        cleanup.callback(cluster.close)
        cluster.head.wait_until_there()
        nodes = [cluster.add(num_cpus=2), cluster.add(num_cpus=2)]
        for node in nodes:
            node.wait_until_there()
        run = ClusterRun(tmp_path_factory.mktemp("cluster"), cluster, nodes)
        cleanup.callback(run.program.end)
        wait_for_iteration(run.program, run.run_dir, 3, timeout_s=240.0)
        # By then there are fragments of both in the buffer, of which half are not sampled before the next ones come.
        assert wait_until(lambda: min(run.episodes(0), run.episodes(1)) > 20, WITHIN_S)
        yield run


def workers(node: Node) -> list[int]:
    return node.processes("ray::RolloutActor")


def test_workers_are_spread_over_the_nodes_and_the_buffer_is_where_the_learner_is(run):
    assert [len(workers(node)) for node in run.nodes] == [1, 1]
    assert len(run.cluster.head.processes("ray::ReplayBufferActor")) == 1


def test_a_node_that_is_lost_costs_what_lay_on_it(run):
    lost, left = run.nodes
    (before,) = workers(left)
    lost.lose()
    assert run.goes_on()
    assert wait_until(lambda: len(workers(left)) == 2, WITHIN_S), "its worker is not started on the node that is left"
    assert before in workers(left)
    assert wait_until(lambda: run.last("rollout/workers") == 2, WITHIN_S)
    assert run.last("rollout/worker_restarts") == 1
    assert run.last("replay/lost_fragments") > 0


def test_without_any_node_the_run_waits_and_says_for_what(run):
    run.nodes[1].lose()
    assert wait_until(lambda: run.states() == ["waiting", "waiting"], WITHIN_S)
    assert wait_until(lambda: "x 1 CPUs, of Ray's 0 are 0 free: they start as soon as" in run.log(), WITHIN_S), (
        run.log()
    )
    assert run.program.process.poll() is None


def test_a_node_that_comes_is_used(run):
    node = run.cluster.add(num_cpus=2)
    assert wait_until(lambda: len(workers(node)) == 2, WITHIN_S)
    assert run.goes_on()
    assert run.last("rollout/worker_restarts") == 3
    assert run.last("replay/restarts") == 0
    run.nodes = [node]


def test_everything_that_was_learnt_from_happened_and_is_accounted_for(run):
    assert all(line.endswith(" ") for line in (run.run_dir / "verified").read_text().splitlines())
    for record in metrics(run.run_dir):
        fate = sum(record[f"replay/{kind}_fragments"] for kind in ("trained", "expired", "dropped", "held"))
        assert fate == record["replay/inserted_fragments"]
        assert record["replay/lost_fragments"] <= record["replay/dropped_fragments"]


def test_the_end_is_orderly_and_leaves_nothing(run):
    actors = [*workers(run.nodes[0]), *run.nodes[0].processes("envs/host.py")]
    assert actors
    run.program.process.send_signal(signal.SIGTERM)
    assert run.program.wait(60) == 0, run.program.stdout + run.program.stderr
    run.program.assert_nothing_left()
    assert wait_until(lambda: not any(map(is_alive, actors)), 20), "actors outlive their run"
