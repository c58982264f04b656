"""One PPO iteration in PyTorch, to compare with: benchmarks/learner.py runs it with --pytorch=INTERPRETER.

    INTERPRETER benchmarks/learner_pytorch.py '{"network": "small", "fragments": 16, "steps": 64, ...}'

The same as `trainer.update` with its default settings: a pass without gradients for values and log-probabilities,
generalised advantages, then epochs of clipped surrogate, value loss and entropy over shuffled batches, contexts with
memory carried, the global norm clipped, AdamW. Data and weights are random. Prints the median seconds of an iteration.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import torch
import torch.nn.functional as nn
from torch import Tensor

State = Any


class Small(torch.nn.Module):
    """`policies/impala.py`: residual stacks, an embedding, a GRU that `first` empties, heads."""

    def __init__(self, size: int, channels: list[int], hidden: int, heads: dict[str, int]) -> None:
        super().__init__()
        inputs, self.convolutions = 3, torch.nn.ModuleList()
        for outputs in channels:
            for ins in (inputs, outputs, outputs, outputs, outputs):
                self.convolutions.append(torch.nn.Conv2d(ins, outputs, 3, padding=1))
            inputs, size = outputs, (size + 1) // 2
        self.embedding = torch.nn.Linear(size * size * inputs, hidden)
        self.norm = torch.nn.LayerNorm(hidden)
        self.inputs, self.recurrent = torch.nn.Linear(hidden, 3 * hidden), torch.nn.Linear(hidden, 3 * hidden)
        self.heads = torch.nn.ModuleDict({name: torch.nn.Linear(hidden, n) for name, n in heads.items()})
        self.value = torch.nn.Linear(hidden, 1)
        self.hidden = hidden

    def initial(self, batch: int) -> State:
        return torch.zeros(batch, self.hidden)

    def forward(self, image: Tensor, first: Tensor, h: State) -> tuple[dict[str, Tensor], Tensor, State]:
        batch, steps = first.shape
        x = image.flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        x = x.contiguous(memory_format=torch.channels_last)
        for i in range(0, len(self.convolutions), 5):
            layers = self.convolutions[i : i + 5]
            x = nn.max_pool2d(layers[0](x), 3, 2, 1)
            for j in (1, 3):
                x = x + layers[j + 1](torch.relu(layers[j](torch.relu(x))))
        x = torch.relu(self.norm(self.embedding(torch.relu(x).flatten(1)))).reshape(batch, steps, -1)
        projected, outputs = self.inputs(x), []
        for t in range(steps):
            h = torch.where(first[:, t, None], 0.0, h)
            r_x, z_x, n_x = projected[:, t].chunk(3, -1)
            r_h, z_h, n_h = self.recurrent(h).chunk(3, -1)
            z = torch.sigmoid(z_x + z_h)
            h = z * h + (1 - z) * torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
            outputs.append(h)
        x = torch.stack(outputs, 1)
        return {k: torch.log_softmax(head(x), -1) for k, head in self.heads.items()}, self.value(x)[..., 0], h


class Convolution(torch.nn.Module):
    """VPT's: normalisation, convolution, ReLU."""

    def __init__(self, inputs: int, outputs: int, norm: bool = True) -> None:
        super().__init__()
        self.norm = torch.nn.GroupNorm(1, inputs) if norm else torch.nn.Identity()
        self.layer = torch.nn.Conv2d(inputs, outputs, 3, padding=1, bias=not norm)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(self.norm(x)))


