"""One iteration's learning as one pure function: advantages, then epochs of PPO, as scans.

The notation follows the docstrings of `advantages` and `losses`: N fragments of T steps, cut into contexts of C
steps, B fragments a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from minestudio_jax.config import TrainerConfig
from minestudio_jax.policies import heads
from minestudio_jax.policies.policy import Params, Policy, PolicyOutput
from minestudio_jax.trainer import losses
from minestudio_jax.trainer.advantages import joined_generalized_advantage_estimation, normalized
from minestudio_jax.trainer.batch import FragmentBatch
from minestudio_jax.trainer.state import TrainState, make_optimizer

Metrics = dict[str, jax.Array]
Update = Callable[..., tuple[TrainState, Metrics]]


def make_update(policy: Policy, config: TrainerConfig, num_devices: int) -> Update:
    """The update of one iteration.

    Args:
      policy: being trained.
      config: losses, batch sizes, epochs.
      num_devices: over which the batch's leading axis is split; shuffling never moves a fragment across.
    Returns:
      `update(state, batch, warm_up, kl_coef) -> (state, metrics)`; warm_up is a bool [], true while only the value
      head learns, kl_coef a float32 [], the present weight of the divergence from the reference. Every metric is a
      float32 []. A step whose loss or gradient is not finite changes nothing.
    """
    optimizer = make_optimizer(config)
    batch_size = config.batch_size_per_device * num_devices

    def update(
        state: TrainState, batch: FragmentBatch, warm_up: jax.Array, kl_coef: jax.Array | float = 0.0
    ) -> tuple[TrainState, Metrics]:
        targets = _prepare_targets(policy, config, state.params, batch, batch_size)
        params = policy.update_value_statistics(state.params, targets["value_target"], batch.mask)
        key = jax.random.wrap_key_data(state.key)
        key, shuffle_key = jax.random.split(key)

        def epoch(carry: Any, epoch_key: jax.Array) -> tuple[Any, Metrics]:
            order = jax.random.permutation(epoch_key, config.batches_per_iteration * config.batch_size_per_device)
            groups = _shuffled_groups((batch, targets), order, config, num_devices)
            return lax.scan(optimizer_step, carry, groups)

        def optimizer_step(carry: Any, group: Any) -> tuple[Any, Metrics]:
            params, optimizer_state = carry
            gradient, metrics = _accumulated_gradient(policy, config, params, state.reference, group, warm_up, kl_coef)
            norm = optax.tree.norm(gradient)
            finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss/total"])
            change, new_optimizer_state = optimizer.update(gradient, optimizer_state, params)
            # In warm-up only the value head may move, whatever weight decay says.
            change = jax.tree.map(
                lambda all_, head: jnp.where(warm_up, head, all_), change, policy.only_value_head(change)
            )
            new = (optax.apply_updates(params, change), new_optimizer_state)
            kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, carry)
            metrics |= {"ppo/grad_norm": norm, "ppo/skipped_updates": 1.0 - finite}
            return kept, metrics

        keys = jax.random.split(shuffle_key, config.epochs_per_iteration)
        (params, optimizer_state), metrics = lax.scan(epoch, (params, state.optimizer), keys)
        metrics = _reduced(metrics) | _target_metrics(batch, targets)
        return TrainState(params, optimizer_state, jax.random.key_data(key), state.reference), metrics

    return update


def _prepare_targets(
    policy: Policy, config: TrainerConfig, params: Params, batch: FragmentBatch, batch_size: int
) -> dict[str, jax.Array]:
    """One pass without gradients: fresh values and log-probabilities, then advantages; all [N, T]."""
    rows = batch.reward.shape[0]
    groups = jax.tree.map(lambda x: x.reshape(rows // batch_size, batch_size, *x.shape[1:]), batch)
    logp, value = lax.map(lambda group: _evaluate(policy, config, params, group), groups)
    logp, value = logp.reshape(rows, -1), value.reshape(rows, -1)
    advantage, value_target = joined_generalized_advantage_estimation(
        batch.reward,
        value,
        batch.terminated,
        batch.truncated,
        batch.truncation_value,
        batch.continues,
        config.discount,
        config.gae_lambda,
    )
    raw = advantage * batch.mask
    advantage = normalized(advantage, batch.mask) if config.normalize_advantage_full_batch else raw
    return {
        "advantage": advantage,
        "raw_advantage": raw,
        "value_target": value_target,
        "old_value": value[:, :-1],
        "start_logp": logp,
    }


def _evaluate(
    policy: Policy, config: TrainerConfig, params: Params, batch: FragmentBatch
) -> tuple[jax.Array, jax.Array]:
    """Log-probability [B, T] of the actions and value [B, T+1], memory carried from context to context."""

    def context(memory: Any, inputs: Any) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        obs, first, action = inputs
        output, memory = policy.apply(params, obs, first, memory)
        return memory, (heads.log_prob(output.logits, action), output.value)

    steps = batch.reward.shape[1]
    obs, last_obs = _split_last(batch.obs)
    inputs = _contexts((obs, batch.first[:, :steps], batch.action), config.context_length)
    memory, (logp, value) = lax.scan(context, batch.policy_state, inputs)
    last, _ = policy.apply(params, last_obs, batch.first[:, steps:], memory)
    logp, value = (jnp.swapaxes(x, 0, 1).reshape(batch.reward.shape) for x in (logp, value))
    return logp, jnp.concatenate([value, last.value], axis=1)


def _accumulated_gradient(
    policy: Policy, config: TrainerConfig, params: Params, reference: Params | None, group: Any, warm_up: jax.Array,
    kl_coef: jax.Array | float,
) -> tuple[Params, Metrics]:  # fmt: skip
    """Gradient of the mean loss over all genuine steps of a group of batches, context by context.

    The reference, if there is one, sees the same history: it begins a fragment with the memory that came with it, which
    is that of the policy that acted, and carries its own from there on.
    """
    count = jnp.maximum(group[0].mask.sum(), 1.0)

    def one_context(memories: Any, inputs: Any) -> tuple[Any, tuple[Params, Metrics]]:
        memory, reference_memory = memories
        reference_logits = None
        if reference is not None:
            output, reference_memory = policy.apply(reference, inputs["obs"], inputs["first"], reference_memory)
            reference_logits = output.logits

        def loss(params: Params) -> tuple[jax.Array, tuple[Any, Metrics]]:
            output, new_memory = policy.apply(params, inputs["obs"], inputs["first"], memory)
            total, metrics = _objective(policy, config, params, output, inputs, warm_up, count)
            if reference_logits is not None:
                divergence = heads.kl(output.logits, reference_logits)
                divergence = jnp.sum(jnp.where(inputs["mask"] > 0, divergence, 0.0)) / count
                total += jnp.where(warm_up, 0.0, kl_coef * divergence)
                metrics |= {"loss/kl_reference": divergence, "loss/total": total}
            return total, (new_memory, metrics)

        gradient, (new_memory, metrics) = jax.grad(loss, has_aux=True)(params)
        return (new_memory, reference_memory), (gradient, metrics)

    def one_batch(sums: Any, item: Any) -> tuple[Any, None]:
        batch, targets = item
        steps = batch.reward.shape[1]
        inputs = _contexts(
            {
                "obs": _split_last(batch.obs)[0],
                "first": batch.first[:, :steps],
                "action": batch.action,
                "mask": batch.mask,
                "behaviour_logp": batch.behaviour_logp,
                **targets,
            },
            config.context_length,
        )

        def accumulate(carry: Any, context: Any) -> tuple[Any, None]:
            memories, sums = carry
            memories, terms = one_context(memories, context)
            return (memories, jax.tree.map(jnp.add, sums, terms)), None

        memories = (batch.policy_state, None if reference is None else batch.policy_state)
        (_, sums), _ = lax.scan(accumulate, (memories, sums), inputs)
        return sums, None

    names = _OBJECTIVE_METRICS if reference is None else (*_OBJECTIVE_METRICS, "loss/kl_reference")
    zero_metrics = {name: jnp.zeros((), jnp.float32) for name in names}
    zero = (jax.tree.map(jnp.zeros_like, params), zero_metrics)
    (gradient, metrics), _ = lax.scan(one_batch, zero, group)
    return gradient, metrics


_OBJECTIVE_METRICS = (
    "loss/policy",
    "loss/value",
    "loss/entropy",
    "loss/total",
    "ppo/approx_kl",
    "ppo/clip_fraction",
)


def _objective(
    policy: Policy,
    config: TrainerConfig,
    params: Params,
    output: PolicyOutput,
    inputs: dict[str, Any],
    warm_up: jax.Array,
    count: jax.Array,
) -> tuple[jax.Array, Metrics]:
    """One context's share of the loss: sums over its genuine steps divided by the whole group's count."""

    def mean(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(inputs["mask"] > 0, x, 0.0)) / count

    logp = heads.log_prob(output.logits, inputs["action"])
    surrogate, log_ratio = losses.clipped_surrogate(
        logp, inputs["behaviour_logp"], inputs["advantage"], config.ppo_clip, config.log_ratio_range
    )
    value = losses.value_loss(
        output.value,
        inputs["value_target"],
        lax.stop_gradient(policy.value_scale(params)),
        inputs["old_value"] if config.clip_vloss else None,
        config.ppo_clip,
    )
    policy_term, value_term, entropy = mean(surrogate), mean(value), mean(heads.entropy(output.logits))
    acting = config.ppo_policy_coef * policy_term - config.entropy_bonus_coef * entropy
    total = config.ppo_vf_coef * value_term + jnp.where(warm_up, 0.0, acting)
    return total, {
        "loss/policy": policy_term,
        "loss/value": value_term,
        "loss/entropy": entropy,
        "loss/total": total,
        "ppo/approx_kl": mean(losses.approximate_kl(log_ratio)),
        "ppo/clip_fraction": mean(1.0 * (jnp.abs(jnp.expm1(log_ratio)) > config.ppo_clip)),
    }


def _reduced(metrics: Metrics) -> Metrics:
    """[epochs, steps] to []: means, but the count of skipped updates is a sum."""
    skipped = metrics["ppo/skipped_updates"]
    taken = jnp.maximum(jnp.sum(1.0 - skipped), 1.0)
    return {
        name: jnp.sum(x) if name == "ppo/skipped_updates" else jnp.sum(jnp.where(skipped > 0, 0.0, x)) / taken
        for name, x in metrics.items()
    }


def _target_metrics(batch: FragmentBatch, targets: dict[str, jax.Array]) -> Metrics:
    """What the pass before the first step says of the data and of the value function."""
    mask = batch.mask
    count = jnp.maximum(mask.sum(), 1.0)
    residual = jnp.where(mask > 0, targets["value_target"] - targets["old_value"], 0.0)
    target = jnp.where(mask > 0, targets["value_target"], 0.0)
    target_mean = target.sum() / count
    residual_variance = jnp.sum(mask * jnp.square(residual - residual.sum() / count)) / count
    variance = jnp.sum(mask * jnp.square(target - target_mean)) / count
    log_ratio = jnp.where(mask > 0, targets["start_logp"] - batch.behaviour_logp, 0.0)
    fresh = mask * batch.fresh[:, None]
    error = jnp.max(fresh * jnp.abs(jnp.expm1(log_ratio)))
    return {
        "value/target_mean": target_mean,
        "value/explained_variance": 1.0 - residual_variance / jnp.maximum(variance, 1e-8),
        "ppo/advantage_abs_mean": jnp.sum(jnp.abs(targets["raw_advantage"])) / count,
        "ppo/behaviour_kl": jnp.sum(mask * losses.approximate_kl(log_ratio)) / count,
        "ppo/first_ratio_error": jnp.where(fresh.sum() > 0, error, jnp.nan),
    }


def _split_last(obs: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """[B, T+1, ...] to [B, T, ...] and [B, 1, ...]."""
    return {k: x[:, :-1] for k, x in obs.items()}, {k: x[:, -1:] for k, x in obs.items()}


def _contexts(tree: Any, length: int) -> Any:
    """[B, T, ...] to [T / C, B, C, ...]."""
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(x.shape[0], -1, length, *x.shape[2:]), 1, 0), tree)


def _shuffled_groups(tree: Any, order: jax.Array, config: TrainerConfig, num_devices: int) -> Any:
    """[N, ...] to [optimiser steps, accumulation, B, ...], each device's rows permuted among themselves."""
    steps = config.batches_per_iteration // config.gradient_accumulation

    def regroup(x: jax.Array) -> jax.Array:
        rows = x.reshape(num_devices, -1, *x.shape[1:])[:, order]
        rows = rows.reshape(
            num_devices, steps, config.gradient_accumulation, config.batch_size_per_device, *x.shape[1:]
        )
        rows = jnp.moveaxis(rows, 0, 2)
        return rows.reshape(steps, config.gradient_accumulation, -1, *x.shape[1:])

    return jax.tree.map(regroup, tree)
