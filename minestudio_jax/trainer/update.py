"""One iteration's learning as one pure function: advantages, then epochs of PPO, as scans.

The notation follows the docstrings of `advantages` and `losses`: N fragments of T steps, cut into contexts of C
steps, B fragments a batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from minestudio_jax.config import TrainerConfig
from minestudio_jax.policies import heads
from minestudio_jax.policies.policy import Params, Policy, PolicyOutput
from minestudio_jax.trainer import losses
from minestudio_jax.trainer.auxiliary import AuxiliaryLosses
from minestudio_jax.trainer.batch import FragmentBatch
from minestudio_jax.trainer.collectives import gathered, global_norm, laid_out, on_shards, summed
from minestudio_jax.trainer.schedules import Coefficients
from minestudio_jax.trainer.sharding import BATCH_AXES, batch_shards, partition_specs, replicated
from minestudio_jax.trainer.state import TrainState, make_optimizer
from minestudio_jax.trainer.targets import (
    Targets,
    contexts,
    make_targets,
    split_last,
    target_metrics,
    with_few_everywhere,
    without_burn_in,
)

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


def jitted_update(
    policy: Policy, config: TrainerConfig, mesh: Mesh, state_shardings: Any, auxiliary: AuxiliaryLosses | None = None
) -> Any:
    """`make_update` as one program; the state it is given is no more.

    Args:
      policy, config, mesh, auxiliary: as `make_update`.
      state_shardings: where the state's arrays lie, before and after.
    """
    # What is told to the conductor lies on every device, so that each host can read it.
    out_shardings = (state_shardings, *[replicated(mesh)] * 2)
    return jax.jit(make_update(policy, config, mesh, auxiliary), donate_argnums=0, out_shardings=out_shardings)


def make_update(policy: Policy, config: TrainerConfig, mesh: Mesh, auxiliary: AuxiliaryLosses | None = None) -> Update:
    """The update of one iteration.

    Args:
      policy: being trained.
      config: losses, batch sizes, epochs.
      mesh: of the devices, see `trainer.sharding`; shuffling never moves a fragment from one to another.
      auxiliary: losses besides PPO's.
    Returns:
      `update(state, batch, coefficients, auxiliary_data) -> (state, metrics, diagnosis)`, the last argument being what
      `auxiliary` drew, () without. Every metric is a float32 []. A step whose loss or gradient is not finite changes
      nothing.
    """
    optimizer = make_optimizer(config)
    shards = batch_shards(mesh)
    rules = policy.tensor_rules()

    def update(
        state: TrainState, batch: FragmentBatch, coefficients: Coefficients, auxiliary_data: Sequence[Any] = ()
    ) -> tuple[TrainState, Metrics, Diagnosis]:
        specs, reference_specs = (partition_specs(tree, mesh, rules) for tree in (state.params, state.reference))
        played = with_few_everywhere(mesh, batch)
        start = make_targets(policy, config, mesh, state.params, played)
        batch = without_burn_in(played, config.burn_in)
        params = policy.update_value_statistics(state.params, start.value_target, batch.step_weight)
        key = jax.random.wrap_key_data(state.key)
        key, shuffle_key = jax.random.split(key)
        batch = _with_mean_weight_one(batch)

        def epoch(carry: Any, inputs: Any) -> tuple[Any, Any]:
            epoch_key, number, its_auxiliary_data = inputs
            targets = start
            if config.advantage_refresh == "epoch":
                targets = lax.cond(number > 0, lambda: refreshed(carry[0]), lambda: start)
            order = jax.random.permutation(epoch_key, batch.reward.shape[0] // shards)
            groups = order.reshape(-1, config.gradient_accumulation, config.batch_size_per_device)
            return lax.scan(partial(optimizer_step, targets), carry, (groups, its_auxiliary_data))

        def refreshed(params: Params) -> Targets:
            targets = make_targets(policy, config, mesh, params, played)
            # V-trace's ratios and advantages are of the same parameters, so there both are the epoch's.
            return targets._replace(old_logp=start.old_logp) if config.off_policy == "recompute" else targets

        def shard_gradient(
            params: Params, reference: Params | None, batch: FragmentBatch, targets: Targets, group: jax.Array,
            coefficients: Coefficients, count: jax.Array,
        ) -> tuple[Params, Metrics]:  # fmt: skip
            """Of one device's fragments with the numbers `group` [accumulation, B], added up over all."""
            params, reference = gathered(params, specs), gathered(reference, reference_specs)
            fragments = jax.tree.map(lambda x: x[group], (batch, targets))
            gradient, metrics = accumulated_gradient(policy, config, params, reference, fragments, coefficients, count)
            return summed(gradient, specs), summed(metrics, jax.tree.map(lambda _: P(), metrics))

        rows = P(BATCH_AXES)
        gradient_of = on_shards(mesh, shard_gradient, (specs, reference_specs, rows, rows, P(), P(), P()), (specs, P()))

        def optimizer_step(targets: Targets, carry: Any, inputs: Any) -> tuple[Any, Any]:
            params, optimizer_state = carry
            group, its_auxiliary_data = inputs
            fragments = _numbers(group, batch.reward.shape[0], shards)
            count = jnp.maximum(batch.mask[fragments].sum(), 1.0)
            gradient, metrics = gradient_of(params, state.reference, batch, targets, group, coefficients, count)
            gradient = laid_out(mesh, gradient, specs)
            if auxiliary:
                more, loss, said = auxiliary.gradient(policy, params, its_auxiliary_data, coefficients.warm_up)
                gradient = jax.tree.map(jnp.add, gradient, laid_out(mesh, more, specs))
                metrics |= {**said, "loss/total": metrics["loss/total"] + loss}
            norm = global_norm(mesh, gradient, specs)
            finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss/total"])
            most = config.max_grad_norm or math.inf
            clipped = jnp.where(norm < most, 1.0, most / jnp.maximum(norm, 1e-30))
            gradient = jax.tree.map(lambda g: clipped * g, gradient)
            change, new_optimizer_state = optimizer.update(gradient, optimizer_state, params)
            # In warm-up only the value head may move, whatever weight decay says.
            change = jax.tree.map(
                lambda all_, head: coefficients.learning_rate * jnp.where(coefficients.warm_up, head, all_),
                change,
                policy.only_value_head(change),
            )
            new = (optax.apply_updates(params, change), new_optimizer_state)
            kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, carry)
            return kept, (metrics | {"ppo/grad_norm": norm}, Diagnosis(~finite, fragments))

        keys = jax.random.split(shuffle_key, config.epochs_per_iteration)
        (params, optimizer_state), (metrics, diagnosis) = lax.scan(
            epoch, (params, state.optimizer), (keys, jnp.arange(config.epochs_per_iteration), auxiliary_data)
        )
        metrics = _means(metrics, diagnosis.skipped) | target_metrics(played, start, coefficients.version)
        reference = state.reference
        if config.reference_update == "ema":
            reference = optax.incremental_update(params, reference, 1.0 - config.reference_ema_decay)
        after = TrainState(params, optimizer_state, jax.random.key_data(key), reference)
        return after, metrics, diagnosis

    return update


