"""Keep the numbers of README.md in step with results/record: scorecard and cost table are written, not typed."""

from __future__ import annotations

import re
import sys

from lib.record import claims, show
from lib.record.files import RECORD, ROOT, read_results
from tools.notebooks import paths

README, TEMPLATES = ROOT / "README.md", ROOT / "tools" / "templates"


def updated(text: str) -> str:
    """Return the README with its generated blocks written anew."""
    results = [read_results(path) for path in sorted((ROOT / "results" / RECORD).glob("[0-9]*.json"))]
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
    for name in ("scorecard", "costs"):
        block = show.TEMPLATES.from_string((TEMPLATES / f"{name}.md").read_text(encoding="utf-8")).render(values)
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)"
        text, found = re.subn(pattern, lambda m, b=block: f"{m[1]}{b}\n{m[2]}", text, flags=re.S)
        if not found:
            sys.exit(f"README.md: the block <!-- {name} --> ... <!-- end {name} --> is missing")
    return text


def main() -> None:
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
