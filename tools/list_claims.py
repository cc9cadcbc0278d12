"""One line a claim on stdout: id, profile, verdict, expected, measured, n (tab separated)."""

from __future__ import annotations

import argparse
import signal

from lib.record import claims
from lib.record.files import RECORD, ROOT
from tools.compare import collect


def main() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `make claims | head` ends quietly
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default=RECORD)
    profile = parser.parse_args().profile
    judged = collect(ROOT / "results" / profile) | collect(ROOT / "runs" / profile / "results")  # a newer run wins
    print("\t".join(("id", "profile", "verdict", "expected", "measured", "n")))
    for key, entry in claims.load(ROOT / "claims.yaml").items():
        if key in judged and judged[key]["checks"]:
            first = judged[key]["checks"][0]
            row = (key, profile, judged[key]["verdict"], claims.rule_text(first), first["text"], str(first["n"]))
        else:
            row = (key, profile, "not tested", str(entry["expected"]), "-", "0")
        print("\t".join(row))


if __name__ == "__main__":
    main()
