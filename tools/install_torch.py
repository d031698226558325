"""Install the pinned torch into the running interpreter: the CPU build where there is no GPU.

On Linux the registry's own build brings several GB of CUDA libraries, useless without a GPU. Which
build can be had without them depends on where pip and uv are set up to look; no source is named
here, so each way is tried in turn and one line says which was taken.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "2.13.0"
PIP = (sys.executable, "-m", "pip", "install")


def has_nvidia_gpu() -> bool:
    """Whether the NVIDIA driver lists a device."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return False
    listing = subprocess.run([smi, "-L"], capture_output=True, text=True, check=False)
    return listing.returncode == 0 and "GPU " in listing.stdout


def installed_version() -> str | None:
    """The version of torch that is already here, with its build label, or None."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def succeeds(*command: str) -> bool:
    """Run quietly a command that is allowed to fail."""
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return done.returncode == 0


def install_with_pip(requirement: str) -> bool:
    """Install from wherever pip is configured to look."""
    return succeeds(*PIP, "--quiet", requirement)


def install_with_uv(requirement: str) -> bool:
    """Install with uv, which knows where torch's own CPU builds are."""
    with tempfile.TemporaryDirectory() as folder:
        if not succeeds(*PIP, "--quiet", "--target", folder, "uv"):
            return False
        uv = Path(folder) / "bin" / ("uv.exe" if os.name == "nt" else "uv")
        return succeeds(
            str(uv),
            "pip",
            "install",
            "--python",
            sys.executable,
            "--torch-backend=cpu",
            requirement,
        )


def install() -> str:
    """Install torch and return the line that says how; raises SystemExit when nothing worked."""
    present = installed_version()
    if present is not None and present.split("+")[0] == VERSION:
        return f"torch {present} is already installed"
    plain = f"torch=={VERSION}"
    if has_nvidia_gpu():
        ways = [(install_with_pip, plain, "an NVIDIA GPU is here: the registry's build")]
    elif sys.platform != "linux":
        ways = [(install_with_pip, plain, f"the registry's build for {sys.platform} is a CPU one")]
    else:
        ways = [
            (install_with_pip, f"{plain}+cpu", "no NVIDIA GPU: a CPU build that pip is set up for"),
            (install_with_uv, plain, "no NVIDIA GPU: the CPU build, through uv"),
            (install_with_pip, plain, "no NVIDIA GPU, no CPU build found: the registry's build"),
        ]
    for way, requirement, reason in ways:
        if way(requirement):
            return f"torch {VERSION} installed ({reason})"
    raise SystemExit(f"torch {VERSION} could not be installed; try: pip install {plain}")


if __name__ == "__main__":
    print(install())
