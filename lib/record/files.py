"""Results files, and what every module shares: errors in one line, atomic writes, locks; imports nothing heavy."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = 1
PROFILES = ("smoke", "cpu", "gpu", "paper")


class UserError(Exception):
    """An error that one line explains; notebooks show that line instead of a traceback."""

    def _render_traceback_(self) -> list[str]:  # IPython's hook for a custom traceback
        return [f"{type(self).__name__}: {self}"]


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Make `folder` to write to; what the system says against it, a full disk too, becomes one line."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"cannot write to folder {folder}: {why}; choose another with `out`") from None


def writable(folder: Path) -> Path:
    """Return `folder`, made if it was not there, after a try to write in it: refused before the work, not after."""
    with writing(folder):
        tempfile.TemporaryFile(dir=folder).close()
    return folder


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    with writing(path.parent):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data.encode("utf-8") if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield a draft beside `folder` that takes its place by one rename at the end, or is removed after an error."""
    with writing(folder.parent):
        draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield draft
        draft.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def reading(path: Path | str, remedy: str) -> Iterator[None]:
    """Turn what a library raises over a file of weights, in its many ways, into one line that ends with `remedy`."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        why = "missing"
    except Exception as error:
        shapes = any(words in str(error) for words in ("size mismatch", "ignore_mismatched_sizes", "shape"))
        why = "weights have other shapes" if shapes else f"truncated or damaged ({type(error).__name__})"
    else:
        return
    raise UserError(f"{path}: {why}; {remedy}")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`: of several processes one makes it, the others wait."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    with writing(folder.parent):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def read_results(path: Path) -> dict[str, Any]:
    """Read a results file; a `UserError` if it is missing, damaged, or of a version with another schema."""
    with reading(path, "run its notebook"):
        results = json.loads(path.read_text(encoding="utf-8"))
    found = results.get("schema") if isinstance(results, dict) else None
    if found != SCHEMA:
        raise UserError(f"results file {path} has schema {found}, this version reads {SCHEMA}; run its notebook again")
    return results
