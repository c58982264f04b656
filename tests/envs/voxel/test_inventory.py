from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.envs.tasks import Stack
from minestudio_jax.envs.voxel import inventory as inv
from minestudio_jax.envs.voxel import items

DIRT, LOG, PICKAXE = (items.ID[name] for name in ("dirt", "oak_log", "wooden_pickaxe"))

add = jax.jit(inv.add)
remove = jax.jit(inv.remove)


def slots(inventory):
    return [(int(i), int(n)) for i, n in zip(inventory.item, inventory.count, strict=True) if n]


def test_what_one_begins_with_lies_in_order_the_first_in_the_hand():
    inventory = inv.start_inventory({"wooden_pickaxe": 1, "dirt": 70})
    assert slots(inventory) == [(PICKAXE, 1), (DIRT, 64), (DIRT, 6)]
    assert int(inventory.held) == PICKAXE


@pytest.mark.parametrize(("contents", "says"), [({"dirtt": 1}, "no item 'dirtt'"), ({"dirt": 64 * 37}, "36 slots")])
def test_what_cannot_be_is_refused(contents, says):
    with pytest.raises(ValueError, match=says):
        inv.start_inventory(contents)


def test_every_stack_has_a_slot_of_its_own_however_many_are_named():
    named = [Stack(("oak_log",), (1, 1), str(slot)) for slot in range(20)]
    anywhere = [Stack(("dirt",), (1, 1), "random")] * 16
    inventory = inv.drawn_inventory([*anywhere, *named], jax.random.key(0))
    assert slots(inventory) == [(LOG, 1)] * 20 + [(DIRT, 1)] * 16


def test_items_go_on_their_stacks_first_then_into_empty_slots():
    inventory = inv.start_inventory({"oak_log": 3, "dirt": 60})
    inventory, taken = add(inventory, jnp.int32(DIRT), jnp.int32(10))
    assert int(taken) == 10
    assert slots(inventory) == [(LOG, 3), (DIRT, 64), (DIRT, 6)]


def test_a_full_inventory_takes_what_it_can_and_says_so():
    inventory = inv.start_inventory({"oak_log": 64 * 35, "dirt": 60})
    inventory, taken = add(inventory, jnp.int32(DIRT), jnp.int32(10))
    assert int(taken) == 4
    inventory, taken = add(inventory, jnp.int32(PICKAXE), jnp.int32(1))
    assert int(taken) == 0


def test_tools_do_not_stack():
    inventory, _ = add(inv.start_inventory({"wooden_pickaxe": 1}), jnp.int32(PICKAXE), jnp.int32(1))
    assert slots(inventory) == [(PICKAXE, 1), (PICKAXE, 1)]


def test_adding_and_removing_at_random_keeps_the_books():
    rng = np.random.default_rng(0)
    inventory, book = inv.start_inventory({}), {DIRT: 0, LOG: 0, PICKAXE: 0}
    for _ in range(200):
        item = int(rng.choice(list(book)))
        if rng.random() < 0.6:
            inventory, taken = add(inventory, jnp.int32(item), jnp.int32(rng.integers(0, 40)))
            book[item] += int(taken)
        else:
            count = int(rng.integers(0, book[item] + 1))
            inventory = remove(inventory, jnp.int32(item), jnp.int32(count))
            book[item] -= count
        for item, count in book.items():
            assert int(inv.count_of(inventory, item)) == count
        assert (np.asarray(inventory.count) <= items.STACK[np.asarray(inventory.item)]).all()
        assert (np.asarray(inventory.item)[np.asarray(inventory.count) == 0] == items.NONE).all()
    assert sum(book.values()) > 20


def test_a_tool_wears_and_breaks():
    inventory = inv.start_inventory({"wooden_pickaxe": 1, "dirt": 1})
    for use in range(1, 60):
        inventory, broken = inv.wear_held(inventory, jnp.int32(1))
        assert int(broken) == (PICKAXE if use == 59 else items.NONE)
    assert int(inventory.held) == items.NONE
    assert slots(inventory) == [(DIRT, 1)]


def test_only_what_is_in_the_hand_wears_or_is_used_up():
    inventory = dataclasses.replace(inv.start_inventory({"wooden_pickaxe": 1, "dirt": 1}), selected=jnp.int32(1))
    inventory, broken = inv.wear_held(inventory, jnp.int32(100))
    assert int(broken) == items.NONE
    inventory = inv.remove_held(inventory, jnp.bool_(True))
    assert slots(inventory) == [(PICKAXE, 1)]
