"""Machine spread: how far equal replicates lie apart on two machines, from the record and another machine's results.

`python -m tools.machines FOLDER` takes results of the same code and seeds (profile `cpu` or `record`) that another
machine computed, and keeps what they differ by in results/record/machines.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from lib.record.files import RECORD, ROOT, read_results, write_atomic
from tools.compare import collect


def spread(record: dict[str, Any], other: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return claim -> check -> standard deviation between two machines, over the replicates that both have."""
    found: dict[str, dict[str, float]] = {}
    for key in sorted(record.keys() & other.keys()):
        theirs = {check["name"]: check for check in other[key]["checks"] if "values" in check}
        for check in record[key]["checks"]:
            if "values" in check and check["name"] in theirs:
                x, y = (np.array(one["values"]) for one in (check, theirs[check["name"]]))
                n = min(len(x), len(y))
                found.setdefault(key, {})[check["name"]] = float(np.sqrt(((x[:n] - y[:n]) ** 2).mean() / 2))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="results of the other machine")
    folder = parser.parse_args().folder
    record = ROOT / "results" / RECORD
    path = record / "machines.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"machines": [], "spread": {}}
    for key, checks in spread(collect(record), collect(folder)).items():
        had = kept["spread"].setdefault(key, {})
        had.update({name: max(value, had.get(name, 0.0)) for name, value in checks.items()})  # the two farthest apart
    files = [file for place in (record, folder) for file in place.glob("[0-9]*.json")]
    hardware = [read_results(file)["provenance"]["hardware"] for file in files]
    names = {", ".join(one[key] for key in ("cpu", "kernels") if key in one) for one in hardware}
    kept["machines"] = sorted({*kept["machines"], *names})
    write_atomic(path, json.dumps(kept, indent=1, sort_keys=True) + "\n")
    print(f"{path.relative_to(ROOT)}: {sum(map(len, kept['spread'].values()))} checks of {', '.join(kept['machines'])}")


if __name__ == "__main__":
    main()
