"""The same network in eager PyTorch, to compare with: benchmarks/vpt.py runs it with --pytorch=INTERPRETER.

    INTERPRETER benchmarks/vpt_pytorch.py WIDTH BATCH SECONDS [channels_last]

Prints the median seconds of one acting step: frames to sampled actions, memory carried. Weights are random. With
--check=tests/golden instead, it prints the largest error of the camera logits against the golden numbers there.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nn


class Network:
    """VPT's forward pass over a state dict, T = 1, no `first` inside."""

    def __init__(self, tensors: dict[str, torch.Tensor], heads: int, memory: int, channels_last: bool) -> None:
        self.w = {
            k: v.to(memory_format=torch.channels_last) if v.ndim == 4 and channels_last else v
            for k, v in tensors.items()
        }
        self.heads, self.memory, self.channels_last = heads, memory, channels_last
        self.layers = 1 + max(int(name.split(".")[3]) for name in tensors if "recurrent_layer" in name)

    def conv(self, x: torch.Tensor, name: str) -> torch.Tensor:
        if f"{name}.norm.weight" in self.w:
            x = nn.group_norm(x, 1, self.w[f"{name}.norm.weight"], self.w[f"{name}.norm.bias"])
        return torch.relu(nn.conv2d(x, self.w[f"{name}.layer.weight"], self.w.get(f"{name}.layer.bias"), padding=1))

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return nn.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def dense(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.relu(nn.linear(self.norm(x, f"{name}.norm"), self.w[f"{name}.layer.weight"]))

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return nn.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        x = image.permute(0, 3, 1, 2).to(torch.float32) / 255
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        for i in range(3):
            stack = f"net.img_process.cnn.stacks.{i}"
            x = nn.max_pool2d(self.conv(x, f"{stack}.firstconv"), 3, 2, 1)
            x = nn.group_norm(x, 1, self.w[f"{stack}.n.weight"], self.w[f"{stack}.n.bias"])
            for j in range(2):
                x = x + self.conv(self.conv(x, f"{stack}.blocks.{j}.conv0"), f"{stack}.blocks.{j}.conv1")
        x = self.dense(x.flatten(1), "net.img_process.cnn.dense")
        return self.dense(x, "net.img_process.linear")

    def attend(self, x: torch.Tensor, name: str, state: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        mask, keys, values = state
        batch, size = x.shape
        keys = torch.cat([keys, self.linear(x, f"{name}.k_layer")[:, None]], 1)
        values = torch.cat([values, self.linear(x, f"{name}.v_layer")[:, None]], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)

        def split(y: torch.Tensor) -> torch.Tensor:
            return y.reshape(batch, -1, self.heads, size // self.heads).transpose(1, 2)

        r = self.linear(x, f"{name}.r_layer").reshape(batch, self.heads, 10)
        bias = nn.pad((r @ self.w[f"{name}.b_nd"]).flip(-1), (1, 0))  # ages M .. 0, of which M is never seen
        logits = (split(self.linear(x, f"{name}.q_layer")) @ split(keys).transpose(2, 3))[:, :, 0]
        logits = logits / (size // self.heads) + bias
        hidden = ~mask
        hidden[:, 0] = True
        weights = torch.softmax(logits.masked_fill(hidden[:, None], -1e9), -1)
        mixed = (weights[:, :, None] @ split(values)).transpose(1, 2).reshape(batch, size)
        return self.linear(mixed, f"{name}.proj_layer"), [mask[:, 1:], keys[:, 1:], values[:, 1:]]

    def __call__(self, image: torch.Tensor, states: list[list[torch.Tensor]]) -> Any:
        x, after = self.encode(image), []
        for i in range(self.layers):
            block = f"net.recurrent_layer.blocks.{i}"
            x = self.norm(x, f"{block}.pre_r_ln")
            attended, state = self.attend(x, f"{block}.r.orc_block", states[i])
            after.append(state)
            x = x + attended
            x = x + self.linear(self.dense(x, f"{block}.mlp0"), f"{block}.mlp1.layer")
        x = self.norm(self.dense(torch.relu(x), "net.lastlayer"), "net.final_ln")
        logits = [
            torch.log_softmax(self.linear(x, f"pi_head.{k}.linear_layer") / 2.0, -1) for k in ("buttons", "camera")
        ]
        return logits, self.linear(x, "value_head.linear"), after

    def empty(self, batch: int) -> list[list[torch.Tensor]]:
        size = self.w["net.final_ln.weight"].shape[0]
        nothing = torch.zeros(batch, self.memory, size)
        mask = torch.zeros(batch, self.memory, dtype=torch.bool)
        return [[mask, nothing, nothing] for _ in range(self.layers)]


def check(folder: str) -> None:
    """The first two chunks of vpt_slim128 are single frames."""
    data = np.load(f"{folder}/vpt_slim128_io.npz")
    network = Network(torch.load(f"{folder}/vpt_slim128.weights", weights_only=True), 8, 128, True)
    states, worst = network.empty(1), 0.0
    for i in (0, 1):
        with torch.inference_mode():
            if data[f"c{i}_first"].any():
                states = network.empty(1)
            logits, _, states = network(torch.from_numpy(data[f"c{i}_img"][:, 0]), states)
        worst = max(worst, float(np.abs(logits[1].numpy() - data[f"c{i}_logits_camera"][:, 0, 0]).max()))
    print(worst)


def main(width: int, batch: int, seconds: float, channels_last: bool) -> None:
    names = Path(__file__).parents[1] / f"tests/golden/state_dict_{width}x.json"
    torch.manual_seed(0)
    tensors = {name: 0.02 * torch.randn(shape) for name, (shape, _) in json.loads(names.read_text()).items()}
    network = Network(tensors, 8 * width, 128, channels_last)
    frames = np.random.default_rng(0).integers(0, 255, (batch, 128, 128, 3)).astype(np.uint8)
    states = network.empty(batch)
    took: list[float] = []
    with torch.inference_mode():
        while len(took) < 4 or sum(took) < seconds:
            begin = time.perf_counter()
            logits, _, states = network(torch.from_numpy(frames), states)
            for head in logits:
                torch.argmax(head - torch.log(-torch.log(torch.rand_like(head))), -1).numpy()
            took.append(time.perf_counter() - begin)
    print(statistics.median(took[1:]))


if __name__ == "__main__":
    if sys.argv[1].startswith("--check="):
        check(sys.argv[1].removeprefix("--check="))
    else:
        main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), "channels_last" in sys.argv[4:])
