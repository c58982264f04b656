"""VPT in float64 against the reference's numbers: the mathematics, where rounding hides nothing."""

from __future__ import annotations

import jax
import pytest

from tests.policies.vpt_golden import check_against_reference

pytestmark = pytest.mark.optimized


@pytest.mark.parametrize("name", ["vpt_tiny", "vpt_slim128"])
def test_golden_io(golden, name):
    with jax.enable_x64(True):
        check_against_reference(golden, name, "float64")


def test_golden_io_in_the_form_for_cpus(golden):
    with jax.enable_x64(True):
        check_against_reference(golden, "vpt_slim128", "float64", for_cpu=True)
