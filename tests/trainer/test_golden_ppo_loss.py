"""ppo_loss.npz: one update of MineStudio's, reproduced where the reference is right.

Its networks are tables of logits and values. Deviations, each told where it is checked: its log-probabilities have a
floor for negative advantages (D-24), its warm-up adds the divergence, its value statistics move within the update (D-26).
"""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from minestudio_jax.config import TrainerConfig
from minestudio_jax.policies import heads
from minestudio_jax.policies.policy import Policy, PolicyOutput
from minestudio_jax.trainer import losses
from minestudio_jax.trainer.advantages import normalized
from minestudio_jax.trainer.batch import FragmentBatch
from minestudio_jax.trainer.schedules import coefficients
from minestudio_jax.trainer.targets import Targets
from minestudio_jax.trainer.update import accumulated_gradient

pytestmark = pytest.mark.optimized

CASES = ("plain", "kl_ent", "normvf", "normvf_clipv", "clipv", "chunked", "warmup", "lowprob", "gradclip", "fullsize")
FLOOR = ("plain", "warmup", "lowprob", "fullsize")  # where the reference's floor of -11 binds


class TablePolicy(Policy):
    """Logits and value of each frame are parameters; a frame is its number."""

    def __init__(self, mean, scale):
        self.mean, self.scale = mean, scale

    def init(self, key):
        raise NotImplementedError

    def initial_state(self, batch):
        return ()

    def apply(self, params, obs, first, state):
        row = obs["row"]
        logits = {name: jax.nn.log_softmax(params[name][row]) for name in ("buttons", "camera")}
        return PolicyOutput(logits, params["value"][row] * self.scale + self.mean), state

    def value_scale(self, params):
        return jnp.float32(self.scale)


def tables(data, prefix=""):
    found = {name: data[f"{prefix}{name}_raw"].reshape(-1, data[f"{prefix}{name}_raw"].shape[-1])
             for name in ("buttons", "camera")}  # fmt: skip
    return jax.tree.map(jnp.asarray, found | {"value": data["vpred"].reshape(-1)})


def moments(data, hyper):
    """The statistics after the update: the reference's move by 1e-5 within it."""
    if not hyper["normv"]:
        return 0.0, 1.0
    weight, mean, square = (float(x) for x in data["norm_after"])
    return mean / weight, np.sqrt(max(square / weight - (mean / weight) ** 2, 1e-2))


def read(golden, case):
    archive = np.load(golden / "ppo_loss.npz")
    data = {name[len(case) + 1 :]: archive[name] for name in archive.files if name.startswith(f"{case}_")}
    return data, json.loads(str(data["hparams_json"]))


