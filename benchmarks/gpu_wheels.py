"""Which wheels does `gpu_day.py` need on a GPU machine without a network? Lists them, or downloads them.

python3 -m pip list --format=freeze > there.txt                         # on the GPU machine
python benchmarks/gpu_wheels.py --have there.txt --into wheels          # here
python3 -m pip install --no-index --no-deps --target site wheels/*.whl  # there; then PYTHONPATH=site
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

UNUSED = frozenset(
    {"gguf", "imageio-ffmpeg", "jinja2", "moviepy", "opencv-python-headless", "opentimelineio", "starlette"}
    | {"typer", "typst", "uvicorn"}
)
"""What svi-story needs around the engine, none of which `gpu_day.py` runs: 140 MB."""
THERE = {
    "python_version": "3.12",
    "python_full_version": "3.12.3",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "implementation_name": "cpython",
    "os_name": "posix",
}
"""The GPU machine, in the words of requirements' markers."""
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
MOST = 64
"""MiB of wheels together."""


def read_versions(freeze: str) -> dict[str, str]:
    """Name and version of each line `name==version`."""
    pairs = [line.split("==", 1) for line in freeze.splitlines() if "==" in line]
    return {canonicalize_name(name): found.strip() for name, found in pairs}


def needed(have: Mapping[str, str]) -> dict[str, str]:
    """The packages that are missing or too old there, with the versions that are installed here."""
    missing: dict[str, str] = {}
    waiting = list(_requirements("svi-story", {"svi"}))
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        there = have.get(name)
        fits = there is not None and requirement.specifier.contains(there, prereleases=True)
        if not fits and name not in missing and name not in UNUSED:
            missing[name] = version(name)
            waiting += _requirements(name, requirement.extras)
    return missing


def _requirements(name: str, extras: Iterable[str]) -> list[Requirement]:
    """What a package needs there."""
    asked = [{**THERE, "extra": extra} for extra in ("", *extras)]
    all_of_it = [Requirement(text) for text in requires(name) or ()]
    return [one for one in all_of_it if one.marker is None or any(map(one.marker.evaluate, asked))]


def download(packages: Mapping[str, str], folder: Path) -> int:
    """Download the wheels; how many bytes they have together."""
    folder.mkdir(parents=True, exist_ok=True)
    platforms = [f"--platform={name}_x86_64" for name in PLATFORMS]
    names = [f"{name}=={number}" for name, number in packages.items()]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version=3.12", "--implementation=cp", *platforms, "--dest", str(folder)]
    subprocess.run([*command, *names], check=True)
    return sum(wheel.stat().st_size for wheel in folder.glob("*.whl"))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--have", type=Path, required=True, help="`pip list --format=freeze` of the GPU machine"
    )
    parser.add_argument("--into", type=Path, help="download them into this folder")
    chosen = parser.parse_args()
    packages = needed(read_versions(chosen.have.read_text("utf-8")))
    print("\n".join(f"{name}=={number}" for name, number in sorted(packages.items())))
    if "torch" in packages:
        print("torch is missing there, which is too large to carry", file=sys.stderr)
        return 1
    if chosen.into:
        size = download(packages, chosen.into) / 2**20
        print(f"{size:.1f} MiB of at most {MOST}", file=sys.stderr)
        return 0 if size <= MOST else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