class VPTBlock(torch.nn.Module):
    """A recurrent block of `policies/vpt.py`."""

    def __init__(self, size: int, heads: int, memory: int) -> None:
        super().__init__()
        self.heads, self.memory = heads, memory
        self.pre, self.mid = torch.nn.LayerNorm(size), torch.nn.LayerNorm(size)
        self.q, self.proj = torch.nn.Linear(size, size), torch.nn.Linear(size, size)
        self.k, self.v = torch.nn.Linear(size, size, bias=False), torch.nn.Linear(size, size, bias=False)
        self.r, self.b = torch.nn.Linear(size, 10 * heads), torch.nn.Parameter(0.2 * torch.randn(10, memory))
        self.mlp0, self.mlp1 = torch.nn.Linear(size, 4 * size, bias=False), torch.nn.Linear(4 * size, size)

    def forward(self, x: Tensor, first: Tensor, state: State) -> tuple[Tensor, State]:
        mask, keys, values = state
        batch, steps, size = x.shape
        x = self.pre(x)
        keys, values = torch.cat([keys, self.k(x)], 1), torch.cat([values, self.v(x)], 1)
        episode = torch.cumsum(first, 1)
        age = self.memory + torch.arange(steps)[:, None] - torch.arange(self.memory + steps)[None]
        window = (age >= 0) & (age < self.memory)
        seen = torch.cat([(episode == 0)[..., None] & mask[:, None], episode[..., None] == episode[:, None]], 2)

        def split(y: Tensor) -> Tensor:
            return y.reshape(batch, -1, self.heads, size // self.heads).transpose(1, 2)

        content = self.r(x).reshape(batch, steps, self.heads, 10).transpose(1, 2)
        by_age = content @ self.b
        bias = by_age.gather(-1, age.clamp(0, self.memory - 1).expand(batch, self.heads, -1, -1)) * window
        logits = split(self.q(x)) @ split(keys).transpose(2, 3) / (size // self.heads) + bias
        weights = torch.softmax(logits.masked_fill(~(seen & window)[:, None], -1e9), -1)
        x = x + self.proj((weights @ split(values)).transpose(1, 2).reshape(batch, steps, size))
        x = x + self.mlp1(torch.relu(self.mlp0(self.mid(x))))
        last = episode == episode[:, -1:]
        mask = torch.cat([mask & (episode[:, -1:] == 0), last], 1)[:, -self.memory :]
        return x, (mask, keys[:, -self.memory :], values[:, -self.memory :])


class VPT(torch.nn.Module):
    """`policies/vpt.py` of some width."""

    def __init__(self, width: int, heads: dict[str, int], memory: int = 128) -> None:
        super().__init__()
        size, inputs, self.stacks = 1024 * width, 3, torch.nn.ModuleList()
        for i, outputs in enumerate((64 * width, 128 * width, 128 * width)):
            self.stacks.append(
                torch.nn.ModuleList(
                    [Convolution(inputs, outputs, i > 0), torch.nn.GroupNorm(1, outputs)]
                    + [Convolution(outputs, outputs) for _ in range(4)]
                )
            )
            inputs = outputs
        flat = 16 * 16 * inputs
        self.dense = torch.nn.Sequential(
            torch.nn.LayerNorm(flat), torch.nn.Linear(flat, 256, bias=False), torch.nn.ReLU(),
            torch.nn.LayerNorm(256), torch.nn.Linear(256, size, bias=False), torch.nn.ReLU(),
        )  # fmt: skip
        self.blocks = torch.nn.ModuleList([VPTBlock(size, 8 * width, memory) for _ in range(4)])
        self.last = torch.nn.Sequential(
            torch.nn.ReLU(), torch.nn.LayerNorm(size), torch.nn.Linear(size, size, bias=False), torch.nn.ReLU(),
            torch.nn.LayerNorm(size),
        )  # fmt: skip
        self.heads = torch.nn.ModuleDict({name: torch.nn.Linear(size, n) for name, n in heads.items()})
        self.value = torch.nn.Linear(size, 1)
        self.size, self.memory = size, memory

    def initial(self, batch: int) -> State:
        nothing = torch.zeros(batch, self.memory, self.size)
        return [(torch.zeros(batch, self.memory, dtype=torch.bool), nothing, nothing) for _ in self.blocks]

    def forward(self, image: Tensor, first: Tensor, state: State) -> tuple[dict[str, Tensor], Tensor, State]:
        x = image.flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        x = x.contiguous(memory_format=torch.channels_last)
        for first_convolution, norm, a, b, c, d in self.stacks:
            x = norm(nn.max_pool2d(first_convolution(x), 3, 2, 1))
            x = x + b(a(x))
            x = x + d(c(x))
        x, after = self.dense(x.flatten(1)).reshape(*first.shape, -1), []
        for block, memory in zip(self.blocks, state, strict=True):
            x, memory = block(x, first, memory)
            after.append(memory)
        x = self.last(x)
        return {k: torch.log_softmax(head(x) / 2, -1) for k, head in self.heads.items()}, self.value(x)[..., 0], after


def log_prob(logits: dict[str, Tensor], action: dict[str, Tensor]) -> Tensor:
    return sum(logits[name].gather(-1, action[name])[..., 0] for name in logits)


def detached(state: State) -> State:
    if isinstance(state, Tensor):
        return state.detach()
    return [tuple(leaf.detach() for leaf in memory) for memory in state]


def iterate(network: Any, initial: Any, optimizer: Any, data: dict[str, Any], s: dict[str, Any]) -> None:
    """One iteration: the pass for the advantages, then the epochs."""
    rows, steps, context, batch = s["fragments"], s["steps"], s["context"], s["batch"]
    old_logp, value = torch.zeros(rows, steps), torch.zeros(rows, steps + 1)
    with torch.no_grad():
        for begin in range(0, rows, batch):
            part, state = slice(begin, begin + batch), initial(batch)
            for t in range(0, steps, context):
                at = slice(t, t + context)
                logits, value[part, at], state = network(data["image"][part, at], data["first"][part, at], state)
                old_logp[part, at] = log_prob(logits, {k: a[part, at] for k, a in data["action"].items()})
            value[part, -1] = network(data["image"][part, -1:], data["first"][part, -1:], state)[1][:, 0]
    advantage, carry = torch.zeros(rows, steps), torch.zeros(rows)
    going = 1.0 - data["ended"].float()
    for t in reversed(range(steps)):
        delta = data["reward"][:, t] + s["discount"] * going[:, t] * value[:, t + 1] - value[:, t]
        carry = delta + s["discount"] * 0.95 * going[:, t] * carry
        advantage[:, t] = carry
    target = advantage + value[:, :-1]
    advantage = (advantage - advantage.mean()) / (advantage.std(unbiased=False) + 1e-8)
    for _ in range(s["epochs"]):
        for part in torch.randperm(rows).split(batch):
            optimizer.zero_grad(set_to_none=True)
            state = initial(batch)
            for t in range(0, steps, context):
                at = slice(t, t + context)
                logits, v, state = network(data["image"][part, at], data["first"][part, at], state)
                state = detached(state)
                logp = log_prob(logits, {k: a[part, at] for k, a in data["action"].items()})
                ratio, a = torch.exp(logp - old_logp[part, at]), advantage[part, at]
                surrogate = torch.maximum(-a * ratio, -a * ratio.clamp(0.8, 1.2))
                entropy = sum(-(head.exp() * head).sum(-1) for head in logits.values())
                loss = surrogate + 0.5 * 0.5 * (v - target[part, at]).square() - 0.01 * entropy
                (loss.mean() * context / steps).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()


def main(s: dict[str, Any]) -> None:
    torch.manual_seed(0)
    heads, size = s["heads"], s["size"]
    network = VPT(1, heads) if s["network"] == "vpt" else Small(size, s["channels"], s["hidden"], heads)
    network = network.to(memory_format=torch.channels_last)
    initial = network.initial
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5)
    called = torch.compile(network) if s["compile"] else network
    shape = (s["fragments"], s["steps"])
    data = {
        "image": torch.randint(0, 255, (shape[0], shape[1] + 1, size, size, 3), dtype=torch.uint8),
        "first": torch.rand(shape[0], shape[1] + 1) < 0.02,
        "action": {k: torch.randint(0, n, (*shape, 1)) for k, n in heads.items()},
        "reward": torch.randn(shape),
        "ended": torch.rand(shape) < 0.02,
    }
    took: list[float] = []
    while len(took) < 1 + s["repeats"]:
        begin = time.perf_counter()
        iterate(called, initial, optimizer, data, s)
        took.append(time.perf_counter() - begin)
    print(statistics.median(took[1:]))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
