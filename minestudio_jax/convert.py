"""VPT's weights into this package's format and back: python -m minestudio_jax.convert

    --model=1x.model --weights=1x.weights --out=vpt-1x            OpenAI's files (or MineStudio's .ckpt) to a folder
    --params=vpt-1x --out=again.weights                           such a folder to a .weights and a .model file
    --run=runs/vpt_finetune [--version=12] --out=finetuned.weights   a training run's policy, likewise

A folder can be given to --policy.vpt_model and --policy.vpt_weights. PyTorch is not needed, and nothing that a file
says is run.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags

from minestudio_jax.utils.xla_flags import configure_cpu_compiler

if TYPE_CHECKING:
    from minestudio_jax.policies.policy import Params
    from minestudio_jax.policies.vpt import VPTPolicy

_MODEL = flags.DEFINE_string("model", "", "OpenAI's .model file.")
_WEIGHTS = flags.DEFINE_string("weights", "", "The .weights or .ckpt file.")
_PARAMS = flags.DEFINE_string("params", "", "A folder made by this program.")
_RUN = flags.DEFINE_string("run", "", "Directory of a training run of a VPT network.")
_VERSION = flags.DEFINE_integer("version", 0, "Policy version of the run; 0: the newest published one.", lower_bound=0)
_BEST = flags.DEFINE_bool("best", False, "With --run: the version with the best mean return of 20 episodes so far.")
_OUT = flags.DEFINE_string("out", "", "What to write: a folder, or a path that ends in .weights.")


def main(argv: list[str]) -> int:
    configure_cpu_compiler()
    if len(argv) > 1:
        return _refuse(f"unexpected argument {argv[1]!r}")
    sources = [bool(_MODEL.value or _WEIGHTS.value), bool(_PARAMS.value), bool(_RUN.value)]
    if sum(sources) != 1:
        return _refuse("give one source: --model and --weights, --params, or --run")
    if sources[0] and not (_MODEL.value and _WEIGHTS.value):
        return _refuse("--model and --weights belong together")
    if not _OUT.value:
        return _refuse("--out is empty: name what to write")
    imports, out = sources[0], Path(_OUT.value)
    if imports == (out.suffix == ".weights"):
        wanted = "a folder, which must not end in .weights" if imports else "a file that ends in .weights"
        return _refuse(f"--out={_OUT.value}: from this source comes {wanted}")
    if out.exists() and not (imports and out.is_dir() and not any(out.iterdir())):
        return _refuse(f"--out={_OUT.value} exists already: remove it or name another")
    # In place of absl's handler, which prints whatever Orbax has to tell.
    logging.basicConfig(level=logging.WARNING, format="convert: %(message)s", force=True)
    try:
        print(_convert(out))
    except (OSError, ValueError) as error:
        return _refuse(str(error))
    return 0


def _convert(out: Path) -> str:
    """Reads, writes, and says in a sentence what was done."""
    import jax

    from minestudio_jax.policies import pretrained

    if _MODEL.value:
        policy, params = pretrained.load_vpt(_MODEL.value, _WEIGHTS.value)
        pretrained.save_folder(policy.shape, params, out)
    else:
        if _RUN.value:
            policy, params = _from_run(Path(_RUN.value), None if _BEST.value else _VERSION.value)
        else:
            policy, params = pretrained.load_vpt(_PARAMS.value, _PARAMS.value)
        out.parent.mkdir(parents=True, exist_ok=True)
        pretrained.export_vpt(policy, params, out)
        pretrained.write_model_file(policy.shape, out.with_suffix(".model"))
        out = out.with_suffix(".{weights,model}")
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return f"wrote {out}: {count:,} parameters, {policy.shape}"


def _from_run(run_dir: Path, version: int | None) -> tuple[VPTPolicy, Params]:

    from minestudio_jax.policies.make_policy import vpt_shape
    from minestudio_jax.policies.pretrained import spec_of
    from minestudio_jax.policies.vpt import VPTPolicy
    from minestudio_jax.run.evaluation import published_version
    from minestudio_jax.run.run_directory import read_config
    from minestudio_jax.utils import policy_store

    settings = read_config(run_dir).policy
    if settings.network != "vpt" or settings.factory:
        raise ValueError(f"--run={run_dir} trained another network than VPT: only VPT's weights have other formats")
    shape = vpt_shape(settings)
    policy = VPTPolicy(spec_of(shape), shape)
    path = published_version(run_dir, version)
    return policy, policy_store.load_version(path, policy.abstract_params())


def _refuse(message: str) -> int:
    print(f"convert: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    app.run(main)
