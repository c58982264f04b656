"""Settings of runs that are short of everything but failures."""

from __future__ import annotations

SHORT = (
    "--env.factory=tests.chaos.signed_env:make",
    "--env.start_deadline_s=30",
    "--env.reset_deadline_s=2",
    "--env.step_deadline_s=2",
    "--env.max_failures_per_hour=1000",
    "--policy.channels=4",
    "--policy.hidden_size=16",
    "--rollout.fragment_length=16",
    "--rollout.num_cpus_per_worker=2",
    "--trainer.context_length=16",
    "--trainer.batch_size_per_device=4",
    "--trainer.batches_per_iteration=2",
    "--trainer.save_interval=1000",
    "--trainer.num_iterations=1000000",
    "--logger.heartbeat_s=1",
)
