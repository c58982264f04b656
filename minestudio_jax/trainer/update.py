"""One iteration's learning as one pure function: advantages, then epochs of PPO, as scans.

The notation follows the docstrings of `advantages` and `losses`: N fragments of T steps, cut into contexts of C
steps, B fragments a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from minestudio_jax.config import TrainerConfig
from minestudio_jax.policies import heads
from minestudio_jax.policies.policy import Params, Policy, PolicyOutput
from minestudio_jax.trainer import losses
from minestudio_jax.trainer.auxiliary import AuxiliaryLosses
from minestudio_jax.trainer.batch import FragmentBatch
from minestudio_jax.trainer.schedules import Coefficients
from minestudio_jax.trainer.state import TrainState, make_optimizer
from minestudio_jax.trainer.targets import Targets, contexts, make_targets, split_last, target_metrics

Metrics = dict[str, jax.Array]


class Diagnosis(NamedTuple):
    """Which of an iteration's optimiser steps were skipped, and of what they were made.

    Attributes:
      skipped: bool [epochs, steps].
      rows: int32 [epochs, steps, F], the fragments of each step, by their place in the batch.
    """

    skipped: jax.Array
    rows: jax.Array


Update = Callable[..., tuple[TrainState, Metrics, Diagnosis]]


def make_update(
    policy: Policy, config: TrainerConfig, num_devices: int, auxiliary: AuxiliaryLosses | None = None
) -> Update:
    """The update of one iteration.

    Args:
      policy: being trained.
      config: losses, batch sizes, epochs.
      num_devices: over which the batch's leading axis is split; shuffling never moves a fragment across.
      auxiliary: losses besides PPO's.
    Returns:
      `update(state, batch, coefficients, auxiliary_data) -> (state, metrics, diagnosis)`, the last argument being what
      `auxiliary` drew, () without. Every metric is a float32 []. A step whose loss or gradient is not finite changes
      nothing.
    """
    optimizer = make_optimizer(config)
    batch_size = config.batch_size_per_device * num_devices

    def update(
        state: TrainState, batch: FragmentBatch, coefficients: Coefficients, auxiliary_data: Sequence[Any] = ()
    ) -> tuple[TrainState, Metrics, Diagnosis]:
        start = make_targets(policy, config, state.params, batch, batch_size)
        params = policy.update_value_statistics(state.params, start.value_target, batch.mask)
        key = jax.random.wrap_key_data(state.key)
        key, shuffle_key = jax.random.split(key)
        numbers = jnp.arange(batch.reward.shape[0], dtype=jnp.int32)
        batch = _with_mean_weight_one(batch)

        def epoch(carry: Any, inputs: Any) -> tuple[Any, Any]:
            epoch_key, number, its_auxiliary_data = inputs
            targets = start
            if config.advantage_refresh == "epoch":
                targets = lax.cond(number > 0, lambda: refreshed(carry[0]), lambda: start)
            order = jax.random.permutation(epoch_key, config.batches_per_iteration * config.batch_size_per_device)
            groups = _shuffled_groups((batch, targets, numbers), order, config, num_devices)
            return lax.scan(optimizer_step, carry, (groups, its_auxiliary_data))

        def refreshed(params: Params) -> Targets:
            targets = make_targets(policy, config, params, batch, batch_size)
            return targets._replace(old_logp=start.old_logp) if config.off_policy == "recompute" else targets

        def optimizer_step(carry: Any, inputs: Any) -> tuple[Any, Any]:
            params, optimizer_state = carry
            (fragments, targets, rows), its_auxiliary_data = inputs
            gradient, metrics = accumulated_gradient(
                policy, config, params, state.reference, (fragments, targets), coefficients
            )
            if auxiliary:
                more, loss, said = auxiliary.gradient(policy, params, its_auxiliary_data, coefficients.warm_up)
                gradient = jax.tree.map(jnp.add, gradient, more)
                metrics |= {**said, "loss/total": metrics["loss/total"] + loss}
            norm = optax.tree.norm(gradient)
            finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss/total"])
            change, new_optimizer_state = optimizer.update(gradient, optimizer_state, params)
            # In warm-up only the value head may move, whatever weight decay says.
            change = jax.tree.map(
                lambda all_, head: coefficients.learning_rate * jnp.where(coefficients.warm_up, head, all_),
                change,
                policy.only_value_head(change),
            )
            new = (optax.apply_updates(params, change), new_optimizer_state)
            kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, carry)
            return kept, (metrics | {"ppo/grad_norm": norm}, Diagnosis(~finite, rows.reshape(-1)))

        keys = jax.random.split(shuffle_key, config.epochs_per_iteration)
        (params, optimizer_state), (metrics, diagnosis) = lax.scan(
            epoch, (params, state.optimizer), (keys, jnp.arange(config.epochs_per_iteration), auxiliary_data)
        )
        metrics = _means(metrics, diagnosis.skipped) | target_metrics(batch, start, coefficients.version)
        after = TrainState(params, optimizer_state, jax.random.key_data(key), state.reference)
        return after, metrics, diagnosis

    return update


def accumulated_gradient(
    policy: Policy, config: TrainerConfig, params: Params, reference: Params | None,
    group: tuple[FragmentBatch, Targets], coefficients: Coefficients,
) -> tuple[Params, Metrics]:  # fmt: skip
    """Gradient of the weighted mean loss over all genuine steps of a group of batches, context by context.

    The reference, if there is one, sees the same history: it begins a fragment with the memory that came with it, which
    is that of the policy that acted, and carries its own from there on.

    Args:
      group: FragmentBatch and Targets of [accumulation, B, ...].
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
            total, metrics = _objective(policy, config, params, output, inputs, coefficients, count)
            if reference_logits is not None:
                pair = (output.logits, reference_logits)
                divergence = heads.kl(*(pair if config.kl_reference_direction == "reverse" else reversed(pair)))
                divergence = _weighted_sum(divergence, inputs["weight"]) / count
                total += jnp.where(coefficients.warm_up, 0.0, coefficients.kl_reference * divergence)
                metrics |= {"loss/kl_reference": divergence, "loss/total": total}
            return total, (new_memory, metrics)

        gradient, (new_memory, metrics) = jax.grad(loss, has_aux=True)(params)
        return (new_memory, reference_memory), (gradient, metrics)

    def one_batch(sums: Any, item: Any) -> tuple[Any, None]:
        batch, targets = item
        steps = batch.reward.shape[1]
        inputs = contexts(
            {
                "obs": split_last(batch.obs)[0],
                "first": batch.first[:, :steps],
                "action": batch.action,
                "weight": batch.mask * batch.weight[:, None],
                **targets._asdict(),
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
    coefficients: Coefficients,
    count: jax.Array,
) -> tuple[jax.Array, Metrics]:
    """One context's share of the loss: weighted sums over its genuine steps divided by the whole group's count."""

    def mean(x: jax.Array) -> jax.Array:
        return _weighted_sum(x, inputs["weight"]) / count

    logp = heads.log_prob(output.logits, inputs["action"])
    surrogate, log_ratio = losses.clipped_surrogate(
        logp, inputs["old_logp"], inputs["advantage"], config.ppo_clip, config.log_ratio_range, config.dual_clip
    )
    value = losses.value_loss(
        output.value,
        inputs["value_target"],
        lax.stop_gradient(policy.value_scale(params)),
        inputs["old_value"] if config.clip_vloss else None,
        config.ppo_clip,
    )
    policy_term, value_term, entropy = mean(surrogate), mean(value), mean(heads.entropy(output.logits))
    acting = config.ppo_policy_coef * policy_term - coefficients.entropy_bonus * entropy
    total = config.ppo_vf_coef * value_term + jnp.where(coefficients.warm_up, 0.0, acting)
    return total, {
        "loss/policy": policy_term,
        "loss/value": value_term,
        "loss/entropy": entropy,
        "loss/total": total,
        "ppo/approx_kl": mean(losses.approximate_kl(log_ratio)),
        "ppo/clip_fraction": mean(1.0 * (jnp.abs(jnp.expm1(log_ratio)) > config.ppo_clip)),
    }


def _weighted_sum(x: jax.Array, weight: jax.Array) -> jax.Array:
    """[...] to []; what has no weight may be anything, even NaN."""
    return jnp.sum(jnp.where(weight > 0, weight * x, 0.0))


def _with_mean_weight_one(batch: FragmentBatch) -> FragmentBatch:
    """Weights over the whole iteration scaled to mean 1 over its genuine steps: they shift the loss, not its size."""
    total = jnp.sum(batch.mask * batch.weight[:, None])
    scale = jnp.where(total > 0, batch.mask.sum() / jnp.maximum(total, 1e-30), 0.0)
    return dataclasses.replace(batch, weight=batch.weight * scale)


def _means(metrics: Metrics, skipped: jax.Array) -> Metrics:
    """[epochs, steps] to []: means over the steps that were taken, and how many were not."""
    taken = jnp.maximum(jnp.sum(~skipped), 1.0)
    means = {name: jnp.sum(jnp.where(skipped, 0.0, x)) / taken for name, x in metrics.items()}
    return means | {"ppo/skipped_updates": jnp.sum(skipped, dtype=jnp.float32)}


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