def accumulated_gradient(
    policy: Policy, config: TrainerConfig, params: Params, reference: Params | None,
    group: tuple[FragmentBatch, Targets], coefficients: Coefficients, count: jax.Array,
) -> tuple[Params, Metrics]:  # fmt: skip
    """Gradient of the weighted loss of a group of batches, context by context.

    The reference, if there is one, sees the same history: it begins a fragment with the memory that came with it, which
    is that of the policy that acted, and carries its own from there on.

    Args:
      group: FragmentBatch and Targets of [accumulation, B, ...].
      count: genuine steps that the loss is the mean over, those of other devices included.
    """

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
        steps, weight = batch.reward.shape[1], batch.step_weight
        inputs = contexts(
            {
                "obs": split_last(batch.obs)[0],
                "first": batch.first[:, :steps],
                "action": batch.action,
                "weight": weight,
                # What has no weight has a gradient of 0, and 0 times something that is not finite is not 0.
                **{name: jnp.where(weight > 0, x, 0.0) for name, x in targets._asdict().items()},
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
    """One context's share of the loss: weighted sums over its genuine steps divided by the whole step's count."""

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
    """[...] to []; what has no weight may be anything, even NaN, but not where a gradient is taken through it."""
    return jnp.sum(jnp.where(weight > 0, weight * x, 0.0))


def _with_mean_weight_one(batch: FragmentBatch) -> FragmentBatch:
    """Weights over the whole iteration scaled to mean 1 over its genuine steps: they shift the loss, not its size."""
    total = jnp.sum(batch.step_weight)
    scale = jnp.where(total > 0, batch.mask.sum() / jnp.maximum(total, 1e-30), 0.0)
    return dataclasses.replace(batch, weight=batch.weight * scale)


def _means(metrics: Metrics, skipped: jax.Array) -> Metrics:
    """[epochs, steps] to []: means over the steps that were taken, NaN if none was, and how many were not."""
    taken = jnp.sum(~skipped, dtype=jnp.float32)
    means = {name: jnp.sum(jnp.where(skipped, 0.0, x)) / taken for name, x in metrics.items()}
    return means | {"ppo/skipped_updates": jnp.sum(skipped, dtype=jnp.float32)}


def _numbers(group: jax.Array, rows: int, shards: int) -> jax.Array:
    """Of the fragments that each device counts as `group` [accumulation, B]: their places among all rows, [F]."""
    firsts = jnp.arange(shards, dtype=group.dtype) * (rows // shards)
    return (group[:, None, :] + firsts[None, :, None]).reshape(-1)
