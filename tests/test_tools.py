"""Which build of torch `make` installs where."""

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "tools" / "install_torch.py"
SPEC = importlib.util.spec_from_file_location("install_torch", PATH)
install_torch = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(install_torch)
PLAIN = f"torch=={install_torch.VERSION}"


@pytest.fixture
def machine(monkeypatch):
    """A machine without torch: `set(gpu, platform, works)` says what it is like."""
    tried = []

    def set_up(*, gpu=False, platform="linux", works=()):
        def attempt(*command):
            tried.append(command)
            return any(all(word in command for word in words) for words in works)

        monkeypatch.setattr(install_torch, "installed_version", lambda: None)
        monkeypatch.setattr(install_torch, "has_nvidia_gpu", lambda: gpu)
        monkeypatch.setattr(install_torch, "succeeds", attempt)
        monkeypatch.setattr(sys, "platform", platform)
        return tried

    return set_up


def test_torch_that_is_there_is_kept(machine, monkeypatch):
    tried = machine()
    monkeypatch.setattr(
        install_torch, "installed_version", lambda: f"{install_torch.VERSION}+cu130"
    )
    assert "already installed" in install_torch.install()
    assert tried == []


@pytest.mark.parametrize("where", [{"gpu": True}, {"platform": "darwin"}])
def test_plain_build_with_a_gpu_and_off_linux(machine, where):
    tried = machine(works=[(PLAIN,)], **where)
    install_torch.install()
    assert [command[-1] for command in tried] == [PLAIN]


def test_cpu_build_that_pip_finds_comes_first(machine):
    tried = machine(works=[(f"{PLAIN}+cpu",)])
    assert "pip is set up for" in install_torch.install()
    assert len(tried) == 1


def test_uv_comes_second(machine):
    tried = machine(works=[("--target",), ("--torch-backend=cpu", PLAIN)])
    assert "uv" in install_torch.install()
    assert [command[-1] for command in tried] == [f"{PLAIN}+cpu", "uv", PLAIN]


def test_plain_build_comes_last(machine):
    tried = machine(works=[("--quiet", PLAIN)])
    assert "no CPU build found" in install_torch.install()
    assert [command[-1] for command in tried] == [f"{PLAIN}+cpu", "uv", PLAIN]


def test_nothing_works(machine):
    machine()
    with pytest.raises(SystemExit, match="could not be installed"):
        install_torch.install()
