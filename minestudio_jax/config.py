"""Every setting of a run: typed, frozen, with units and bounds.

`config_flags.py` makes a flag of each, `config_checks.py` holds them against each other. Nothing here or there imports
JAX or Ray: a wrong setting is refused in a fraction of a second, before any process starts.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from minestudio_jax.envs.nearest import did_you_mean

# Short names of env.factory.
MINECRAFT_FACTORIES = {
    "minerl": "minestudio_jax.envs.minerl:make",
    "minestudio": "minestudio_jax.envs.minestudio:make",
}
SINKS = ("jsonl", "tensorboard", "wandb")  # names in logger.sinks; the first is always written


class ConfigError(ValueError):
    """A setting is wrong; the message names it, its value and the remedy."""


def _setting(
    default: Any,
    help: str,
    *,
    lower: float | None = None,
    upper: float | None = None,
    choices: Sequence[str] | None = None,
    empty: bool = False,
) -> Any:
    """A dataclass field with what its flag and its validation need; bounds are inclusive, `empty` is for sequences."""
    metadata = {"help": help, "lower": lower, "upper": upper, "choices": choices, "empty": empty}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class RunConfig:
    dir: str = _setting(
        "",
        "Run directory. Empty: runs/<name of the flag file>. A directory that holds a run is continued.",
    )
    restart: bool = _setting(
        False, "Start over: the old run directory is moved aside (never deleted) and a new run begins."
    )
    seed: int = _setting(0, "Root seed; every random stream of the run derives from it.", lower=0)
    time_limit_s: float = _setting(
        0.0, "Stop, with a checkpoint, after this many seconds of this process; 0: no limit.", lower=0
    )
    compilation_cache: bool = _setting(
        True, "Compiled programs are kept in the run directory, so that a run that is continued starts sooner."
    )
    ray_address: str = _setting(
        "", "Ray cluster to join ('auto' or host:port). Empty: start a private one on this machine."
    )
    object_store_gib: float = _setting(
        0.0,
        "Memory of a private Ray's object store, GiB; what does not fit is spilled to Ray's temporary directory. 0: "
        "one and a half times replay.max_gib if that is set, Ray's own choice otherwise.",
        lower=0,
    )
    start_deadline_s: float = _setting(
        180.0,
        "Seconds that Ray may take to start, and the rollout workers; for the first environment in a process of its "
        "own come env.start_deadline_s and env.reset_deadline_s on top, twice, as one may fail.",
        lower=1,
    )
    stall_deadline_s: float = _setting(
        600.0, "Seconds without a batch of experience after which the run fails with a diagnosis.", lower=1
    )
    stop_deadline_s: float = _setting(20.0, "Seconds that the orderly stop may take.", lower=1)


@dataclass(frozen=True)
class EnvConfig:
    factory: str = _setting(
        "",
        "'minerl' or 'minestudio' for Minecraft by these simulators; or your own environment, package.module:function, "
        "called as fn(index=, seed=, **env.options). Empty: the embedded voxel world.",
    )
    options: dict[str, Any] = _setting(
        {}, "JSON object: keyword arguments of env.factory, or overrides of the embedded world's settings."
    )
    task: str = _setting(
        "chop_tree",
        "Task of the embedded world or of Minecraft, by name or path of a .yaml file; a label in the data otherwise.",
    )
    tasks: dict[str, Any] = _setting(
        {},
        "JSON object: task -> share of the environments, for a run of several tasks. A factory gets its environment's "
        "as task=. Empty: env.task for all.",
    )
    preset: str = _setting("toy", "Constants of the embedded world.", choices=("toy", "vanilla"))
    action_set: str = _setting(
        "discrete",
        "Actions of the embedded world: the task's own small set, or VPT's buttons and camera.",
        choices=("discrete", "vpt"),
    )
    height: int = _setting(64, "Image height of the embedded world, pixels.", lower=8, upper=1024)
    width: int = _setting(64, "Image width of the embedded world, pixels.", lower=8, upper=1024)
    python: str = _setting(
        "", "Interpreter that runs env.factory, each environment in a process of its own. Empty: this one."
    )
    start_deadline_s: float = _setting(300.0, "Seconds an environment process may take to start.", lower=0.1)
    reset_deadline_s: float = _setting(240.0, "Seconds a reset may take.", lower=0.1)
    step_deadline_s: float = _setting(60.0, "Seconds a step may take.", lower=0.1)
    max_failures_per_hour: int = _setting(
        60, "Environment failures per hour and worker after which the run stops with the log.", lower=0
    )
    max_concurrent_starts: int = _setting(
        4,
        "Environments that may start at the same time on one host, over all its rollout workers, from the start of the "
        "process to its first observation; 0: no limit.",
        lower=0,
    )
    recycle_after_s: float = _setting(
        0.0,
        "An environment process this many seconds old is replaced by a new one when its episode ends; 0: never.",
        lower=0,
    )
    recycle_after_steps: int = _setting(
        0, "An environment process that has made this many steps is replaced in the same way; 0: never.", lower=0
    )
    recycle_above_mib: int = _setting(
        0,
        "An environment process that, with all it has started, holds more than this many MiB of memory is replaced in "
        "the same way; 0: never.",
        lower=0,
    )
    resize: tuple[int, ...] = _setting(
        (),
        "Height and width to which an environment's own process resizes its image, as VPT does it, such as 128,128. "
        "Empty: the image as it is.",
        lower=1,
        upper=4096,
        empty=True,
    )
    log_max_mib: int = _setting(
        16, "Size, MiB, at which the log of an environment becomes its older log, and a new one begins.", lower=1
    )


@dataclass(frozen=True)
class PolicyConfig:
    network: str = _setting(
        "impala",
        "The small recurrent network, or OpenAI's VPT.",
        choices=("impala", "vpt"),
    )
    factory: str = _setting(
        "",
        "Your own policy, package.module:function, called as fn(spec, **policy.options) -> Policy. "
        "Empty: policy.network.",
    )
    options: dict[str, Any] = _setting({}, "JSON object: keyword arguments of policy.factory.")
    channels: tuple[int, ...] = _setting((16, 32, 32), "Channels of the IMPALA stacks; each halves the image.", lower=1)
    hidden_size: int = _setting(256, "Width of the IMPALA network's embedding and memory.", lower=1)
    vpt: dict[str, Any] = _setting(
        {},
        "JSON object: sizes of the VPT network that differ from the 1x model's, by the names in policies/vpt_shape.py.",
    )
    vpt_model: str = _setting(
        "", "OpenAI's .model file, or a folder made by convert, from which the VPT network's sizes are read."
    )
    vpt_weights: str = _setting(
        "", "Weights a new run of the VPT network begins with: a .weights or .ckpt file, or a folder made by convert."
    )
    compute_dtype: str = _setting(
        "float32",
        "Arithmetic of the VPT network's convolutions and matrix products; parameters, logits and losses are float32.",
        choices=("float32", "bfloat16"),
    )
    remat: bool = _setting(
        False,
        "The VPT network's backward pass computes activations again instead of keeping them: less memory, slower.",
    )


@dataclass(frozen=True)
class RolloutConfig:
    mode: str = _setting(
        "ray",
        "ray: rollout workers play in processes of their own; device: the learner plays the embedded world itself, on "
        "its own devices; serial: one worker in the learner's process and thread, for debugging.",
        choices=("ray", "device", "serial"),
    )
    num_rollout_workers: int = _setting(1, "Rollout worker actors.", lower=1)
    num_envs: int = _setting(16, "Environments per worker; with rollout.mode=device, in all.", lower=1)
    inference_batch_size: int = _setting(16, "Most environments served by one policy inference.", lower=1)
    max_wait_ms: float = _setting(
        0.0,
        "Milliseconds that an environment which is ready may wait for others to join its inference; those that come "
        "while another inference runs join the next one anyway.",
        lower=0,
    )
    synchronous: bool = _setting(
        False,
        "Workers rest while the learner learns, and begin an iteration's fragments with its newest policy: slower, "
        "but one worker on a deterministic world gives the same run every time.",
    )
    fragment_length: int = _setting(64, "T: steps per SampleFragment.", lower=1)
    num_cpus_per_worker: float = _setting(
        1.0,
        "Ray CPUs reserved per worker. A worker keeps to so many CPUs of its own, where its host has more, or at "
        "least to so many threads where a container's limit of CPU time or other workers leave it none of its own; "
        "environment processes come on top.",
        lower=0,
    )
    inference_platform: str = _setting(
        "cpu",
        "Where rollout workers act: on CPUs, or on a GPU that Ray gives them (num_gpus_per_worker).",
        choices=("cpu", "accelerator"),
    )
    num_gpus_per_worker: float = _setting(
        0.0,
        "Ray GPUs reserved per worker with inference_platform=accelerator. A part of one, such as 0.2, is shared, also "
        "with the learner.",
        lower=0,
    )
    resources: dict[str, Any] = _setting(
        {},
        'JSON object: custom Ray resources reserved per worker besides, such as {"minecraft": 1}: workers are then '
        "placed on nodes that were started with them.",
    )
    to_send_queue_size: int = _setting(
        8, "Fragments a worker may have under way to the replay buffer before it pauses.", lower=1
    )
    max_worker_restarts: int = _setting(
        20,
        "Deaths of rollout workers within an hour that are healed; one more and the run fails. Those that went with "
        "their nodes do not count.",
        lower=0,
    )
    report_deadline_s: float = _setting(
        60.0, "Seconds without a sign of life after which a rollout worker, or the replay buffer, is replaced.", lower=1
    )
    drain_deadline_s: float = _setting(
        60.0,
        "Seconds that a worker which is taken away while the run goes on has to deliver what it has played, and stays "
        "until that has been trained on.",
        lower=0,
    )


@dataclass(frozen=True)
class PublishConfig:
    transport: str = _setting(
        "auto",
        "How policy versions reach the workers. tmpfs: files in this machine's memory; directory: files in the run "
        "directory, which all machines must share; object_store: Ray carries them. auto: tmpfs with a private Ray, "
        "object_store on a cluster.",
        choices=("auto", "tmpfs", "directory", "object_store"),
    )
    dtype: str = _setting(
        "float32",
        "Numbers of the versions that are sent; bfloat16 halves them, and workers act with rounded weights. What "
        "stays in versions/ is float32.",
        choices=("float32", "bfloat16"),
    )


@dataclass(frozen=True)
class ReplayConfig:
    max_chunks: int = _setting(
        0,
        "Capacity, chunks of replay.fragments_per_chunk fragments; 0: 2 x replay.max_reuse iterations' worth, however "
        "many devices there are.",
        lower=0,
    )
    fragments_per_chunk: int = _setting(
        1, "Consecutive fragments of one environment that are sampled together.", lower=1
    )
    max_staleness: int = _setting(
        4, "A chunk is trained on only while its oldest policy version is at most this far behind.", lower=0
    )
    max_reuse: int = _setting(1, "Iterations that one chunk may be used in.", lower=1)
    sampling: str = _setting(
        "fifo",
        "Which eligible chunks an iteration gets: the oldest; random ones; or chunks of one environment in a row, as "
        "many as there are, the environment with the oldest chunk first.",
        choices=("fifo", "uniform", "runs"),
    )
    samples_per_insert: float = _setting(
        0.0,
        "The learner waits while it has been given this many times as many fragments as came in fresh; 0: no limit.",
        lower=0,
    )
    when_full: str = _setting(
        "wait",
        "At capacity: workers pause until there is room, or the oldest chunk is dropped.",
        choices=("wait", "drop_oldest"),
    )
    max_gib: float = _setting(
        0.0, "Capacity in GiB of the fragments' arrays, besides replay.max_chunks; 0: no such limit.", lower=0
    )
    max_restarts: int = _setting(
        5, "Deaths of the replay buffer within an hour that are healed; one more and the run fails.", lower=0
    )


@dataclass(frozen=True)
class TrainerConfig:
    launcher: str = _setting(
        "none",
        "Who starts the trainer's processes, one a host. none: there is one; external: somebody else starts this "
        "command on every host (Slurm, a TPU VM's tools, a script); ray: the command, given once, starts them within "
        "Ray.",
        choices=("none", "external", "ray"),
    )
    num_hosts: int = _setting(
        0, "Processes of the trainer. 0: one, or with launcher=external as many as JAX finds out by itself.", lower=0
    )
    host_index: int = _setting(
        -1,
        "Which of them this one is, from 0, where JAX cannot find out by itself; the first one conducts the run. The "
        "only setting that differs between hosts.",
        lower=-1,
    )
    coordinator: str = _setting(
        "",
        "host:port of the first host at which launcher=external joins them; the port is any free one. Empty: what JAX "
        "finds out by itself.",
    )
    host_resources: dict[str, Any] = _setting(
        {},
        'JSON object: Ray resources reserved for each process of the trainer with launcher=ray, such as {"GPU": 8}. '
        "Empty: one CPU.",
    )
    num_iterations: int = _setting(4000, "Iterations of the whole run.", lower=1)
    learning_rate: float = _setting(3e-4, "Peak learning rate of AdamW.", lower=0)
    learning_rate_warmup: int = _setting(
        0, "Iterations over which the learning rate rises linearly to learning_rate.", lower=0
    )
    anneal_lr_linearly: bool = _setting(False, "Learning rate falls linearly to 0 at num_iterations.")
    weight_decay: float = _setting(0.0, "Decoupled weight decay; not on biases and norms.", lower=0)
    adam_eps: float = _setting(1e-8, "AdamW's epsilon.", lower=1e-15)
    max_grad_norm: float = _setting(
        5.0, "Gradients are scaled down to this global L2 norm; 0: they are left as they are.", lower=0
    )
    mesh: str = _setting(
        "data:-1",
        "How the learner's devices are arranged, axis:devices, separated by commas; -1 takes what is left. Batches are "
        "split over data and fsdp, parameters and optimiser over fsdp and, large matrices, over tensor.",
    )
    cpu_devices: int = _setting(
        0,
        "Devices that the CPU is to a learner without accelerators: with one for each core a batch split over them is "
        "learnt 1.2 to 1.8 times as fast as by one device with all cores; 0: one, or as many as "
        "JAX_NUM_CPU_DEVICES says.",
        lower=0,
    )
    batch_size_per_device: int = _setting(
        4, "Fragments per batch on each device; devices along trainer.mesh's axis tensor share them.", lower=1
    )
    batches_per_iteration: int = _setting(8, "Batches fetched for one iteration.", lower=1)
    prefetch_iterations: int = _setting(
        1,
        "Iterations whose data is brought to the device before it is needed, with rollout.mode=ray; 0 gives the "
        "freshest data.",
        lower=0,
    )
    gradient_accumulation: int = _setting(1, "Batches per optimiser step.", lower=1)
    epochs_per_iteration: int = _setting(1, "Passes over an iteration's fragments.", lower=1)
    context_length: int = _setting(64, "Steps that gradients flow back through memory.", lower=1)
    burn_in: int = _setting(
        0,
        "First steps of a fragment that are not learnt from: they bring memory, as the policy that acted left it at "
        "the start, up to the present parameters. Not where an episode begins, with empty memory.",
        lower=0,
    )
    discount: float = _setting(0.999, "gamma, per environment step.", lower=0, upper=1)
    gae_lambda: float = _setting(0.95, "lambda of generalised advantage estimation.", lower=0, upper=1)
    advantage_refresh: str = _setting(
        "iteration",
        "Advantages and value targets are computed once, before an iteration's first epoch, or anew for every epoch.",
        choices=("iteration", "epoch"),
    )
    off_policy: str = _setting(
        "behaviour",
        "What ratios are taken against. behaviour: the policy that acted, by the log-probabilities it stored. "
        "recompute: the parameters at the start of the iteration, as MineStudio does, whatever the lag. vtrace: those "
        "too, or at the start of the epoch with advantage_refresh=epoch, with advantages and targets corrected from "
        "the policy that acted by V-trace.",
        choices=("behaviour", "recompute", "vtrace"),
    )
    vtrace_clip: float = _setting(1.0, "V-trace's importance weights are clipped to this.", lower=0.1)
    normalize_advantage_full_batch: bool = _setting(
        True,
        "Advantages of the whole iteration (all devices, tasks by their weights) are scaled to mean 0, deviation 1.",
    )
    ppo_clip: float = _setting(0.2, "epsilon of the clipped surrogate, and of value clipping.", lower=0)
    dual_clip: float = _setting(
        3.0,
        "Where the advantage A is negative the policy loss is at most this many |A|, however probable the action has "
        "become (dual-clip PPO); 0: no such bound.",
        lower=0,
    )
    log_ratio_range: float = _setting(
        50.0, "Log-ratios are clamped to +- this many nats before the exponential.", lower=0.1, upper=80
    )
    ppo_policy_coef: float = _setting(1.0, "Weight of the policy loss.", lower=0)
    ppo_vf_coef: float = _setting(0.5, "Weight of the value loss.", lower=0)
    entropy_bonus_coef: float = _setting(0.0, "Weight of the entropy bonus.", lower=0)
    entropy_bonus_decay: float = _setting(1.0, "Factor on entropy_bonus_coef after every iteration.", lower=0, upper=1)
    kl_reference_coef: float = _setting(
        0.0,
        "Weight of the divergence from the reference policy, nats a step; it is the one the run began with, or was "
        "continued with if this was 0 before, unless reference_update says otherwise. VPT's rho.",
        lower=0,
    )
    kl_reference_direction: str = _setting(
        "reverse",
        "reverse: KL(policy || reference), MineStudio's; forward: KL(reference || policy).",
        choices=("reverse", "forward"),
    )
    kl_reference_decay: float = _setting(
        1.0, "Factor on kl_reference_coef after every iteration; VPT's is 0.9995.", lower=0, upper=1
    )
    reference_update: str = _setting(
        "never",
        "When the present policy becomes the reference: never, every reference_interval iterations, or whenever the "
        "mean return of the last 20 episodes is the best so far. ema: the reference follows by and by, as the average "
        "that reference_ema_decay makes of the policies so far.",
        choices=("never", "interval", "best_return", "ema"),
    )
    reference_interval: int = _setting(0, "Iterations between new references.", lower=0)
    reference_ema_decay: float = _setting(
        0.0,
        "Share of the reference that every iteration leaves of it; the rest is the present policy's.",
        lower=0,
        upper=0.999999,
    )
    task_weights: dict[str, Any] = _setting(
        {},
        "JSON object: task -> weight of its steps in the loss and in what advantages and values are normalised by, "
        "relative to the other tasks; 0 plays a task without learning from it. Tasks that are not named have 1.",
    )
    auxiliary: dict[str, Any] = _setting(
        {},
        "JSON object: losses besides PPO's -> their options, of which coef is the weight. behaviour_cloning is known; "
        "yours are package.module:function.",
    )
    clip_vloss: bool = _setting(False, "Clip the value prediction to +- ppo_clip deviations of the old one.")
    use_normalized_vf: bool = _setting(
        True, "The value head of policy.network predicts returns normalised by running statistics."
    )
    value_statistics: str = _setting(
        "popart",
        "popart: they follow the targets of the last hundred iterations, and no prediction moves with them; reference: "
        "VPT's own, which follow slowly and move the predictions.",
        choices=("popart", "reference"),
    )
    zero_initial_vf: bool = _setting(
        True,
        "The value of a new run is 0 everywhere, whatever pretrained weights say; their statistics of values stay. A "
        "policy.factory's needs the method zero_value_head for it.",
    )
    vf_warmup: int = _setting(
        0,
        "First iterations that train only the value head. Workers get it, as they judge with it what a time limit cut "
        "off, and act as before. A policy.factory's needs the method only_value_head for it.",
        lower=0,
    )
    save_interval: int = _setting(20, "Iterations between checkpoints; one more is written at the end.", lower=1)
    keep_interval: int = _setting(200, "Checkpoints of iterations divisible by this are kept for ever.", lower=1)
    keep_last: int = _setting(3, "Newest checkpoints kept besides.", lower=1)
    keep_best: int = _setting(
        1, "Checkpoints kept besides, those with the best mean return of the last 20 episodes.", lower=0
    )
    max_bad_updates: int = _setting(
        20,
        "Optimiser steps in a row whose loss or gradient is not finite, after which the last checkpoint is taken up "
        "again; the second time the run stops.",
        lower=1,
    )


@dataclass(frozen=True)
class LoggerConfig:
    board: str = _setting(
        "auto",
        "Live board on the screen, or one heartbeat line at a time; auto: a board on a terminal.",
        choices=("auto", "live", "lines"),
    )
    heartbeat_s: float = _setting(5.0, "Seconds between heartbeat lines.", lower=0.1)
    sinks: tuple[str, ...] = _setting(
        (),
        "Where metrics go besides metrics.jsonl, separated by commas: tensorboard, wandb, or your own, "
        "package.module:function, called as fn(run_dir, config) -> object with write(record) and close(). A slow or "
        "failing one loses records, never time.",
    )
    level: str = _setting("info", "Lowest level written to logs/run.log.", choices=("debug", "info", "warning"))


@dataclass(frozen=True)
class Config:
    run: RunConfig = field(default_factory=RunConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)

    def to_dict(self) -> dict[str, Any]:
        """Section -> key -> value; what config.json holds."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, dict[str, Any]]) -> Config:
        """Inverse of `to_dict`; an unknown section or key is a ConfigError naming the nearest one."""
        sections = {f.name: f for f in dataclasses.fields(cls)}
        for section in values:
            if section not in sections:
                raise ConfigError(f"unknown section {section!r}{nearest(section, list(sections))}")
        built = {}
        for name, section_type in section_types().items():
            known = {f.name: f for f in dataclasses.fields(section_type)}
            given = dict(values.get(name, {}))
            for key, value in given.items():
                if key not in known:
                    raise ConfigError(f"unknown setting {name}.{key}{nearest(key, list(known))}")
                if isinstance(value, list):
                    given[key] = tuple(value)
            built[name] = section_type(**given)
        return cls(**built)


