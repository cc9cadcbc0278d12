"""The project as a whole: one set of versions, no path or host of a machine, every module used and documented."""

import ast
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from lib.record.files import ROOT

LOCKED = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", flags=re.M)


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def tracked():
    done = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]


def test_environment_pyproject_and_lock_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lock = (ROOT / "requirements.lock").read_text()
    locked = {normal(name): version for name, version in LOCKED.findall(lock)}
    for line in [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]:
        wanted = Requirement(line)
        version = locked[normal(wanted.name)]
        assert wanted.specifier.contains(version, prereleases=True), f"{line}, but the lock has {version}"
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in environment if isinstance(entry, dict))
    assert pip == ["--requirement requirements.lock"]
    python = next(entry for entry in environment if str(entry).startswith("python"))
    assert SpecifierSet(python.removeprefix("python")) == SpecifierSet(project["project"]["requires-python"])


def test_this_environment_has_the_locked_versions():
    from importlib.metadata import version

    lock = (ROOT / "requirements.lock").read_text()
    for name, locked in LOCKED.findall(lock):
        if normal(name) in {"torch", "diffusers", "numpy", "matplotlib", "jupyter-book", "papermill", "pot"}:
            assert version(name).split("+")[0] == locked


@pytest.mark.parametrize("minor", [11, 12, 13])
def test_lock_covers_the_python_versions(minor):
    lock = (ROOT / "requirements.lock").read_text()
    from packaging.markers import Marker

    environment = {"python_version": f"3.{minor}", "python_full_version": f"3.{minor}.1", "sys_platform": "linux"}
    for line in re.findall(r"^(?:torch|numpy|jupyter-book|snakemake)==.*$", lock, flags=re.M):
        marker = line.partition(";")[2].strip(" \\")
        assert not marker or Marker(marker).evaluate(environment), line


def test_no_path_or_host_of_a_machine_is_committed():
    forbidden = re.compile(
        r"/home/\w|/root/|/Users/\w|/work/|/tmp/[\w.]|/mnt/\w|files\.pythonhosted|pypi\.org|registry\.npmjs|deb\.debian"
    )
    text = {".py", ".ipynb", ".md", ".yml", ".yaml", ".toml", ".json", ".lock", ".cff", ".svg", ".css", ""}
    skip = {ROOT / "tests" / "test_project.py"}
    for path in tracked():
        if path.suffix in text and path not in skip and "_static" not in path.parts:
            found = forbidden.search(path.read_text(encoding="utf-8"))
            assert not found, f"{path.relative_to(ROOT)}: {found.group()}"


@pytest.mark.parametrize("path", sorted((ROOT / "lib").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_stay_small_and_public_functions_are_documented(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 350, "a module of lib has at most 350 lines"
    for node in ast.parse("\n".join(lines)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.stem}.{node.name} has no docstring"
        module = node.module if isinstance(node, ast.ImportFrom) and node.module else ""
        assert not module.startswith(("notebooks", "tools")), "lib never imports from what is above it"


@pytest.mark.parametrize("target", ["help", "claims"])
def test_make_prints(target):
    done = subprocess.run(["make", "-s", target], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    if target == "help":
        for name in ("book", "test", "lab", "preview", "refresh", "compare", "claims", "bench"):
            assert any(line.split()[:2] == ["make", name] for line in lines)
    else:
        assert lines[0].split("\t") == ["id", "profile", "verdict", "expected", "measured", "n"]
        assert len(lines) == 1 + len(yaml.safe_load((ROOT / "claims.yaml").read_text()))


def test_unknown_profile_is_refused_by_name():
    command = [sys.executable, "-m", "tools.run", "--profile", "huge"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.strip() == "PROFILE: 'huge' given; one of smoke, cpu, record, gpu, paper"
