"""What an interpreter has, told as one line of JSON: `python <this file> minerl gym numpy ...`.

Simulator side: the standard library only, Python 3.8 syntax. It is run by `env.python`, which need not have this
package. Nothing is imported: a broken simulator must not break the answer.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from importlib import metadata
from typing import Any, Dict, List, Optional


def package(name: str) -> Optional[Dict[str, Any]]:
    """Version ("" where none is told) and folder of an installed package; None if there is none."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or [])
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = ""
    return {"version": version, "folder": folders[0] if folders else ""}


def main(names: List[str]) -> None:
    # Python puts this file's own folder first, which holds modules named like the simulators they adapt.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    answer = {"version": list(sys.version_info[:3]), "packages": {name: package(name) for name in names}}
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
