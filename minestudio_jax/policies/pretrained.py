"""VPT's published weights: OpenAI's `.model` and `.weights` files, and MineStudio's checkpoints; in and out.

PyTorch is not needed, and nothing that a file says is run: see `torch_files`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from minestudio_jax.envs import actions
from minestudio_jax.envs.env import ArraySpec, EnvironmentSpec
from minestudio_jax.policies.policy import Params
from minestudio_jax.policies.torch_files import read_plain_pickle, read_torch_file, write_torch_file
from minestudio_jax.policies.value_normalizer import ValueStatistics
from minestudio_jax.policies.vpt import VPTPolicy
from minestudio_jax.policies.vpt_shape import VPTShape
from minestudio_jax.policies.vpt_transformer import BIAS_TERMS
from minestudio_jax.utils import policy_store

_LIGHTNING_PREFIX = "mine_policy."
_FOLDER_SHAPE = "vpt.json"
_FOLDER_VERSION = 0

log = logging.getLogger(__name__)


class WeightsError(ValueError):
    """Weights that do not fit the network they are meant for."""


# What the network of this package is; a file that says otherwise is of another network. Absent is the same as this.
_EXPECTED: dict[str, Any] = {
    "recurrence_type": "transformer",
    "recurrence_is_residual": True,
    "use_pointwise_layer": True,
    "pointwise_use_activation": False,
    "use_pre_lstm_ln": False,
    "attention_mask_style": "clipped_causal",
    "single_output": False,
}


def read_model_file(path: str | Path) -> VPTShape:
    """The sizes in OpenAI's `.model` file, or in a folder that `save_folder` wrote.

    Raises:
      UnsafeFileError: it holds more than containers, numbers and strings.
      WeightsError: it lacks a size, or describes another kind of network.
    """
    path = Path(path)
    if path.is_dir():
        return _folder_shape(path)
    saved = read_plain_pickle(path)
    try:
        sizes = saved["model"]["args"]["net"]["args"]
        temperature = float(saved["model"]["args"]["pi_head_opts"]["temperature"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path} is no VPT model file: model/args/net/args or pi_head_opts/temperature is missing or wrong: {error}"
        ) from error
    for name, wanted in _EXPECTED.items():
        if sizes.get(name, wanted) != wanted:
            raise WeightsError(f"{path}: {name}={sizes[name]!r} is another network than VPT's, which has {wanted!r}")
    for kwargs, name, wanted in (
        ("init_norm_kwargs", "batch_norm", False),
        ("init_norm_kwargs", "group_norm_groups", 1),
        ("impala_kwargs", "post_pool_groups", 1),
    ):
        found = (sizes.get(kwargs) or {}).get(name, wanted)
        if found != wanted:
            raise WeightsError(f"{path}: {kwargs}.{name}={found!r} is another network than VPT's, which has {wanted!r}")
    try:
        width = float(sizes["impala_width"])
        return VPTShape(
            hidsize=int(sizes["hidsize"]),
            heads=int(sizes["attention_heads"]),
            layers=int(sizes["n_recurrence_layers"]),
            memory=int(sizes["attention_memory_size"]) - int(sizes["timesteps"]),
            pointwise_ratio=int(sizes["pointwise_ratio"]),
            channels=tuple(int(width * channels) for channels in sizes["impala_chans"]),
            image_size=(int(sizes["img_shape"][0]), int(sizes["img_shape"][1])),
            temperature=temperature,
        )
    except KeyError as error:
        raise WeightsError(f"{path} lacks the size {error}") from error
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error


def shape_from_json(sizes: Mapping[str, Any]) -> VPTShape:
    """Sizes by the names of VPTShape's attributes; those that are not there are the 1x model's.

    Raises:
      WeightsError: a name is unknown, or the sizes are impossible.
    """
    known = [f.name for f in dataclasses.fields(VPTShape)]
    for name in sizes:
        if name not in known:
            raise WeightsError(f"there is no size {name!r}; known are {', '.join(known)}")
    # JSON has lists where shapes have tuples.
    values: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in sizes.items()}
    try:
        return VPTShape(**values)
    except (TypeError, ValueError) as error:
        raise WeightsError(str(error)) from error


def write_model_file(shape: VPTShape, path: str | Path) -> None:
    """A `.model` file of these sizes, which OpenAI's and MineStudio's code read."""
    net = {
        **_EXPECTED,
        "hidsize": shape.hidsize,
        "attention_heads": shape.heads,
        "n_recurrence_layers": shape.layers,
        "attention_memory_size": 2 * shape.memory,
        "timesteps": shape.memory,
        "pointwise_ratio": shape.pointwise_ratio,
        "impala_width": 1,
        "impala_chans": list(shape.channels),
        "img_shape": [*shape.image_size, 3],
        "init_norm_kwargs": {"batch_norm": False, "group_norm_groups": 1},
        "impala_kwargs": {"post_pool_groups": 1},
    }
    saved = {"model": {"args": {"net": {"args": net}, "pi_head_opts": {"temperature": shape.temperature}}}}
    Path(path).write_bytes(pickle.dumps(saved, protocol=4))


def spec_of(shape: VPTShape) -> EnvironmentSpec:
    """The environments that a network of these sizes plays in."""
    return EnvironmentSpec({"image": ArraySpec((*shape.image_size, 3), "uint8")}, actions.VPT_ACTION_SPEC)


def load_vpt(model_path: str | Path, weights_path: str | Path) -> tuple[VPTPolicy, Params]:
    """Policy and parameters (NumPy float32) from a `.model` and a `.weights` or Lightning file.

    Tensors that the network does not know are reported in the log and left out.

    Raises:
      UnsafeFileError: a file refers to code.
      WeightsError: tensors are missing or have other shapes; names all of them.
      ValueError: a file cannot be read.
    """
    shape = read_model_file(model_path)
    return VPTPolicy(spec_of(shape), shape), load_weights(shape, weights_path)


def load_weights(shape: VPTShape, weights_path: str | Path) -> Params:
    """As `load_vpt`, for a network of these sizes."""
    path = Path(weights_path)
    if path.is_dir():
        if _folder_shape(path) != shape:
            raise WeightsError(f"{path} holds a network of {_folder_shape(path)}, which is not {shape}")
        policy = VPTPolicy(spec_of(shape), shape)
        abstract = policy.abstract_params()
        return policy_store.load_version(policy_store.version_path(path, _FOLDER_VERSION), abstract)
    tensors = _state_dict(read_torch_file(path), path)
    rows = tensors.get("net.recurrent_layer.blocks.0.r.orc_block.r_layer.weight", np.zeros((0,))).shape[0]
    if rows and rows != BIAS_TERMS * shape.heads:
        raise WeightsError(f"{path} is of a network with {rows / BIAS_TERMS:g} attention heads, not {shape.heads}")
    problems, params = [], {}
    known = list(layout(shape))
    for tensor in known:
        found = tensors.get(tensor.name)
        if found is None:
            problems.append(f"{tensor.name} is missing")
        elif found.shape != tensor.shape:
            problems.append(f"{tensor.name} has shape {list(found.shape)} instead of {list(tensor.shape)}")
        else:
            params[tensor.path] = tensor.from_torch(np.asarray(found, np.float32))
    if problems:
        raise WeightsError(f"{path} does not fit the network:\n  " + "\n  ".join(problems))
    unknown = sorted(set(tensors) - {tensor.name for tensor in known})
    if unknown:
        log.warning(
            "%s: left out %d tensors that the network does not have: %s", path, len(unknown), ", ".join(unknown)
        )
    return _nested(params)


def export_vpt(policy: VPTPolicy, params: Params, weights_path: str | Path) -> None:
    """Writes parameters as a `.weights` file, which OpenAI's and MineStudio's code read; the inverse of `load_vpt`."""
    flat = flattened(jax.device_get(params))
    tensors = {tensor.name: tensor.to_torch(flat[tensor.path]) for tensor in layout(policy.shape)}
    write_torch_file(Path(weights_path), tensors)


def save_folder(shape: VPTShape, params: Params, folder: str | Path) -> None:
    """Writes sizes and parameters for this package's own use: much faster to read than the other formats."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    policy_store.save_version(folder, _FOLDER_VERSION, jax.device_get(params))
    (folder / _FOLDER_SHAPE).write_text(json.dumps(dataclasses.asdict(shape), indent=2) + "\n")


