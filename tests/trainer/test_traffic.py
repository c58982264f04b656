"""Bytes counted in a program's text, against a count by hand."""

from __future__ import annotations

import pytest

from minestudio_jax.trainer.traffic import traffic_of

_TEXT = """\
HloModule jit_update, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %add = f32[] add(%a, %b)
}

%body.1 (carry: (s32[], f32[64])) -> (s32[], f32[64]) {
  %both = (f32[3]{0}, bf16[64,1]{1,0}) all-reduce(%x, %y), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%sum
  ROOT %part = f32[16]{0} reduce-scatter(%z), channel_id=2, replica_groups=[1,4]<=[4], dimensions={0}, to_apply=%sum
}

%dear (x: f32[4]) -> f32[8] {
  ROOT %gathered = f32[8]{0} all-gather(%x), channel_id=3, replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}
}

%cheap (x: f32[4]) -> f32[8] {
  ROOT %zeros = f32[8]{0} broadcast(%zero)
}

ENTRY %main (p: f32[64]) -> f32[64] {
  %loop = (s32[], f32[64]) while(%init), condition=%cond, body=%body.1, backend_config={"known_trip_count":{"n":"5"}}
  %unknown = (s32[], f32[64]) while(%init), condition=%cond, body=%body.1
  %either = f32[8]{0} conditional(%i, %x, %x), branch_computations={%cheap, %dear}
  ROOT %moved = pred[10]{0} collective-permute-start(%q), source_target_pairs={{0,1}}
}
"""


class Program:
    def as_text(self) -> str:
        return _TEXT


def test_loops_branches_and_all_ways_of_writing_groups_are_counted():
    traffic = traffic_of(Program(), 4)
    assert traffic.sent_bytes == {
        "all-reduce": pytest.approx((5 + 1) * 2 * (3 * 4 + 64 * 2) / 2),
        "reduce-scatter": pytest.approx((5 + 1) * 64 * 4 * 3 / 4),
        "all-gather": pytest.approx(8 * 4 / 2),
        "collective-permute": pytest.approx(10),
    }
    assert traffic.count == {"all-reduce": 6, "reduce-scatter": 6, "all-gather": 1, "collective-permute": 1}
    assert traffic.statements == {"all-reduce": 2, "reduce-scatter": 2, "all-gather": 1, "collective-permute": 1}
