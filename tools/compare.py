"""Which claims changed verdict or number between two sets of results (committed against the latest run by default)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lib.record.files import RECORD, ROOT, read_results


def collect(folder: Path) -> dict[str, Any]:
    """Return claim id -> judged claim over every results file of a folder."""
    files = sorted(folder.glob("[0-9]*.json"))
    return {key: judged for path in files for key, judged in read_results(path)["claims"].items()}


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return a line for each claim or check whose verdict or number differs."""
    lines = []
    for key in sorted(old | new):
        if key not in old or key not in new:
            lines.append(f"{key}: only in the {'latest run' if key in new else 'committed results'}")
            continue
        if old[key]["verdict"] != new[key]["verdict"]:
            lines.append(f"{key}: {old[key]['verdict']} -> {new[key]['verdict']}")
        before = {check["name"]: check for check in old[key]["checks"]}
        for check in new[key]["checks"]:
            was = before.get(check["name"])
            if was is None or was["text"] != check["text"]:
                said = was["text"] if was else "absent"
                lines.append(f"{key}.{check['name']}: {said} -> {check['text']}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default=RECORD)
    parser.add_argument("--old", type=Path, help="folder of results (default results/PROFILE)")
    parser.add_argument("--new", type=Path, help="folder of results (default runs/PROFILE/results)")
    arguments = parser.parse_args()
    old = collect(arguments.old or ROOT / "results" / arguments.profile)
    new = collect(arguments.new or ROOT / "runs" / arguments.profile / "results")
    if not new:
        sys.exit(f"no results of a run; run `make book PROFILE={arguments.profile}` first")
    print("\n".join(changes(old, new)) or f"no claim changed ({len(new)} compared)")


if __name__ == "__main__":
    main()