def section_types() -> dict[str, type]:
    """Section -> its dataclass."""
    return {f.name: f.default_factory for f in dataclasses.fields(Config)}  # type: ignore[misc]


def is_number(value: Any) -> bool:
    """A finite one."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def nearest(word: str, known: Sequence[str]) -> str:
    """Half a sentence that names the known word which was probably meant, or all of them."""
    return did_you_mean(word, known) or f"; known are {', '.join(known)}"


def num_processes(trainer: TrainerConfig) -> int:
    """Processes of the trainer, as far as the settings say."""
    return trainer.num_hosts or 1


def num_environments(config: Config) -> int:
    """Environments of the whole run."""
    return config.rollout.num_envs * (config.rollout.num_rollout_workers if config.rollout.mode == "ray" else 1)


def environments_deadline_s(config: Config) -> float:
    """Seconds within which the first environment must be there; see run.start_deadline_s."""
    env = config.env
    return config.run.start_deadline_s + (2 * (env.start_deadline_s + env.reset_deadline_s) if env.factory else 0.0)


def factory_path(env: EnvConfig) -> str:
    """env.factory as package.module:function; empty for the embedded world."""
    return MINECRAFT_FACTORIES.get(env.factory, env.factory)


def plays_minecraft(env: EnvConfig) -> bool:
    """Whether env.factory is one of the package's own for Minecraft, which are given the task itself."""
    return factory_path(env) in MINECRAFT_FACTORIES.values()


def task_shares(env: EnvConfig) -> dict[str, float]:
    """Task -> share of the environments."""
    return env.tasks or {env.task: 1.0}
