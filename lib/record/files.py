"""Results files, and the errors and atomic writes that every module shares; imports nothing heavy."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = 1
PROFILES = ("smoke", "cpu", "gpu", "paper")


class UserError(Exception):
    """An error that one line explains; notebooks show that line instead of a traceback."""

    def _render_traceback_(self) -> list[str]:  # IPython's hook for a custom traceback
        return [f"{type(self).__name__}: {self}"]


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    Raises
    ------
    UserError
        The folder cannot be written.
    """
    raw = data.encode("utf-8") if isinstance(data, str) else data
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UserError(f"cannot write to folder {path.parent}: {error.strerror}; choose another with `out`") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def read_results(path: Path) -> dict[str, Any]:
    """Read a results file.

    Raises
    ------
    UserError
        The file is missing, is not JSON, or was written by a version with another schema.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"results file {path} is missing; run its notebook first") from None
    except json.JSONDecodeError as error:
        raise UserError(f"results file {path} is not JSON (line {error.lineno}); run its notebook again") from None
    found = results.get("schema") if isinstance(results, dict) else None
    if found != SCHEMA:
        raise UserError(f"results file {path} has schema {found}, this version reads {SCHEMA}; run its notebook again")
    return results
