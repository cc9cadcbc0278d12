"""HTML of the scorecard, the claim cards, the costs and the versions, from the data of one build."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

from lib.record.run import claims

Link = Callable[[str], str]

CHAPTERS = {"RDMD": "rdmd", "ANT": "ant", "SDFT": "sdft", "DDS": "dds", "LaDiffGAN": "ladiffgan", "All": "about"}
NAMES = {"All": "All methods"}


def judged(data: dict[str, Any], claim_id: str) -> tuple[dict[str, Any] | None, str]:
    """Return the judged claim (None where nothing was measured) and the notebook that measured it."""
    for name, results in data["results"].items():
        if claim_id in results["claims"]:
            return results["claims"][claim_id], name
    return None, ""


def verdict(data: dict[str, Any], claim_id: str) -> str:
    """Return the verdict of a claim in this build, judged again from the recorded checks."""
    found, _ = judged(data, claim_id)
    return claims.verdict(found["checks"]) if found else "not tested here"


def counts(data: dict[str, Any]) -> dict[str, int]:
    """Return how many claims have each verdict."""
    words = [verdict(data, claim_id) for claim_id in data["claims"]]
    return {word: words.count(word) for word in claims.VERDICTS}


def by_paper(data: dict[str, Any]) -> dict[str, list[str]]:
    """Return the claim ids of each paper, in the order of claims.yaml."""
    papers: dict[str, list[str]] = {}
    for claim_id, entry in data["claims"].items():
        papers.setdefault(entry["paper"], []).append(claim_id)
    return papers


def summary(data: dict[str, Any]) -> str:
    """Return the counts as a line of badges."""
    items = "".join(f"<li>{claims.badge(word)} <b>{n}</b></li>" for word, n in counts(data).items())
    return f'<ul class="verdict-counts">{items}</ul>'


def scorecard_short(data: dict[str, Any], link: Link) -> str:
    """Return papers by claims: one mark each, linked to the full scorecard."""
    rows = []
    for paper, ids in by_paper(data).items():
        cells = "".join(
            f'<a class="chip verdict-{word.replace(" ", "-")}" href="{link("scorecard")}#claim-{i.lower()}"'
            f' title="{escape(data["claims"][i]["claim"])}" aria-label="{i}: {word}">{claims.MARKS[word]} {i}</a>'
            for i in ids
            for word in [verdict(data, i)]
        )
        name = f'<a href="{link(CHAPTERS[paper])}">{NAMES.get(paper, paper)}</a>'
        rows.append(f'<tr><th scope="row">{name}</th><td><div class="chips">{cells}</div></td></tr>')
    table = f'<table class="scorecard-short"><tbody>{"".join(rows)}</tbody></table>'
    return f'{summary(data)}<div class="table-box">{table}</div>'


def scorecard(data: dict[str, Any], link: Link) -> str:
    """Return every claim with verdict, expected, measured and link, and a filter by paper and verdict."""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Claim", "Verdict", "Expected", "Measured [95 %]"))
    bodies = []
    for paper, ids in by_paper(data).items():
        title = f'<a href="{link(CHAPTERS[paper])}">{NAMES.get(paper, paper)}</a>'
        rows = "".join(_scorecard_row(data, claim_id, link) for claim_id in ids)
        bodies.append(
            f'<tbody data-paper="{paper}">'
            f'<tr class="paper"><th colspan="4" scope="rowgroup">{title}</th></tr>{rows}</tbody>'
        )
    papers = [(paper, NAMES.get(paper, paper)) for paper in by_paper(data)]
    verdicts = [(word, f"{claims.MARKS[word]} {word}") for word in claims.VERDICTS]
    filters = _select("paper", "Paper", papers) + _select("verdict", "Verdict", verdicts)
    return (
        f'{summary(data)}<form class="scorecard-filter" hidden>{filters}<output aria-live="polite"></output></form>'
        f'<div class="table-box"><table class="scorecard"><thead><tr>{head}</tr></thead>{"".join(bodies)}</table></div>'
    )


def _select(name: str, label: str, options: list[tuple[str, str]]) -> str:
    choices = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in options)
    return f'<label>{label} <select name="{name}"><option value="">all</option>{choices}</select></label>'


def _scorecard_row(data: dict[str, Any], claim_id: str, link: Link) -> str:
    entry, word = data["claims"][claim_id], verdict(data, claim_id)
    return (
        f'<tr id="claim-{claim_id.lower()}" data-verdict="{word}">'
        f'<td data-label="Claim"><strong>{claim_id}</strong> <span class="where">{escape(entry["where"])}</span>'
        f"<br>{escape(entry['claim'])}</td>"
        f'<td data-label="Verdict">{claims.badge(word)}</td>'
        f'<td data-label="Expected">{escape(str(entry["expected"]))}</td>'
        f'<td data-label="Measured">{_headline(data, claim_id, link)}</td></tr>'
    )


def _headline(data: dict[str, Any], claim_id: str, link: Link) -> str:
    """Return the first check of a claim with its interval and n, how many checks hold, and the way to the notebook."""
    found, notebook = judged(data, claim_id)
    if not found:
        return '<span class="where">no notebook measures it yet</span>'
    way = f' · <a href="{link(f"notebooks/{notebook}")}#result">notebook</a>'
    if not found["checks"]:
        return f'<span class="where">{escape(found["reason"])}</span>{way}'
    first, held = found["checks"][0], sum(check["holds"] for check in found["checks"])
    return (
        f'<span class="measured">{escape(first["text"])}</span> '
        f"(n = {first['n']}; required {escape(claims.rule_text(first))})"
        f'<br><span class="where">{escape(first["what"])}</span>'
        f"<br>{held} of {len(found['checks'])} checks hold{way}"
    )


def claim_card(data: dict[str, Any], claim_id: str, link: Link) -> str:
    """Return the card of a claim with a link to its notebook, or a short one where nothing was measured."""
    found, notebook = judged(data, claim_id)
    if found:
        way = f'<a href="{link(f"notebooks/{notebook}")}#result">{notebook}</a>'
        what = "Measured in" if found["checks"] else "Its notebook:"
        foot = f'<p class="claim-link">{what} {way}, profile {data["profile"]}.</p>'
        return claims.card(claim_id, found).removesuffix("</div>") + foot + "</div>"
    entry = data["claims"][claim_id]
    return (
        f'<div class="claim-card"><p class="claim-title"><strong>{claim_id}</strong> · {entry["paper"]}, '
        f"{escape(entry['where'])} {claims.badge('not tested here')}</p><p>{escape(entry['claim'])}</p>"
        f'<p class="claim-expected">Expected: {escape(str(entry["expected"]))}</p></div>'
    )


def costs(data: dict[str, Any], link: Link) -> str:
    """Return for each profile that was run: minutes, memory, figures and machine of each notebook."""
    return "".join(_cost_table(profile, runs, set(data["results"]), link) for profile, runs in data["costs"].items())


def _cost_table(profile: str, runs: dict[str, Any], pages: set[str], link: Link) -> str:
    machines = sorted({run["machine"] for run in runs.values()})
    rows = ""
    for name, run in runs.items():
        title = f'<a href="{link(f"notebooks/{name}")}">{name}</a>' if name in pages else name
        minutes, gpu = run["seconds"] / 60, run["peak_gpu_memory_gb"]
        each = claims.number(minutes / run["figures"], 2) if run["figures"] else "–"
        memory = f"{run['peak_memory_gb']:.1f}" + (f" + {gpu:.1f} on the GPU" if gpu else "")
        cells = [claims.number(minutes, 2), str(run["figures"]), each, memory]
        cells += [escape(run["machine"])] if len(machines) > 1 else []
        rows += f"<tr><td>{title}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    total = claims.number(sum(run["seconds"] for run in runs.values()) / 60, 2)
    figures = sum(run["figures"] for run in runs.values())
    heads = [
        "notebook",
        "minutes",
        "figures",
        "minutes a figure",
        "peak memory, GB",
        *["machine"] * (len(machines) > 1),
    ]
    where = f" on {escape(machines[0])}" if len(machines) == 1 else ""
    return (
        f'<p class="cost-title">Profile <code>{profile}</code>: {total} minutes, one after the other{where}</p>'
        f'<div class="table-box"><table class="costs"><thead><tr>{"".join(f"<th>{h}</th>" for h in heads)}</tr></thead>'
        f"<tbody>{rows}</tbody><tfoot><tr><td>all</td><td>{total}</td><td>{figures}</td>"
        f'<td colspan="{len(heads) - 3}"></td></tr></tfoot></table></div>'
    )


def bench(data: dict[str, Any], kind: str) -> str:
    """Return the tables of `make bench` on a cpu or gpu, or that it was not run."""
    found = data.get("bench", {}).get(kind)
    if found is None:
        return f"<p><code>{escape(kind)}</code>: not run for this edition.</p>"
    source = found["provenance"]
    threads = f"{source['cpu']}, {source['threads']} thread{'s' * (source['threads'] > 1)}"
    state = f"{source['commit'][:10]}{' with local changes' * bool(source['dirty'])}"
    tables = "".join(_bench_table(title, rows) for title, rows in found["sections"].items())
    where = [source["gpu"] or threads, source["clock"], f"torch {source['versions']['torch']}", source["finished"]]
    return f"<p>{escape('; '.join(where))}; commit <code>{state}</code>.</p>{tables}"


def _bench_table(title: str, rows: list[dict[str, Any]]) -> str:
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("what", "measured", "goal"))
    body = ""
    for row in rows:
        note = f'<br><span class="where">{escape(row["note"])}</span>' if row["note"] else ""
        mark = {True: ", met", False: ", not met", None: ""}[row["met"]]
        value = f"{claims.number(row['value'])} {escape(row['unit'])}"
        body += f"<tr><td>{escape(row['what'])}{note}</td><td>{value}</td><td>{escape(row['goal'])}{mark}</td></tr>"
    table = f'<table class="bench"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
    return f'<p class="cost-title">{escape(title)}</p><div class="table-box">{table}</div>'


def versions(data: dict[str, Any]) -> str:
    """Return the versions recorded with the results; more than one where notebooks ran under different ones."""
    seen: dict[str, set[str]] = {}
    for results in data["results"].values():
        for name, number in results["provenance"]["versions"].items():
            seen.setdefault(name, set()).add(number)
    rows = "".join(
        f"<tr><td>{name}</td><td>{escape(', '.join(sorted(found)))}</td></tr>" for name, found in seen.items()
    )
    commits = sorted(
        {
            f"{r['provenance']['commit'][:10]}{' with local changes' * bool(r['provenance']['dirty'])}"
            for r in data["results"].values()
        }
    )
    shown = ", ".join(f"<code>{escape(commit)}</code>" for commit in commits)
    return (
        f"<p>Profile <code>{data['profile']}</code>, commit {shown}.</p>"
        '<div class="table-box"><table><thead><tr><th>package</th><th>version</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def figure(found: dict[str, Any], folder: str, caption: str, width: str) -> str:
    """Return both versions of a figure with its caption."""
    size = f' style="max-width:{escape(width)}"' if width else ""
    tags = "".join(
        f'<img class="only-{mode}" alt="{escape(found["alt"])}" src="{folder}{file}" loading="lazy">'
        for mode, file in zip(("light", "dark"), found["files"], strict=True)
    )
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="companion-figure"{size}>{tags}{text}</figure>'
