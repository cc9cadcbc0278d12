"""Results files, and what every module shares: errors in one line, atomic writes, locks; imports nothing heavy.

What a run makes it marks: a folder of its own holds `MARK`, with the names of its files, and what is being written is
called `DRAFT` and something. Nothing else is ever deleted or replaced.
"""

import errno
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from filelock import FileLock
from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = 1
PROFILES = ("smoke", "cpu", "record", "gpu", "paper")
RECORD = "record"  # the profile whose results are committed and judge the claims
OURS = ".companion"  # what the names of marks, drafts and locks begin with
TRAINING = ".training"  # what the names of drafts end with that hold checkpoints
MARK, DRAFT, LOCK = f"{OURS}.json", f"{OURS}-", f"{OURS}.lock"
SYSTEM = {".DS_Store", "Thumbs.db", "desktop.ini", "@eaDir", "__MACOSX", "lost+found"}  # of nobody
NAMED = 20  # names shown of a longer list


def shown(text: object) -> str:
    """Return a text as any terminal can print it, in one line: file names may hold every byte."""
    return str(text).encode("utf-8", "backslashreplace").decode().replace("\n", "\\n")


def listed(names: Iterable[str]) -> str:
    """Return up to `NAMED` names and how many more there are."""
    names = list(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return shown(", ".join(names[:NAMED])) + more


class UserError(Exception):
    """An error that one line explains; notebooks show that line instead of a traceback."""

    def __init__(self, text: str) -> None:
        super().__init__(shown(text))

    def _render_traceback_(self) -> list[str]:  # IPython's hook for a custom traceback
        return [f"{type(self).__name__}: {self}"]


def tell_of_another_lib() -> None:
    """Say that a `lib` of the user's in the working directory is hidden by this one, which `make setup` puts first."""
    there = [path for path in (Path("lib.py"), Path("lib/__init__.py")) if path.is_file()]
    if there and Path("lib").resolve() != ROOT / "lib":
        print(f"lib: {there[0].resolve()} is hidden here, `import lib` is this companion's; rename yours to use both")


def expanded(path: str | Path, parameter: str) -> Path:
    """Return a path with ~ resolved; refuse one whose home nobody knows."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{parameter}: {path} given, but this user has no home folder; write the path out") from None


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Make `folder` to write to; what the system says against it, a full disk too, becomes one line."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"cannot write to folder {folder}: {why}; choose another with `out`") from None


@contextmanager
def room(folder: Path) -> Iterator[None]:
    """Turn a disk that is full, whoever writes to it, into one line; other errors stay what they are."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", 0) not in (errno.ENOSPC, errno.EDQUOT) and "os error 28" not in str(error):
            raise
        raise UserError(f"{folder}: the disk is full; free some of it, and the same command goes on") from None


def writable(folder: Path) -> Path:
    """Return `folder`, made if it was not there, after a try to write in it: refused before the work, not after."""
    with writing(folder):
        tempfile.TemporaryFile(dir=folder).close()
    return folder


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    with writing(path.parent):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=DRAFT)
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


def foreign(folder: Path) -> list[str]:
    """Return the names of what lies in `folder` and no run put there, by its `MARK`."""
    try:
        made = set(json.loads((folder / MARK).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        made = set()
    return sorted(set(_names(folder)) - made)


def _names(folder: Path) -> list[str]:
    """Return all files below a folder, and the folder's own name if it is a file."""
    if folder.is_file() or folder.is_symlink():
        return [folder.name]
    every = ((path, path.relative_to(folder)) for path in folder.rglob("*"))
    found = (name for path, name in every if path.is_symlink() or not path.is_dir())
    return sorted(n.as_posix() for n in found if n.name not in SYSTEM and not any(p.startswith(OURS) for p in n.parts))


def refuse_foreign(folder: Path) -> None:
    """Refuse to replace a folder that holds files of somebody else."""
    if others := foreign(folder):
        raise UserError(f"{folder}: holds what no run made ({listed(others)}); move it, or name another folder")


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield a draft beside `folder` that takes its place by renames at the end, or is removed after an error.

    A folder in its place that holds anything but an earlier one's files is refused.
    """
    refuse_foreign(folder)
    with writing(folder.parent):
        draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=DRAFT))
    old = draft.with_name(f"{draft.name}-old")
    try:
        with room(folder.parent):
            yield draft
            write_atomic(draft / MARK, json.dumps(_names(draft)))
        draft.chmod(0o755)
        refuse_foreign(folder)
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)
    finally:
        for rest in (draft, old):
            shutil.rmtree(rest, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Delete the unfinished drafts that killed runs left in a folder nobody else works in; checkpoints stay."""
    for path in folder.glob(f"{DRAFT}*"):
        if path.name.endswith(TRAINING):
            continue
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def refuse_occupied(folder: Path) -> None:
    """Refuse a folder in which a job is running."""
    if (folder / LOCK).is_file():
        with (folder / LOCK).open(encoding="utf-8") as file:
            _alone_with(file, folder)


def _alone_with(file: IO[str], folder: Path) -> None:
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        what = f"{folder}: a job is running in it ({file.read()})"
        raise UserError(f"{what}; wait for its end, or name another folder") from None
    except OSError:
        pass  # a disk over the network that knows no locks


@contextmanager
def occupied(folder: Path, member: bool = False) -> Iterator[None]:
    """Hold `folder` for a job: a second one is refused as long as any process of the first lives, each a `member`."""
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        if not member:
            _alone_with(file, folder)
            file.truncate(0)
            file.write(f"process {os.getpid()} of {platform.node()}, since {datetime.now():%Y-%m-%d %H:%M:%S}")
            file.flush()
        with suppress(OSError):
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_SH)
        yield


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
