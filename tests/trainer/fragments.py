"""Fragments of a policy that acted in nothing but random images, for tests of the learner alone."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from minestudio_jax.envs.env import ArraySpec, EnvironmentSpec
from minestudio_jax.policies import heads
from minestudio_jax.policies.impala import ImpalaPolicy
from minestudio_jax.policies.policy import Params, Policy
from minestudio_jax.rollout.fragment import FragmentMetadata, SampleFragment

SPEC = EnvironmentSpec({"image": ArraySpec((8, 8, 3), "uint8")}, {"choice": 3})
LENGTH = 8


def tiny_policy() -> ImpalaPolicy:
    """Without convolutions: what is compiled a hundred times must be small."""
    return ImpalaPolicy(SPEC, channels=(), hidden_size=8)


@functools.cache
def jitted(policy: Policy) -> Callable[..., Any]:
    """`policy.apply`, compiled once."""
    return jax.jit(policy.apply)


def make_fragments(
    policy: Policy,
    params: Params,
    count: int,
    seed: int = 0,
    version: int = 1,
    end_rate: float = 0.15,
    reward: Callable[[np.ndarray], np.ndarray] | None = None,
    spec: EnvironmentSpec = SPEC,
) -> list[SampleFragment]:
    """`count` fragments, each the next one of its environment; two of each environment in a row.

    Args:
      policy, params: whoever acted; log-probabilities and values are that policy's.
      seed: of everything random.
      version: policy version of every step.
      end_rate: of terminations, and again of truncations.
      reward: action [T] -> reward [T], of the first component; random by default.
      spec: of the environments.
    """
    rng = np.random.default_rng(seed)
    apply = jitted(policy)
    fragments = []
    for n in range(count):
        image = rng.integers(0, 255, (LENGTH + 1, *spec.observation["image"].shape), np.uint8)
        action = {name: rng.integers(0, choices, (LENGTH, 1)).astype(np.int32) for name, choices in spec.action.items()}
        terminated = rng.random(LENGTH) < end_rate
        truncated = ~terminated & (rng.random(LENGTH) < end_rate)
        first = np.append(n % 2 == 0, terminated | truncated)
        state = jax.tree.map(lambda x: np.asarray(x[0]), policy.initial_state(1))
        output, _ = apply(params, {"image": image[None]}, first[None], jax.tree.map(lambda x: x[None], state))
        logits = {name: head[:, :LENGTH] for name, head in output.logits.items()}
        fragments.append(
            SampleFragment(
                obs={"image": image},
                action=action,
                reward=(
                    rng.normal(size=LENGTH) if reward is None else reward(next(iter(action.values()))[:, 0])
                ).astype(np.float32),
                terminated=terminated,
                truncated=truncated,
                truncation_value=np.where(truncated, rng.normal(size=LENGTH), 0).astype(np.float32),
                first=first,
                behaviour_logp=np.asarray(heads.log_prob(logits, {k: a[None] for k, a in action.items()})[0]),
                behaviour_value=np.asarray(output.value[0]),
                version=np.full(LENGTH, version, np.int32),
                policy_state=state,
                metadata=FragmentMetadata(0, 0, n // 2, n % 2, n % 2 * LENGTH, LENGTH, "s", version, version, "task"),
            )
        )
    return fragments


def cut(fragment: SampleFragment, valid_steps: int, rng: np.random.Generator | None = None) -> SampleFragment:
    """The fragment cut by a failure after `valid_steps`; padding is zeros, or garbage from `rng`."""

    cut = copy.deepcopy(fragment)
    for name in ("reward", "terminated", "truncated", "truncation_value", "behaviour_logp"):
        array = getattr(cut, name)
        array[valid_steps:] = 0 if rng is None else rng.normal(size=array[valid_steps:].shape) * 100
    for name in ("first", "behaviour_value"):
        array = getattr(cut, name)
        array[valid_steps + 1 :] = 0 if rng is None else rng.normal(size=array[valid_steps + 1 :].shape) * 100
    cut.action["choice"][valid_steps:] = 0 if rng is None else 2
    cut.obs["image"][valid_steps + 1 :] = 0 if rng is None else 77
    return dataclasses.replace(cut, metadata=dataclasses.replace(cut.metadata, valid_steps=valid_steps))