def _folder_shape(folder: Path) -> VPTShape:
    file = folder / _FOLDER_SHAPE
    if not file.is_file():
        raise WeightsError(f"{folder} was not made by convert: it has no {_FOLDER_SHAPE}")
    return shape_from_json(json.loads(file.read_text()))


def _state_dict(saved: Any, path: Path) -> dict[str, np.ndarray]:
    """The tensors of a plain state dict, or of a Lightning checkpoint, whose prefix is removed."""
    if not isinstance(saved, Mapping):
        raise WeightsError(f"{path} holds no state dict")
    if isinstance(saved.get("state_dict"), Mapping):
        saved = {name.removeprefix(_LIGHTNING_PREFIX): value for name, value in saved["state_dict"].items()}
    return {name: value for name, value in saved.items() if isinstance(value, np.ndarray)}


@dataclass(frozen=True)
class Tensor:
    """One tensor in both worlds.

    Attributes:
      name: in the state dict.
      shape: there.
      path: in our parameters.
      axes: our axes, by number of the state dict's.
      channel_axis: the axis there that counts the final map as channels, rows, columns; ours counts rows, columns,
        channels. None: there is none.
      final_map: channels, rows and columns of it.
    """

    name: str
    shape: tuple[int, ...]
    path: tuple[str, ...]
    axes: tuple[int, ...]
    channel_axis: int | None = None
    final_map: tuple[int, int, int] = (0, 0, 0)

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        if self.channel_axis is not None:
            array = self._reordered(array, self.final_map, (1, 2, 0))
        return np.ascontiguousarray(array.transpose(self.axes)).reshape([self.shape[i] for i in self._kept()])

    def to_torch(self, array: Any) -> np.ndarray:
        array = np.asarray(array, np.float32).reshape([self.shape[i] for i in self.axes])
        array = array.transpose(np.argsort(self.axes))
        if self.channel_axis is not None:
            channels, rows, columns = self.final_map
            array = self._reordered(array, (rows, columns, channels), (2, 0, 1))
        return np.ascontiguousarray(array).reshape(self.shape)

    def _kept(self) -> tuple[int, ...]:
        # The statistics' single numbers are [1] there and [] here.
        return () if self.path[0] == "value_statistics" else self.axes

    def _reordered(self, array: np.ndarray, map_: tuple[int, ...], order: tuple[int, ...]) -> np.ndarray:
        axis = self.channel_axis or 0
        split = array.reshape(*array.shape[:axis], *map_, *array.shape[axis + 1 :])
        axes = (*range(axis), *(axis + i for i in order), *range(axis + 3, split.ndim))
        return split.transpose(axes).reshape(array.shape)


