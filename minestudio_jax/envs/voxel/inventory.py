"""The inventory: 36 slots, the first nine of them the hotbar. Pure functions of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minestudio_jax.envs.task_format import one_of
from minestudio_jax.envs.tasks import ANY, EQUIPMENT, NEXT, SLOTS, Stack
from minestudio_jax.envs.voxel import items

HOTBAR = 9


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Inventory:
    """
    Attributes:
      item: int32 [36], what is in each slot; items.NONE where the count is 0.
      count: int32 [36].
      wear: int32 [36], uses of the tool in the slot.
      selected: int32 [], the hotbar's slot in the hand.
    """

    item: Any
    count: Any
    wear: Any
    selected: Any

    @property
    def held(self) -> jax.Array:
        """int32 [], the item in the hand."""
        return self.item[self.selected]


def start_inventory(contents: Mapping[str, int]) -> Inventory:
    """An inventory with item name -> count, one item after the other from the first slot.

    Raises:
      ValueError: there is no such item, or they do not fit.
    """
    item, count = np.zeros(SLOTS, np.int32), np.zeros(SLOTS, np.int32)
    slot = 0
    for name, number in contents.items():
        if name not in items.ID:
            raise ValueError(f"inventory: there is no item {name!r}; known are {', '.join(items.NAMES)}")
        identity = items.ID[name]
        while number > 0:
            if slot == SLOTS:
                raise ValueError(f"inventory: {dict(contents)} does not fit into {SLOTS} slots")
            item[slot], count[slot] = identity, min(number, items.STACK[identity])
            number -= int(count[slot])
            slot += 1
    zeros = jnp.zeros(SLOTS, jnp.int32)
    return Inventory(jnp.asarray(item), jnp.asarray(count), zeros, jnp.int32(0))


def drawn_inventory(stacks: Sequence[Stack], key: jax.Array) -> Inventory:
    """An inventory with stacks: first in the slots that are named, then in random ones, then in the next free ones.

    Args:
      key: of what is drawn.
    """
    named = {stack.slot for stack in stacks}
    free = jnp.array([slot for slot in range(SLOTS) if str(slot) not in named], jnp.int32)
    if ANY in named:
        free = jax.random.permutation(jax.random.fold_in(key, 0), free)
    inventory = start_inventory({})
    order = sorted(stacks, key=lambda stack: (stack.slot == NEXT, stack.slot == ANY))
    drawn = iter(free)
    for number, stack in enumerate(order):
        which, how_many = jax.random.split(jax.random.fold_in(key, number + 1))
        item = jax.random.choice(which, jnp.array([items.ID[name] for name in stack.item], jnp.int32))
        count = jax.random.randint(how_many, (), stack.count[0], stack.count[1] + 1)
        if stack.slot == NEXT:
            inventory, _ = add(inventory, item, count)
            continue
        slot = next(drawn) if stack.slot == ANY else int(stack.slot)
        inventory = dataclasses.replace(
            inventory,
            item=inventory.item.at[slot].set(jnp.where(count > 0, item, items.NONE)),
            count=inventory.count.at[slot].set(count),
        )
    return inventory


def check_stacks(stacks: Sequence[Stack], where: str) -> None:
    """Raises ValueError if an inventory cannot begin with these stacks: no such item or slot, or too many of them."""
    slots = 0
    for stack in stacks:
        for name in stack.item:
            one_of(name, items.NAMES, f"{where}: item")
        if stack.slot in EQUIPMENT:
            raise ValueError(f"{where}: the embedded world has no slot {stack.slot!r}, only 0 to {SLOTS - 1}")
        size = min(int(items.STACK[items.ID[name]]) for name in stack.item)
        if stack.slot != NEXT and stack.count[1] > size:
            raise ValueError(
                f"{where}: {stack.count[1]} of {'/'.join(stack.item)} do not fit into one slot: {size} at most"
            )
        slots += -(-stack.count[1] // size)
    if slots > SLOTS:
        raise ValueError(f"{where}: what it says does not fit into {SLOTS} slots")


def count_of(inventory: Inventory, item: jax.Array | int) -> jax.Array:
    """int32 [], how many of an item there are."""
    return jnp.sum(jnp.where(inventory.item == item, inventory.count, 0))


def add(inventory: Inventory, item: jax.Array, count: jax.Array) -> tuple[Inventory, jax.Array]:
    """Puts items in: on stacks of their kind first, then into empty slots, lower slots first.

    Args:
      item: int32 [].
      count: int32 [], 0 changes nothing.
    Returns:
      The inventory, and how many went in, int32 []; the rest finds no room.
    """
    limit = jnp.asarray(items.STACK)[item]
    same = (inventory.item == item) & (inventory.count > 0)
    empty = inventory.count == 0
    # Slots in the order they are filled: stacks, then empty ones; each takes what those before it leave.
    room = jnp.where(same, limit - inventory.count, 0)
    room_behind = jnp.where(empty, limit, 0)
    taken = _poured(count, room)
    taken_behind = _poured(count - taken.sum(), room_behind)
    new = dataclasses.replace(
        inventory,
        item=jnp.where(taken_behind > 0, item, inventory.item),
        count=inventory.count + taken + taken_behind,
        wear=jnp.where(taken_behind > 0, 0, inventory.wear),
    )
    return new, taken.sum() + taken_behind.sum()


def remove(inventory: Inventory, item: jax.Array | int, count: jax.Array | int) -> Inventory:
    """Takes items out, from higher slots first; there must be enough of them."""
    there = jnp.where(inventory.item == item, inventory.count, 0)
    taken = _poured(jnp.asarray(count), there[::-1])[::-1]
    return _with_count(inventory, inventory.count - taken)


def remove_held(inventory: Inventory, used: jax.Array) -> Inventory:
    """One item less in the hand where `used`, bool []."""
    in_hand = jnp.arange(SLOTS) == inventory.selected
    return _with_count(inventory, inventory.count - (in_hand & used))


def wear_held(inventory: Inventory, uses: jax.Array) -> tuple[Inventory, jax.Array]:
    """Wears the tool in the hand; one that is worn out is gone.

    Args:
      uses: int32 [], 0 changes nothing; so does anything that does not wear.
    Returns:
      The inventory, and the item that broke, int32 [] (NONE if none did).
    """
    held = inventory.held
    durability = jnp.asarray(items.DURABILITY)[held]
    in_hand = (jnp.arange(SLOTS) == inventory.selected) & (durability > 0)
    wear = inventory.wear + jnp.where(in_hand, uses, 0)
    broken = (durability > 0) & (wear[inventory.selected] >= durability)
    worn = dataclasses.replace(inventory, wear=wear)
    after = _with_count(worn, jnp.where(in_hand & broken, 0, inventory.count))
    return after, jnp.where(broken, held, items.NONE)


def _poured(amount: jax.Array, room: jax.Array) -> jax.Array:
    """How much of an amount each slot takes if they are filled in order. int32 [slots]."""
    before = jnp.cumsum(room) - room
    return jnp.clip(amount - before, 0, room)


def _with_count(inventory: Inventory, count: jax.Array) -> Inventory:
    gone = count <= 0
    return dataclasses.replace(
        inventory,
        count=count,
        item=jnp.where(gone, items.NONE, inventory.item),
        wear=jnp.where(gone, 0, inventory.wear),
    )
