"""`make` on a machine that is not as it should be: it says what is missing."""

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def clone(tmp_path: Path, root: Path) -> Path:
    """Return a folder with what `make` reads, and no environment yet."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(root / name, tmp_path / name)
    return tmp_path


def fake_python(folder: Path, script: str) -> str:
    path = folder / "fake-python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("word", ["demo", "test", "check", "bench", "lock", "clean"])
def test_help_names_every_word(clone: Path, word: str) -> None:
    assert f"make {word} " in make(clone, "help").stdout


def test_an_old_python_is_refused_with_the_remedy(clone: Path) -> None:
    old = fake_python(clone, 'if [ "$1" = --version ]; then echo Python 3.9.2; else exit 1; fi')
    result = make(clone, "test", f"PYTHON={old}")
    assert result.returncode != 0
    assert "needs Python 3.11 or newer" in result.stderr
    assert "Python 3.9.2" in result.stderr
    assert not (clone / ".venv").exists()


def test_a_python_without_venv_is_refused_with_the_remedy(clone: Path) -> None:
    bare = fake_python(clone, 'case "$2" in *ensurepip*) exit 1;; esac')
    result = make(clone, "test", f"PYTHON={bare}")
    assert result.returncode != 0
    assert "apt install python3-venv" in result.stderr


def test_a_lock_without_uv_says_how_to_get_it(clone: Path) -> None:
    result = make(clone, "lock", "UV=uv-that-is-not-there")
    assert result.returncode != 0
    assert "pip install uv" in result.stderr


def test_the_demo_serves_on_the_port_that_is_asked_for(clone: Path) -> None:
    planned = make(clone, "--dry-run", "demo", "PORT=9123").stdout
    assert "EVENKEEL_HOST=127.0.0.1 EVENKEEL_PORT=9123 .venv/bin/python -m service serve bundles/digits_lt" in planned
    assert "what_to_try.sh runs/digits_lt_samples http://127.0.0.1:9123" in planned
    assert "trainer,service]" in planned


def test_the_demo_says_what_to_try_with_the_pictures_it_wrote(root: Path, tmp_path: Path) -> None:
    (tmp_path / "digit-3-62.png").touch()
    script = ["sh", str(root / "deploy/what_to_try.sh"), str(tmp_path), "http://127.0.0.1:9123"]
    said = subprocess.run(script, capture_output=True, text=True, timeout=10, check=True).stdout
    assert f"--data-binary @{tmp_path}/digit-3-62.png" in said
    assert "'http://127.0.0.1:9123/predict?alpha=1.5'" in said


def test_everything_is_installed_from_the_lock(clone: Path) -> None:
    for word in ("demo", "test", "check"):
        for installer in (".venv/bin/python -m pip", ".venv/bin/uv pip"):
            given = [] if "python" in installer else [f"INSTALLER={installer}"]
            planned = make(clone, "--dry-run", word, *given).stdout.splitlines()
            (line,) = [line for line in planned if "pip install" in line]
            assert line.startswith(f"{installer} install --constraint requirements.lock")
