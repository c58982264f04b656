"""Plays the embedded world by keyboard or by script: python -m minestudio_jax.play --task=chop_tree --video=out.mp4

On a terminal the world is drawn with coloured characters and moved in with the keys that it names below the picture.
With --script the keys come from the command line: `--script="forward*20; attack+forward*60; yaw=9*10"` walks a second,
attacks walking for three and turns right by 90 degrees in half a second. A step is keys joined by `+`, with `pitch=`
and `yaw=` in degrees per tick and `craft=` an item, and `*` the number of ticks (of 1/20 s); `;` separates steps.
"""

from __future__ import annotations

import sys

from absl import app, flags, logging

_TASK = flags.DEFINE_string("task", "chop_tree", "Task of the embedded world, by name or path of a .yaml file.")
_PRESET = flags.DEFINE_enum("preset", "vanilla", ["vanilla", "toy"], "Constants of the world; actions last one tick.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the world.")
_SCRIPT = flags.DEFINE_string("script", "", "What to do; empty: the keyboard.")
_VIDEO = flags.DEFINE_string("video", "", "Write what is seen to this .mp4, 640x360, 20 frames a second.")


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        print(f"play: error: unexpected argument {argv[1]!r}", file=sys.stderr)
        return 2
    logging.set_verbosity(logging.WARNING)
    from minestudio_jax.run.playing import Session, check_terminal, parse_script, play_by_keyboard, play_by_script
    from minestudio_jax.utils.xla_flags import configure_cpu_compiler

    configure_cpu_compiler()
    try:
        steps = parse_script(_SCRIPT.value) if _SCRIPT.present else None
        if steps is None:
            check_terminal()
        session = Session(_TASK.value, _PRESET.value, _SEED.value, _VIDEO.value)
        with session:
            if steps is None:
                play_by_keyboard(session)
            else:
                play_by_script(session, steps)
    except (ValueError, OSError, ImportError) as error:
        print(f"play: error: {error}", file=sys.stderr)
        return 2
    print(session.summary())
    return 0


if __name__ == "__main__":
    app.run(main)
