"""What an update learns towards: log-probabilities, values and advantages from a pass without gradients."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from minestudio_jax.config import TrainerConfig
from minestudio_jax.policies import heads
from minestudio_jax.policies.policy import Params, Policy
from minestudio_jax.trainer import losses
from minestudio_jax.trainer.advantages import joined_generalized_advantage_estimation, joined_vtrace, normalized
from minestudio_jax.trainer.batch import FragmentBatch
from minestudio_jax.trainer.collectives import everywhere, gathered, on_shards
from minestudio_jax.trainer.sharding import BATCH_AXES, partition_specs

_LAGS = 3  # versions of lag that have a metric of their own; the last takes all beyond


class Targets(NamedTuple):
    """Of N fragments of T steps, all float32 [N, T].

    Attributes:
      advantage: as the loss takes it, normalised by the steps' weights in it if that is asked for.
      raw_advantage: in units of reward.
      value_target: in units of reward.
      old_value: of the parameters that the pass was made with.
      start_logp: log-probability of the actions under them.
      old_logp: what the ratio is taken against.
    """

    advantage: jax.Array
    raw_advantage: jax.Array
    value_target: jax.Array
    old_value: jax.Array
    start_logp: jax.Array
    old_logp: jax.Array


def make_targets(policy: Policy, config: TrainerConfig, mesh: Mesh, params: Params, batch: FragmentBatch) -> Targets:
    """One pass over all fragments, a batch at a time, then the advantages, joined over contiguous fragments.

    Each device passes over its own fragments. Their advantages it computes for all: a run may go from one to another.

    Args:
      policy, config, mesh: as `trainer.update.make_update`.
      params: of the pass.
      batch: `with_few_everywhere`.
    """
    specs = partition_specs(params, mesh, policy.tensor_rules())

    def evaluate(params: Params, batch: FragmentBatch) -> tuple[jax.Array, jax.Array]:
        params = gathered(params, specs)
        groups = jax.tree.map(lambda x: x.reshape(-1, config.batch_size_per_device, *x.shape[1:]), batch)
        logp, value = lax.map(lambda group: _evaluate(policy, config, params, group), groups)
        return logp.reshape(-1, *logp.shape[2:]), value.reshape(-1, *value.shape[2:])

    rows = P(BATCH_AXES)
    logp, value = everywhere(mesh, on_shards(mesh, evaluate, (specs, rows), (rows, rows))(params, batch))
    transitions = (
        batch.reward, value, batch.terminated, batch.truncated, batch.truncation_value, batch.continues,
    )  # fmt: skip
    if config.off_policy == "vtrace":
        log_ratio = jnp.where(batch.mask > 0, logp - batch.behaviour_logp, 0.0)
        advantage, value_target = joined_vtrace(
            *transitions, log_ratio, config.discount, config.gae_lambda, config.vtrace_clip
        )
    else:
        advantage, value_target = joined_generalized_advantage_estimation(
            *transitions, config.discount, config.gae_lambda
        )
    # Said again behind the scans, or the compiler would split these.
    advantage, value_target = everywhere(mesh, (advantage, value_target))
    raw, learnt = advantage * batch.mask, without_burn_in(batch, config.burn_in)
    return Targets(
        _normalized(mesh, advantage, learnt) if config.normalize_advantage_full_batch else raw,
        raw,
        value_target,
        value[:, :-1],
        logp,
        batch.behaviour_logp if config.off_policy == "behaviour" else logp,
    )


def with_few_everywhere(mesh: Mesh, batch: FragmentBatch) -> FragmentBatch:
    """The batch with all on every device that is one number a step or less: what is computed of these needs all."""
    few = dataclasses.replace(batch, obs={}, action={}, policy_state=())
    return dataclasses.replace(
        everywhere(mesh, few), obs=batch.obs, action=batch.action, policy_state=batch.policy_state
    )


def without_burn_in(batch: FragmentBatch, burn_in: int) -> FragmentBatch:
    """The batch as the loss takes it: in its mask, float32 [N, T], the first `burn_in` steps of a fragment are 0.

    They bring the memory, which the policy that acted left at the fragment's start, up to the present parameters (R2D2,
    Kapturowski et al. 2019). Where an episode begins it is empty, and what follows is learnt from at once.
    """
    if not burn_in:
        return batch
    steps = batch.reward.shape[1]
    begun = lax.cummax(batch.first[:, :steps].astype(jnp.int32), axis=1)
    learnt = (begun > 0) | (jnp.arange(steps) >= burn_in)
    return dataclasses.replace(batch, mask=batch.mask * learnt)


def target_metrics(batch: FragmentBatch, targets: Targets, version: jax.Array) -> dict[str, jax.Array]:
    """What the pass before the first step says of the data and of the value function; float32 [] each.

    Ratios are those of the parameters at the start of the iteration to the policy that acted, neither clipped nor
    clamped; NaN where there is nothing to say.
    """
    mask = batch.mask
    count = jnp.maximum(mask.sum(), 1.0)
    residual = jnp.where(mask > 0, targets.value_target - targets.old_value, 0.0)
    target = jnp.where(mask > 0, targets.value_target, 0.0)
    target_mean = target.sum() / count
    residual_variance = jnp.sum(mask * jnp.square(residual - residual.sum() / count)) / count
    variance = jnp.sum(mask * jnp.square(target - target_mean)) / count
    log_ratio = jnp.where(mask > 0, targets.start_logp - batch.behaviour_logp, 0.0)
    divergence = losses.approximate_kl(log_ratio)
    lag = version - batch.version  # [N, T]
    # Where the policy changed within a fragment, later actions came of memory that the one before had written.
    fresh = mask * (lag[:, :1] == 0)
    metrics = {
        "value/target_mean": target_mean,
        "value/explained_variance": 1.0 - residual_variance / jnp.maximum(variance, 1e-8),
        "ppo/advantage_abs_mean": jnp.sum(jnp.abs(targets.raw_advantage)) / count,
        "ppo/behaviour_kl": jnp.sum(mask * divergence) / count,
        "ppo/behaviour_log_ratio_max": jnp.max(jnp.abs(log_ratio)),
        "ppo/first_ratio_error": jnp.where(fresh.sum() > 0, jnp.max(fresh * jnp.abs(jnp.expm1(log_ratio))), jnp.nan),
        "lag/policy_versions_min": jnp.min(jnp.where(mask > 0, lag, version)).astype(jnp.float32),
        "lag/policy_versions_mean": jnp.sum(mask * lag) / count,
        "lag/policy_versions_max": jnp.max(jnp.where(mask > 0, lag, 0)).astype(jnp.float32),
        "lag/mixed_fragments": jnp.mean(jnp.any((mask > 0) & (lag != lag[:, :1]), axis=1), dtype=jnp.float32),
        "replay/run_length_mean": count / jnp.maximum(jnp.sum(~batch.continues), 1.0),
    }
    for behind in range(_LAGS + 1):
        at = mask * (lag == behind if behind < _LAGS else lag >= behind)
        name = f"lag/behaviour_kl_{behind}" + ("_or_more" if behind == _LAGS else "")
        metrics[name] = jnp.where(at.sum() > 0, jnp.sum(at * divergence) / jnp.maximum(at.sum(), 1.0), jnp.nan)
    return metrics


def split_last(obs: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """[B, T+1, ...] to [B, T, ...] and [B, 1, ...]."""
    return {k: x[:, :-1] for k, x in obs.items()}, {k: x[:, -1:] for k, x in obs.items()}


def contexts(tree: Any, length: int) -> Any:
    """[B, T, ...] to [T / C, B, C, ...]."""
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(x.shape[0], -1, length, *x.shape[2:]), 1, 0), tree)


def _normalized(mesh: Mesh, advantage: jax.Array, batch: FragmentBatch) -> jax.Array:
    """By every device for itself: the compiler would split it among them, for several exchanges."""

    def normalize(advantage: jax.Array, mask: jax.Array, weight: jax.Array) -> jax.Array:
        return normalized(advantage, mask * weight[:, None])

    return on_shards(mesh, normalize, (P(), P(), P()), P())(advantage, batch.mask, batch.weight)


def _evaluate(
    policy: Policy, config: TrainerConfig, params: Params, batch: FragmentBatch
) -> tuple[jax.Array, jax.Array]:
    """Log-probability [B, T] of the actions and value [B, T+1], memory carried from context to context."""

    def context(memory: Any, inputs: Any) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        obs, first, action = inputs
        output, memory = policy.apply(params, obs, first, memory)
        return memory, (heads.log_prob(output.logits, action), output.value)

    steps = batch.reward.shape[1]
    obs, last_obs = split_last(batch.obs)
    inputs = contexts((obs, batch.first[:, :steps], batch.action), config.context_length)
    memory, (logp, value) = lax.scan(context, batch.policy_state, inputs)
    last, _ = policy.apply(params, last_obs, batch.first[:, steps:], memory)
    logp, value = (jnp.swapaxes(x, 0, 1).reshape(batch.reward.shape) for x in (logp, value))
    return logp, jnp.concatenate([value, last.value], axis=1)
