"""Keep the numbers of README.md in step with results/cpu: the scorecard and the cost table are written, not typed."""

from __future__ import annotations

import re
import sys

from lib.record import claims
from lib.record.files import read_results
from tools.notebooks import ROOT, paths

README = ROOT / "README.md"


def scorecard(results: list[dict]) -> str:
    """Return the tested claims as a Markdown table: id, claim, verdict, headline number."""
    judged = {key: value for one in results for key, value in one["claims"].items() if value["checks"]}
    entries = claims.load(ROOT / "claims.yaml")
    rows = ["| claim | what the paper says | verdict | measured (required) |", "|---|---|---|---|"]
    for key, entry in entries.items():
        if key in judged:
            first = judged[key]["checks"][0]
            verdict = judged[key]["verdict"]
            number = f"{first['what']}: {first['text']} ({claims.rule_text(first)}), n = {first['n']}"
            rows.append(
                f"| {key} ({entry['paper']}) | {entry['claim']} | {claims.MARKS[verdict]} {verdict} | {number} |"
            )
    rest = len(entries) - len(judged)
    return "\n".join(rows) + f"\n\n{rest} further claims are listed as *not tested here* until they are measured."


def costs(results: list[dict]) -> str:
    """Return minutes and memory of each notebook at the default profile as a Markdown table."""
    rows = ["| notebook | minutes on one core | peak memory |", "|---|---|---|"]
    for one in results:
        used = one["provenance"]
        minutes, memory = used["seconds"] / 60, used["peak_memory_gb"]
        link = paths()[one["notebook"]].with_suffix(".ipynb").relative_to(ROOT)
        rows.append(f"| [{one['notebook']}]({link}) | {minutes:.1f} | {memory:.1f} GB |")
    total = sum(one["provenance"]["seconds"] for one in results) / 60
    return "\n".join(rows) + f"\n\nTogether {total:.0f} core minutes on {results[0]['provenance']['hardware']['cpu']}."


def updated(text: str) -> str:
    """Return the README with its generated blocks written anew."""
    results = [read_results(path) for path in sorted((ROOT / "results" / "cpu").glob("*.json"))]
    for name, block in (("scorecard", scorecard(results)), ("costs", costs(results))):
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)"
        text, found = re.subn(pattern, lambda m, b=block: f"{m[1]}{b}\n{m[2]}", text, flags=re.S)
        if not found:
            sys.exit(f"README.md: the block <!-- {name} --> ... <!-- end {name} --> is missing")
    return text


def main() -> None:
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