def layout(shape: VPTShape) -> Iterator[Tensor]:
    """All tensors of a network."""
    size, wide = shape.hidsize, shape.pointwise_ratio * shape.hidsize
    flat = math.prod(shape.final_map)

    def norm(name: str, path: tuple[str, ...], count: int, **order: Any) -> Iterator[Tensor]:
        yield Tensor(f"{name}.weight", (count,), (*path, "scale"), (0,), **order)
        yield Tensor(f"{name}.bias", (count,), (*path, "bias"), (0,), **order)

    def linear(
        name: str, path: tuple[str, ...], inputs: int, outputs: int, bias: bool = True, **order: Any
    ) -> Iterator[Tensor]:
        yield Tensor(f"{name}.weight", (outputs, inputs), (*path, "kernel"), (1, 0), **order)
        if bias:
            yield Tensor(f"{name}.bias", (outputs,), (*path, "bias"), (0,))

    def convolution(name: str, path: tuple[str, ...], inputs: int, outputs: int, has_norm: bool) -> Iterator[Tensor]:
        if has_norm:
            yield from norm(f"{name}.norm", (*path, "norm"), inputs)
        yield Tensor(f"{name}.layer.weight", (outputs, inputs, 3, 3), (*path, "kernel"), (2, 3, 1, 0))
        if not has_norm:
            yield Tensor(f"{name}.layer.bias", (outputs,), (*path, "bias"), (0,))

    network, cnn = ("network",), "net.img_process.cnn"
    for i, (inputs, outputs) in enumerate(zip((3, *shape.channels), shape.channels, strict=False)):
        stack, name = (*network, "encoder", f"stack_{i}"), f"{cnn}.stacks.{i}"
        yield from convolution(f"{name}.firstconv", (*stack, "firstconv"), inputs, outputs, has_norm=i > 0)
        yield from norm(f"{name}.n", (*stack, "post_pool_norm"), outputs)
        for residual in range(2):
            for conv in range(2):
                path = (*stack, f"block_{residual}", f"conv{conv}")
                yield from convolution(f"{name}.blocks.{residual}.conv{conv}", path, outputs, outputs, has_norm=True)
    by_map = {"final_map": shape.final_map}
    dense, embedding = (*network, "encoder", "dense"), 256
    yield from norm(f"{cnn}.dense.norm", (*dense, "norm"), flat, channel_axis=0, **by_map)
    yield from linear(f"{cnn}.dense.layer", (*dense, "linear"), flat, embedding, bias=False, channel_axis=1, **by_map)
    yield from norm("net.img_process.linear.norm", (*network, "encoder", "linear", "norm"), embedding)
    yield from linear(
        "net.img_process.linear.layer", (*network, "encoder", "linear", "linear"), embedding, size, bias=False
    )
    for i in range(shape.layers):
        name, block = f"net.recurrent_layer.blocks.{i}", (*network, f"block_{i}")
        attention = f"{name}.r.orc_block"
        yield from norm(f"{name}.pre_r_ln", (*block, "pre_norm"), size)
        yield Tensor(f"{attention}.b_nd", (BIAS_TERMS, shape.memory), (*block, "attn", "b_nd"), (0, 1))
        for part in "qkv":
            yield from linear(f"{attention}.{part}_layer", (*block, "attn", part), size, size, bias=part == "q")
        yield from linear(f"{attention}.proj_layer", (*block, "attn", "proj"), size, size)
        yield from linear(f"{attention}.r_layer", (*block, "attn", "r"), size, BIAS_TERMS * shape.heads)
        yield from norm(f"{name}.mlp0.norm", (*block, "mlp0", "norm"), size)
        yield from linear(f"{name}.mlp0.layer", (*block, "mlp0", "linear"), size, wide, bias=False)
        yield from linear(f"{name}.mlp1.layer", (*block, "mlp1", "linear"), wide, size)
    yield from norm("net.lastlayer.norm", (*network, "last", "norm"), size)
    yield from linear("net.lastlayer.layer", (*network, "last", "linear"), size, size, bias=False)
    yield from norm("net.final_ln", (*network, "final_norm"), size)
    yield from linear("value_head.linear", (*network, "value_head"), size, 1)
    for torch_name, field, numbers in (
        ("running_mean", "mean_sum", (1,)),
        ("running_mean_sq", "square_sum", (1,)),
        ("debiasing_term", "debias", ()),
    ):
        axes = tuple(range(len(numbers)))
        yield Tensor(f"value_head.normalizer.{torch_name}", numbers, ("value_statistics", field), axes)
    for component, choices in actions.VPT_ACTION_SPEC.items():
        yield from linear(f"pi_head.{component}.linear_layer", (*network, "pi", component), size, choices)


def _nested(flat: Mapping[tuple[str, ...], np.ndarray]) -> Params:
    tree: dict[str, Any] = {}
    for path, array in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = array
    return {"network": tree["network"], "value_statistics": ValueStatistics(**tree["value_statistics"])}


def flattened(params: Params) -> dict[tuple[str, ...], Any]:
    flat: dict[tuple[str, ...], Any] = {}

    def walk(node: Any, path: tuple[str, ...]) -> None:
        if isinstance(node, Mapping):
            for key, value in node.items():
                walk(value, (*path, key))
        else:
            flat[path] = node

    walk({"network": params["network"], "value_statistics": params["value_statistics"]._asdict()}, ())
    return flat
