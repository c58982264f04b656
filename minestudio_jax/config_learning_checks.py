"""What of the learner's settings does not go together: policy, losses, optimiser, replay buffer."""

from __future__ import annotations

from minestudio_jax.config import Config, ConfigError, PolicyConfig, ReplayConfig, TrainerConfig
from minestudio_jax.mesh_shape import mesh_shape


def learning_faults(config: Config) -> list[str]:
    """A sentence for each fault."""
    faults = [*_trainer_faults(config), *_coefficient_faults(config.trainer)]
    if config.rollout.mode != "device":
        faults += _replay_faults(config.replay, config.trainer)
    return faults + _policy_faults(config.policy, config.trainer)


def _trainer_faults(config: Config) -> list[str]:
    faults: list[str] = []
    rollout, trainer = config.rollout, config.trainer
    try:
        mesh_shape(trainer.mesh)
    except ConfigError as error:
        faults.append(str(error))
    if rollout.fragment_length % trainer.context_length:
        faults.append(
            f"rollout.fragment_length={rollout.fragment_length} is not a multiple of "
            f"trainer.context_length={trainer.context_length}: make the one divide the other"
        )
    if trainer.burn_in >= rollout.fragment_length:
        faults.append(
            f"trainer.burn_in={trainer.burn_in} leaves nothing to learn from of fragments of "
            f"rollout.fragment_length={rollout.fragment_length} steps: lower the one, or raise the other"
        )
    updates, interval = trainer.reference_update, trainer.reference_interval
    if (updates == "interval") != bool(interval):
        faults.append(
            f"trainer.reference_update={updates!r} does not go with trainer.reference_interval={interval}: an interval "
            "of 1 iteration or more belongs to 'interval', and to nothing else"
        )
    if (updates == "ema") != bool(trainer.reference_ema_decay):
        faults.append(
            f"trainer.reference_update={updates!r} does not go with trainer.reference_ema_decay="
            f"{trainer.reference_ema_decay:g}: a decay above 0 belongs to 'ema', and to nothing else"
        )
    if updates != "never" and not trainer.kl_reference_coef:
        faults.append(
            f"trainer.reference_update={updates!r} has no effect without a reference: set trainer.kl_reference_coef, "
            "or 'never'"
        )
    if trainer.advantage_refresh == "epoch" and trainer.epochs_per_iteration == 1:
        faults.append(
            "trainer.advantage_refresh='epoch' has no effect with trainer.epochs_per_iteration=1: remove it, or make "
            "more epochs"
        )
    if trainer.off_policy != "vtrace" and trainer.vtrace_clip != TrainerConfig().vtrace_clip:
        faults.append(
            f"trainer.vtrace_clip={trainer.vtrace_clip} has no effect with trainer.off_policy={trainer.off_policy!r}: "
            "remove it, or set vtrace"
        )
    if 0 < trainer.dual_clip <= 1 + trainer.ppo_clip:
        faults.append(
            f"trainer.dual_clip={trainer.dual_clip} is not above 1 + trainer.ppo_clip={1 + trainer.ppo_clip:g}: the "
            "bound would lie where the ratio is not yet clipped; raise it, or 0 takes it away"
        )
    if trainer.batches_per_iteration % trainer.gradient_accumulation:
        faults.append(
            f"trainer.batches_per_iteration={trainer.batches_per_iteration} is not a multiple of "
            f"trainer.gradient_accumulation={trainer.gradient_accumulation}: the rest would never be applied"
        )
    return faults


def _coefficient_faults(trainer: TrainerConfig) -> list[str]:
    """What is said of a term of the loss that has no weight."""
    faults = []
    for name, coefficient in (
        ("kl_reference_decay", "kl_reference_coef"),
        ("kl_reference_direction", "kl_reference_coef"),
        ("entropy_bonus_decay", "entropy_bonus_coef"),
    ):
        value, default = getattr(trainer, name), getattr(TrainerConfig(), name)
        if value != default and not getattr(trainer, coefficient):
            faults.append(
                f"trainer.{name}={value!r} has no effect without trainer.{coefficient}: set that, or leave {default!r}"
            )
    return faults


