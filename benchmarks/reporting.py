"""What every benchmark says of itself, and where its report goes."""

import os
import platform
import shlex
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("torch", "numpy", "av", "opencv-python-headless", "pillow")


def header(benchmark: str, arguments: list[str], *remarks: str) -> str:
    """The command, the machine and the versions, in Markdown."""
    device = platform.processor() or platform.machine()
    if torch.cuda.is_available():
        device = f"{torch.cuda.get_device_name()} beside {device}"
    command = shlex.join(["python", "-m", f"benchmarks.{benchmark}", *arguments])
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    about = f"{device}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"
    return "\n\n".join([f"`{command}`", "; ".join([about, *remarks])]) + "\n"


def publish(report: str, output: Path | None) -> None:
    """Print the report, and write it to `output` if that is given."""
    print(report)
    if output is not None:
        output.write_text(report.rstrip() + "\n", encoding="utf-8")
