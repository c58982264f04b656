"""What a run needs, before any of it is bought: python -m minestudio_jax.plan --flagfile=... [--devices=64]

Takes the flags of `train`. Compiles the update for so many devices, which need not be there: JAX then makes that many
of the CPU, and memory for what lies between forward and backward pass is that of a CPU's program. Prints parameters,
memory on each device, arithmetic and network traffic of an update, memory of the replay buffer, and how many
environments keep the learner busy.
"""

from __future__ import annotations

from absl import flags

from minestudio_jax.config import Config, ConfigError
from minestudio_jax.run.command_line import run_program

_DEVICES = flags.DEFINE_integer(
    "devices", 0, "Devices of the learner, all hosts together; 0: those that trainer.mesh names, or this machine's."
)
_DEVICE_TFLOPS = flags.DEFINE_float(
    "device_tflops", 0.0, "What one device can do, TFLOP/s; 0: a matrix product on this machine says it."
)
_UTILISATION = flags.DEFINE_float("utilisation", 0.3, "Share of that which an update reaches.")
_ENV_STEPS_PER_S = flags.DEFINE_float("env_steps_per_s", 25.0, "Steps that one environment plays in a second.")


def main(config: Config) -> int:
    for flag, least in ((_DEVICES, 0), (_DEVICE_TFLOPS, 0), (_UTILISATION, 1e-6), (_ENV_STEPS_PER_S, 1e-6)):
        if flag.value < least:
            raise ConfigError(f"--{flag.name}={flag.value} is not {'a number above 0' if least else '0 or more'}")
    import jax

    from minestudio_jax.mesh_shape import named_devices
    from minestudio_jax.run.capacity import Assumptions, report
    from minestudio_jax.run.devices import use_cpu_devices

    # Nothing has looked at the devices yet, though reading policy.vpt_model may have imported JAX before.
    if devices := _DEVICES.value or named_devices(config.trainer.mesh):
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
    else:
        use_cpu_devices(config)
    print(report(config, Assumptions(_DEVICE_TFLOPS.value, _UTILISATION.value, _ENV_STEPS_PER_S.value)))
    return 0


if __name__ == "__main__":
    run_program("plan", main)