def _replay_faults(replay: ReplayConfig, trainer: TrainerConfig) -> list[str]:
    """Settings of the buffer with which the learner would wait for ever, or that do nothing."""
    faults = []
    per_device = trainer.batch_size_per_device * trainer.batches_per_iteration
    if per_device % replay.fragments_per_chunk:
        faults.append(
            f"an iteration's {per_device} fragments (trainer.batch_size_per_device x batches_per_iteration) do "
            f"not divide into chunks of replay.fragments_per_chunk={replay.fragments_per_chunk}: change either"
        )
    if 0 < replay.max_chunks * replay.fragments_per_chunk < per_device:
        least = -(-per_device // replay.fragments_per_chunk)
        faults.append(
            f"replay.max_chunks={replay.max_chunks} chunks of {replay.fragments_per_chunk} cannot hold one "
            f"iteration's {per_device} fragments: raise it to at least {least}, or 0 makes the buffer large enough"
        )
    if replay.max_staleness < trainer.prefetch_iterations:
        faults.append(
            f"replay.max_staleness={replay.max_staleness} is less than trainer.prefetch_iterations="
            f"{trainer.prefetch_iterations}: data fetched so early would be too old when trained on; raise the "
            "one or lower the other"
        )
    limit = replay.samples_per_insert
    if limit > replay.max_reuse:
        faults.append(
            f"replay.samples_per_insert={limit:g} has no effect with replay.max_reuse={replay.max_reuse}, the most a "
            "fragment can be given anyway: lower the one, raise the other, or 0 sets no limit"
        )
    if 0 < limit < 1 and replay.when_full == "wait":
        faults.append(
            f"replay.samples_per_insert={limit:g} leaves fragments that nobody ever takes, for which "
            "replay.when_full='wait' would keep the workers waiting: set drop_oldest, or at least 1"
        )
    return faults


def _policy_faults(policy: PolicyConfig, trainer: TrainerConfig) -> list[str]:
    """Settings of one network that are given for another, or of values that nobody normalises."""
    faults = []
    if policy.factory and policy.factory.count(":") != 1:
        faults.append(f"policy.factory={policy.factory!r} is not of the form package.module:function")
    if policy.options and not policy.factory:
        faults.append(
            f"policy.options={policy.options} has no effect without policy.factory: remove it or name a factory"
        )
    network = "a policy.factory of its own" if policy.factory else f"policy.network={policy.network!r}"
    defaults = PolicyConfig()
    others = {
        "impala": ("channels", "hidden_size"),
        "vpt": ("vpt", "vpt_model", "vpt_weights", "compute_dtype", "remat"),
    }
    for owner, names in others.items():
        for name in names:
            value = getattr(policy, name)
            if (policy.factory or policy.network != owner) and value != getattr(defaults, name):
                faults.append(f"policy.{name}={value!r} has no effect with {network}: remove it")
    if policy.vpt and policy.vpt_model:
        faults.append(
            f"policy.vpt={policy.vpt} and policy.vpt_model={policy.vpt_model!r} both say how large the network is: "
            "remove one of them"
        )
    for name in ("use_normalized_vf", "value_statistics") if policy.factory else ():
        value = getattr(trainer, name)
        if value != getattr(TrainerConfig(), name):
            faults.append(
                f"trainer.{name}={value!r} has no effect with {network}, which normalises values in its own way: "
                "remove it"
            )
    if not trainer.use_normalized_vf and trainer.value_statistics != TrainerConfig().value_statistics:
        faults.append(
            f"trainer.value_statistics={trainer.value_statistics!r} is how values are normalised, which "
            "trainer.use_normalized_vf=false takes away: remove one of them"
        )
    return faults
