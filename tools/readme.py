"""Keep the numbers of README.md in step with results/cpu: the scorecard and the cost table are written, not typed."""

from __future__ import annotations

import re
import sys

from lib.record import claims, show
from lib.record.files import ROOT, read_results
from tools.notebooks import paths

README = ROOT / "README.md"


SCORECARD = """\
| claim | what the paper says | verdict | measured (required) |
|---|---|---|---|
{% for key, claim in judged.items() %}
{% set first = claim.checks[0] %}
| {{ key }} ({{ claim.entry.paper }}) | {{ claim.entry.claim }} | {{ marks[claim.verdict] }} {{ claim.verdict }} | \
{{ first.what }}: {{ first.text }} ({{ rule(first) }}), n = {{ first.n }} |
{% endfor %}

{{ rest }} further claims are listed as *not tested here* until they are measured.
"""
COSTS = """\
| notebook | minutes on one core | peak memory |
|---|---|---|
{% for one in results %}
| [{{ one.notebook }}]({{ links[one.notebook] }}) | {{ "%.1f"|format(one.provenance.seconds / 60) }} | \
{{ "%.1f"|format(one.provenance.peak_memory_gb) }} GB |
{% endfor %}

Together {{ "%.0f"|format(seconds / 60) }} core minutes on {{ results[0].provenance.hardware.cpu }}.
"""


def updated(text: str) -> str:
    """Return the README with its generated blocks written anew."""
    results = [read_results(path) for path in sorted((ROOT / "results" / "cpu").glob("*.json"))]
    found = {key: value for one in results for key, value in one["claims"].items() if value["checks"]}
    entries = claims.load(ROOT / "claims.yaml")
    values = {
        "judged": {key: found[key] for key in entries if key in found},
        "rest": len(entries) - len(found),
        "results": results,
        "seconds": sum(one["provenance"]["seconds"] for one in results),
        "links": {name: path.with_suffix(".ipynb").relative_to(ROOT) for name, path in paths().items()},
        "marks": claims.MARKS,
        "rule": claims.rule_text,
    }
    for name, template in (("scorecard", SCORECARD), ("costs", COSTS)):
        block = show.TEMPLATES.from_string(template).render(values)
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)"
        text, found = re.subn(pattern, lambda m, b=block: f"{m[1]}{b}\n{m[2]}", text, flags=re.S)
        if not found:
            sys.exit(f"README.md: the block <!-- {name} --> ... <!-- end {name} --> is missing")
    return text


def main() -> None:
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
