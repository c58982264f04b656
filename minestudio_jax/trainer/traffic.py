"""What a compiled program sends from device to device, read from its text."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

# Bytes that a device sends in a ring of n, by the bytes of the larger of operand and result.
_SHARE = {
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}
_COLLECTIVE = re.compile(rf" = (\(.*?\)|\S+) ({'|'.join(_SHARE)})(?:-start)?\((.*)")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_ARRAY = re.compile(r"\b([a-z]+)(\d*)(?:e\w+)?\[([\d,]*)\]")
_LOOP = re.compile(r" while\(.*?body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclass
class Traffic:
    """Of one call of a program.

    Attributes:
      sent_bytes: by one device, kind of collective -> bytes, if devices that take part lie in a ring.
      count: how often each kind runs.
      statements: how often each kind stands in the program, loops or not.
    """

    sent_bytes: Counter[str] = field(default_factory=Counter)
    count: Counter[str] = field(default_factory=Counter)
    statements: Counter[str] = field(default_factory=Counter)

    @property
    def total_bytes(self) -> float:
        return sum(self.sent_bytes.values())


def traffic_of(compiled: Any, num_devices: int) -> Traffic:
    """
    Loops of known length count as often as they run, others once; of branches the dearest counts.

    Args:
      compiled: what `jax.jit(...).lower(...).compile()` gives.
      num_devices: that it runs on.
    """
    computations: dict[str, list[str]] = defaultdict(list)
    name = entry = ""
    for line in compiled.as_text().splitlines():
        begins = _COMPUTATION.match(line)
        if begins:
            name = begins.group(1)
            entry = name if line.startswith("ENTRY") else entry
        elif line.startswith("  "):
            computations[name].append(line)
    return _of_computation(entry, computations, num_devices, {})


def _of_computation(
    name: str, computations: dict[str, list[str]], num_devices: int, known: dict[str, Traffic]
) -> Traffic:
    if name in known:
        return known[name]
    total = known[name] = Traffic()
    for line in computations[name]:
        collective = _COLLECTIVE.search(line)
        if collective:
            result, kind, rest = collective.groups()
            _add_collective(total, result, kind, rest, num_devices)
            continue
        branches = _BRANCHES.search(line)
        if branches:
            of_each = [
                _of_computation(branch.strip(" %"), computations, num_devices, known)
                for branch in branches.group(1).split(",")
            ]
            _add(total, max(of_each, key=lambda traffic: traffic.total_bytes), 1)
            continue
        for inner, times in _inner(line):
            _add(total, _of_computation(inner, computations, num_devices, known), times)
    return total


def _inner(line: str) -> Iterator[tuple[str, int]]:
    """Computations that an instruction runs, and how often."""
    loop = _LOOP.search(line)
    if loop:
        trips = _TRIPS.search(line)
        yield loop.group(1), int(trips.group(1)) if trips else 1
    else:
        for called in _CALLED.findall(line):
            yield called, 1


def _add(total: Traffic, part: Traffic, times: int) -> None:
    for kind, number in part.sent_bytes.items():
        total.sent_bytes[kind] += times * number
        total.count[kind] += times * part.count[kind]
        total.statements[kind] += part.statements[kind]


def _add_collective(total: Traffic, result: str, kind: str, rest: str, num_devices: int) -> None:
    size, group = _bytes(result), _group_size(rest, num_devices)
    if kind == "reduce-scatter":
        size *= group
    total.sent_bytes[kind] += size * _SHARE[kind](group)
    total.count[kind] += 1
    total.statements[kind] += 1


def _bytes(shapes: str) -> int:
    """Of all arrays in a text such as (f32[3]{0}, bf16[64,1]{1,0})."""
    return sum(
        math.prod(int(size) for size in sizes.split(",") if size) * max(1, int(bits or 8) // 8)
        for _, bits, sizes in _ARRAY.findall(shapes)
    )


def _group_size(attributes: str, num_devices: int) -> int:
    """Devices that speak to each other, from one of the three ways in which XLA writes it."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    if listed:
        return len(listed.group(1).split(","))
    numbered = re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes)
    if numbered:
        return int(numbered.group(2))
    meshed = re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", attributes)
    if meshed:
        sizes = dict(part.split("=") for part in meshed.group(1).split(","))
        return math.prod(int(sizes[axis.split(":")[0]]) for axis in meshed.group(2).split(","))
    return num_devices