@pytest.mark.parametrize("case", CASES)
def test_golden_ppo_loss(golden, case):
    """D-24: ppo_loss.npz, with and without the floor; D-43: the logged total is the weighted sum of the logged parts."""
    data, hyper = read(golden, case)
    mean, scale = moments(data, hyper)
    config = TrainerConfig(
        context_length=4 if case == "chunked" else hyper["ctx"], ppo_clip=hyper["ppo_clip"], dual_clip=0.0,
        log_ratio_range=hyper["log_ratio_range"], ppo_vf_coef=hyper["vf_coef"], ppo_policy_coef=hyper["policy_coef"],
        entropy_bonus_coef=hyper["ent"], kl_reference_coef=hyper["kl"], clip_vloss=hyper["clipv"],
        vf_warmup=hyper["vf_warmup"],
    )  # fmt: skip
    groups, steps = hyper["acc"], hyper["T"]

    def grouped(x):
        return jnp.asarray(x).reshape(groups, hyper["bs"], *x.shape[1:])

    mask = np.ones((hyper["F"], steps), np.float32)
    advantage = np.asarray(normalized(data["advantage"], mask)) if hyper["normadv"] else data["advantage"]
    zeros, no = np.zeros_like(mask), np.zeros((hyper["F"], steps + 1), bool)
    rows = np.arange(hyper["F"] * steps).reshape(hyper["F"], steps)
    batch = FragmentBatch(
        obs={"row": grouped(np.concatenate([rows, rows[:, -1:]], axis=1))},
        action={name: grouped(data[f"action_{name}"].astype(np.int32)) for name in ("buttons", "camera")},
        reward=grouped(zeros), terminated=grouped(no[:, 1:]), truncated=grouped(no[:, 1:]),
        truncation_value=grouped(zeros), first=grouped(no), behaviour_logp=grouped(data["old_logp"]),
        behaviour_value=grouped(zeros), version=None, policy_state=(), mask=grouped(mask), continues=None,
        weight=grouped(np.ones(hyper["F"], np.float32)),
    )  # fmt: skip
    targets = Targets(
        *(grouped(x) for x in (
            advantage, data["advantage"], data["td_target"], data["old_vpred"] * scale + mean, data["old_logp"],
            data["old_logp"],
        ))
    )  # fmt: skip
    policy = TablePolicy(mean, scale)
    now = coefficients(config, 0, 0)
    reference = tables(data, "ref_") if hyper["kl"] else None
    group = (batch, targets)

    @jax.jit
    def run(params):
        return accumulated_gradient(policy, config, params, reference, group, now, jnp.float32(mask.size))

    gradient, metrics = run(tables(data))

    out = {name: float(data[f"out_{name}"]) for name in ("policy_loss", "value_loss", "entropy_bonus", "approx_kl",
                                                         "clip_fraction", "kl_divergence_loss", "total_loss")}  # fmt: skip
    near = {"rel": 2e-4, "abs": 2e-5}
    assert metrics["loss/value"] == pytest.approx(out["value_loss"], **near)
    assert metrics["loss/entropy"] == pytest.approx(out["entropy_bonus"], **near)
    if hyper["kl"]:
        assert metrics["loss/kl_reference"] == pytest.approx(out["kl_divergence_loss"], **near)
    clip = optax.clip_by_global_norm(hyper["max_grad_norm"])
    gradient, _ = clip.update(gradient, clip.init(gradient))
    checked = ["value"] if case in FLOOR else ["value", "buttons", "camera"]
    for name in checked:
        wanted = data[f"step0_grad_{'vpred' if name == 'value' else name + '_raw'}"].reshape(gradient[name].shape)
        error = np.linalg.norm(gradient[name] - wanted) / np.linalg.norm(wanted)
        assert error < 3e-4, (name, error)
    if case in FLOOR:
        check_with_floor(data, hyper, advantage, out)
        if case == "warmup":  # the reference adds the divergence, with weight 1 whatever its coefficient
            assert metrics["loss/total"] == pytest.approx(out["total_loss"] - out["kl_divergence_loss"], **near)
        return
    assert metrics["loss/policy"] == pytest.approx(out["policy_loss"], **near)
    assert metrics["ppo/approx_kl"] == pytest.approx(out["approx_kl"], **near)
    assert metrics["ppo/clip_fraction"] == pytest.approx(out["clip_fraction"], **near)
    # What is logged is the sum of its parts (D-43); the reference logs it scaled by its accumulation and chunks.
    total = (
        hyper["policy_coef"] * out["policy_loss"] + hyper["kl"] * out["kl_divergence_loss"]
        + hyper["vf_coef"] * out["value_loss"] - hyper["ent"] * out["entropy_bonus"]
    )  # fmt: skip
    assert metrics["loss/total"] == pytest.approx(total, rel=5e-4, abs=5e-5)
    if groups == 1:
        assert total == pytest.approx(out["total_loss"], rel=1e-4)


def check_with_floor(data, hyper, advantage, out):
    """D-24: with the reference's floor put in by hand, the surrogate is the reference's."""
    logits = {name: jax.nn.log_softmax(data[f"{name}_raw"]) for name in ("buttons", "camera")}
    logp = heads.log_prob(logits, {name: data[f"action_{name}"] for name in logits})
    floored = jnp.where(advantage < 0, jnp.maximum(logp, hyper["logp_floor_for_negative_adv"]), logp)
    assert (floored != logp).any()
    loss, log_ratio = losses.clipped_surrogate(
        floored, data["old_logp"], advantage, hyper["ppo_clip"], hyper["log_ratio_range"]
    )
    assert float(loss.mean()) == pytest.approx(out["policy_loss"], rel=2e-4)
    assert float(losses.approximate_kl(log_ratio).mean()) == pytest.approx(out["approx_kl"], rel=2e-4)
