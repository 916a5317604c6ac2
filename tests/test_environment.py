"""scripts/environment.sh with real pip and small wheels in place of the registry: tested versions, fallback, stamps."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import REPOSITORY

pytest.importorskip("pip", reason="the interpreter of the tests has no pip")


def write_wheel(folder: Path, name: str, version: str, *requires: str) -> None:
    """Write an empty package."""
    information = f"{name}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *(f"Requires-Dist: {r}" for r in requires)]
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{information}/METADATA", "\n".join(metadata) + "\n")
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{information}/RECORD", "")


@pytest.fixture
def checkout(tmp_path):
    """A checkout with two packages, `vision` needing exactly its version of `tensors`, and a registry of wheels."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "environment.sh").write_bytes((REPOSITORY / "scripts" / "environment.sh").read_bytes())
    (tmp_path / "requirements.txt").write_text("tensors>=1.0\nvision>=1.0\nsmall-tool>=1.0\n")
    (tmp_path / "constraints.txt").write_text("tensors==1.0\nvision==1.0\nsmall-tool==1.0\n")
    (tmp_path / "registry").mkdir()
    for version in ("1.0", "2.0"):
        write_wheel(tmp_path / "registry", "tensors", version)
        write_wheel(tmp_path / "registry", "vision", version, f"tensors=={version}")
        write_wheel(tmp_path / "registry", "small_tool", version)
    # installs into a folder of its own, newly at each call, and counts the calls
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/usr/bin/env bash\n"
        f'echo "$@" >> "{tmp_path}/calls"\n'
        f'rm -rf "{tmp_path}/installed"\n'
        f'exec "{sys.executable}" "$@" --target "{tmp_path}/installed"\n'
    )
    python.chmod(0o755)
    return tmp_path


def install(checkout: Path, **settings: str) -> subprocess.CompletedProcess:
    local = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(checkout / "registry")}
    return subprocess.run(
        ["bash", "-c", "set -euo pipefail; source scripts/environment.sh; environment requirements.txt"],
        cwd=checkout, env={"PATH": os.environ["PATH"], **local, **settings}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def versions(checkout: Path) -> dict[str, str]:
    found = (path.name.removesuffix(".dist-info").split("-") for path in (checkout / "installed").glob("*.dist-info"))
    return dict(found)


def calls(checkout: Path) -> int:
    return len((checkout / "calls").read_text().splitlines())


def test_the_tested_versions_are_installed_once_and_after_each_change(checkout):
    for _ in range(2):
        finished = install(checkout)
        assert (finished.returncode, finished.stderr) == (0, "")
    assert versions(checkout) == {"tensors": "1.0", "vision": "1.0", "small_tool": "1.0"}
    assert calls(checkout) == 1
    (checkout / "constraints.txt").write_text("tensors==1.0\nvision==1.0\nsmall-tool==2.0\n")
    install(checkout)
    assert versions(checkout) == {"tensors": "1.0", "vision": "1.0", "small_tool": "2.0"}
    (checkout / "requirements.txt").write_text("small-tool>=1.0\n")
    install(checkout)
    assert versions(checkout) == {"small_tool": "2.0"}
    assert calls(checkout) == 3


def test_newest_takes_no_constraints_and_the_tested_ones_come_back(checkout):
    assert install(checkout, NEWEST="1").returncode == 0
    assert versions(checkout) == {"tensors": "2.0", "vision": "2.0", "small_tool": "2.0"}
    assert install(checkout).returncode == 0
    assert versions(checkout) == {"tensors": "1.0", "vision": "1.0", "small_tool": "1.0"}


def test_a_withdrawn_version_falls_back_alone(checkout):
    (checkout / "registry" / "small_tool-1.0-py3-none-any.whl").unlink()
    finished = install(checkout)
    assert finished.returncode == 0
    assert re.findall("^constraints.txt: .*", finished.stdout, re.M) == [
        "constraints.txt: small-tool==1.0 cannot be installed here; taking the newest version that fits"
    ]
    assert versions(checkout) == {"tensors": "1.0", "vision": "1.0", "small_tool": "2.0"}


def test_a_pin_that_needs_a_withdrawn_version_falls_back_too(checkout):
    (checkout / "registry" / "tensors-1.0-py3-none-any.whl").unlink()
    finished = install(checkout)
    assert finished.returncode == 0
    assert re.findall("constraints.txt: (\\S+)", finished.stdout) == ["tensors==1.0", "vision==1.0"]
    assert versions(checkout) == {"tensors": "2.0", "vision": "2.0", "small_tool": "1.0"}


def test_another_failure_is_shown_and_leaves_no_stamp(checkout):
    (checkout / "requirements.txt").write_text("absent>=1.0\n")
    finished = install(checkout)
    assert finished.returncode == 1
    assert "No matching distribution found for absent>=1.0" in finished.stderr
    assert not list((checkout / ".venv").glob(".installed-*"))


def test_every_requirement_has_a_tested_version_within_its_range():
    pins = {}
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            assert requirement.name == canonicalize_name(requirement.name), "environment.sh compares pip's normal form"
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            pins[requirement.name] = specifier.version
    for file in ("requirements.txt", "requirements-dev.txt"):
        for line in (REPOSITORY / file).read_text().splitlines():
            if not line.startswith(("-r", "#")):
                requirement = Requirement(line)
                assert pins[canonicalize_name(requirement.name)] in requirement.specifier, line
