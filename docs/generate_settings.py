"""Writes the table of all settings into docs/configuration.md: python docs/generate_settings.py"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_type_hints

from minestudio_jax.config import Config

PAGE = Path(__file__).parent / "configuration.md"
BEGIN, END = "<!-- settings begin -->\n", "<!-- settings end -->\n"


def table() -> str:
    """Markdown: one table a section, in the order of the dataclasses."""
    lines = []
    for section in dataclasses.fields(Config):
        defaults = getattr(Config(), section.name)
        types = get_type_hints(type(defaults))
        lines += [f"### {section.name}", "", "| setting | default | meaning |", "|---|---|---|"]
        for f in dataclasses.fields(defaults):
            default, help = _text(getattr(defaults, f.name)), f.metadata["help"]
            if types[f.name] is not bool and f.metadata["choices"]:
                help += f" One of {', '.join(f'`{c}`' for c in f.metadata['choices'])}."
            lines.append(f"| `{section.name}.{f.name}` | {default} | {help.replace('|', chr(92) + '|')} |")
        lines.append("")
    return "\n".join(lines)


def page() -> str:
    """The page with a table that is up to date."""
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table()}{END}{after}"


def _text(value: Any) -> str:
    if value in ("", ()):
        return ""
    if isinstance(value, tuple):
        return "`" + ",".join(map(str, value)) + "`"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


if __name__ == "__main__":
    PAGE.write_text(page())
