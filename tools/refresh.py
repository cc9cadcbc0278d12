"""Take a finished run's notebooks, figures and results into the tree, ready to be committed."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import nbformat

from lib.record import replicates
from lib.record.files import RECORD, ROOT, read_results
from tools import readme
from tools.notebooks import blocks, claims_of, code_of, names, paths


def committed_form(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop the injected parameters, so that the stored notebook has the cells of its `.py`."""
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default=RECORD)
    profile = parser.parse_args().profile
    run = ROOT / "runs" / profile
    finished = [name for name in names() if (run / "results" / f"{name}.json").exists()]
    if not finished:
        sys.exit(f"no finished notebook under runs/{profile}; run `make book PROFILE={profile}` first")
    (ROOT / "results" / profile).mkdir(parents=True, exist_ok=True)
    for name in finished:
        results = read_results(run / "results" / f"{name}.json")
        shutil.copy2(run / "results" / f"{name}.json", ROOT / "results" / profile / f"{name}.json")
        if profile == RECORD:  # the tree shows the notebooks and figures of the record, and keeps its replicates
            stored = nbformat.read(run / "notebooks" / f"{name}.ipynb", as_version=4)
            nbformat.write(committed_form(stored), paths()[name].with_suffix(".ipynb"))
            _replace_figures(name, results["figures"], run / "figures")
            if any(entry.get("n", 1) > 1 for entry in claims_of(name).values()):  # a later run adds
                _add_replicates(name, run)
        more = ", notebook, figures, replicates" if profile == RECORD else ""
        print(f"{name}: results{more} of {results['provenance']['finished']}")
    if profile == RECORD:
        readme.main()


def _add_replicates(name: str, run: Path) -> None:
    """Keep the replicates that today's code computed; what lies there of older code stays in the run."""
    for function, job in {job.function: job for job in blocks(name, RECORD)}.items():
        code = code_of(job)
        for path in sorted((run / "replicates" / name / function).glob("*.npz")):
            if replicates.read(path)[1]["code"] == code:
                target = ROOT / "results" / RECORD / path.relative_to(run)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target)


def _replace_figures(name, figures, folder) -> None:
    for old in (ROOT / "figures").glob(f"{name}-*"):
        old.unlink()
    (ROOT / "figures").mkdir(exist_ok=True)
    for figure in figures.values():
        for file in figure["files"]:
            shutil.copy2(folder / file, ROOT / "figures" / file)


if __name__ == "__main__":
    main()
