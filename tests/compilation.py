"""How tests compile: environment variables of every process of theirs."""

from __future__ import annotations

from minestudio_jax.utils.xla_flags import with_cpu_options

# Most programs here run once, and compiling is what takes time: it is done without most optimisations, and by the older of
# XLA's two emitters of fused code, which then takes half as long as the newer one.
QUICK_COMPILATION = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    "XLA_FLAGS": with_cpu_options("--xla_cpu_use_fusion_emitters=false"),
}
