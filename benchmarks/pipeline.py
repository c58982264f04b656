"""How much of the environments' speed the whole pipeline keeps, and who waits for whom.

    python benchmarks/pipeline.py

Two settings, each with the quickstart's policy. "embedded": the quickstart as it is, the embedded world, the acting
policy and the learner all on this machine's cores. "25 frames/s": 16 environments that take 40 ms a step without using
a core, as a Minecraft instance on another machine would. For each, in turn: the bare loop (the same pool and the same
acting policy in one process, no fragments, no Ray, no learner), the training program, and the bare loop again; the
ratio is of the training program's environment steps per second to the mean of the two.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
QUICKSTART = f"--flagfile={ROOT / 'configs/quickstart.flags'}"
SLOW = (
    "--env.factory=benchmarks.slow_environment:make",
    '--env.options={"step_s": 0.04, "height": 48, "width": 48}',
)
SETTINGS: dict[str, tuple[str, ...]] = {"embedded": (QUICKSTART,), "25 frames/s": (QUICKSTART, *SLOW)}
START_UP_S, END_S = 180.0, 120.0
SETTLING_ITERATIONS = 3  # not counted: caches fill, the first fragments are collected

# Runs in a process of its own, so that nothing of one measurement is left in the next.
BARE_LOOP = """
import sys, time, pathlib, tempfile
import jax
from minestudio_jax.policies.make_policy import make_policy
from minestudio_jax.rollout.environments import make_pool
from minestudio_jax.rollout.inference import Inference
from minestudio_jax.run.command_line import parse
from minestudio_jax.utils.xla_flags import configure_cpu_compiler

configure_cpu_compiler()
seconds, arguments = float(sys.argv[1]), ["bare", *sys.argv[2:]]
config = parse(arguments)
pool = make_pool(config, 0, 0, pathlib.Path(tempfile.mkdtemp()), "bare")
policy = make_policy(config, pool.spec)
inference = Inference(
    policy, pool.spec, pool.num_envs, config.rollout.inference_batch_size, 0, always_full=pool.lockstep
)
params = inference.prepared(jax.jit(policy.init)(jax.random.key(0)))
inference.compile(params)

def play(until):
    steps = 0
    while time.perf_counter() < until:
        received = pool.recv(1.0)
        if received is None:
            continue
        action = inference.act(params, received.obs, received.first, received.env_id)().action
        pool.send(action, received.env_id)
        steps += len(received.env_id)
    return steps

play(time.perf_counter() + 5.0)
begin = time.perf_counter()
steps = play(begin + seconds)
print(steps / (time.perf_counter() - begin))
pool.close()
"""


def bare_loop(arguments: tuple[str, ...], seconds: float) -> float:
    """Environment steps per second without a pipeline."""
    command = [sys.executable, "-c", BARE_LOOP, str(seconds), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds + 120, check=True)
    return float(done.stdout.splitlines()[-1])


def pipeline(arguments: tuple[str, ...], seconds: float) -> list[dict[str, float]]:
    """The metrics of so many seconds of a training run, start-up and settling left out.

    Raises:
      TimeoutError: it had not settled within START_UP_S.
      TimeoutExpired: it did not end within END_S.
    """

    def records() -> list[dict[str, float]]:
        path = run / "metrics.jsonl"
        lines = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
        return [json.loads(line) for line in lines][SETTLING_ITERATIONS:]

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "minestudio_jax.train", *arguments, f"--run.dir={run}"]
        program = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        try:
            give_up = time.monotonic() + START_UP_S
            while not records():
                if program.poll() is not None or time.monotonic() > give_up:
                    raise TimeoutError(
                        f"no iteration after {SETTLING_ITERATIONS} within {START_UP_S:g} s: try the command by itself, "
                        f"{' '.join(command)}"
                    )
                time.sleep(0.5)
            time.sleep(seconds)
        finally:
            program.terminate()
            program.wait(END_S)
        return records()


def steps_per_s(records: list[dict[str, float]]) -> float:
    """Environment steps per second from the first record to the last."""
    first, last = records[0], records[-1]
    return (last["env_steps"] - first["env_steps"]) / (last["wall_time_s"] - first["wall_time_s"])


def shares(records: list[dict[str, float]], prefix: str) -> str:
    """Share of each phase in the time of all of them."""
    total: dict[str, float] = {}
    for record in records:
        for name, value in record.items():
            if name.startswith(prefix) and name.endswith("_s"):
                phase = name.removeprefix(prefix).removesuffix("_s")
                total[phase] = total.get(phase, 0.0) + value
    everything = sum(total.values())
    return ", ".join(f"{phase} {value / everything:.0%}" for phase, value in sorted(total.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each training run; a bare loop takes a third")
    seconds = parser.parse_args().seconds
    for name, arguments in SETTINGS.items():
        before = bare_loop(arguments, seconds / 3)
        records = pipeline(arguments, seconds)
        after = bare_loop(arguments, seconds / 3)
        speed = steps_per_s(records)
        bare = (before + after) / 2
        print(f"{name}: {time.strftime('%Y-%m-%d')}")
        print(f"  bare loop          {before:8.0f} and {after:.0f} environment steps/s")
        print(f"  pipeline           {speed:8.0f} environment steps/s, {speed / bare:.2f} of the bare loop")
        print(f"  learner            {shares(records, 'time/')}")
        print(f"  rollout worker     {shares(records, 'rollout/')}")
        lag = statistics.mean(record["lag/policy_versions_mean"] for record in records)
        print(f"  policy lag         {lag:.1f} versions, {len(records)} iterations", flush=True)


if __name__ == "__main__":
    main()
