"""The suite under several Pythons, each with the oldest and the newest jax that pyproject.toml allows.

    python -m tests.matrix [pytest's arguments]

Of the interpreters python3.11, python3.12, … those that start are taken, or those that PYTHONS names. Each pair has a
virtual environment of its own in .matrix/, in which nothing but jax is pinned.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".matrix"
DEFAULT = ["-n", "2", "--dist", "worksteal", "-m", "not thorough", "-q"]
VERSIONS = "import sys, jax; print('Python', sys.version.split()[0], 'jax', jax.__version__, flush=True)"


def interpreters() -> list[str]:
    named = os.environ.get("PYTHONS", "").split()
    for name in named:
        if not starts(name):
            sys.exit(f"{name}, which PYTHONS names, does not start")
    return named or [name for minor in range(11, 20) if starts(name := f"python3.{minor}")]


def starts(name: str) -> bool:
    found = shutil.which(name)
    return found is not None and subprocess.run([found, "--version"], capture_output=True).returncode == 0


def oldest() -> str:
    """The least jax that the project allows, as a requirement."""
    [needed] = [
        line
        for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        if re.match(r"jax\W", line)
    ]
    return f"jax=={needed.removeprefix('jax>=')}"


def passes(interpreter: str, jax: str, arguments: list[str]) -> bool:
    python = FOLDER / re.sub(r"[^\w.]+", "-", f"{Path(interpreter).name}-{jax}") / "bin" / "python"
    if not python.exists():
        subprocess.run([interpreter, "-m", "venv", python.parent.parent], check=True)
    install = [python, "-m", "pip", "install", "--quiet", "--upgrade", "--upgrade-strategy", "eager"]
    if subprocess.run([*install, "--editable", f"{ROOT}[test]", jax], cwd=ROOT).returncode:
        return False
    subprocess.run([python, "-c", VERSIONS], check=True)
    return subprocess.run([python, "-m", "pytest", *(arguments or DEFAULT)], cwd=ROOT).returncode == 0


def main() -> None:
    outcomes = {}
    for interpreter in interpreters():
        for jax in (oldest(), "jax"):
            print(f"== {interpreter}, {jax}", flush=True)
            outcomes[interpreter, jax] = passes(interpreter, jax, sys.argv[1:])
    for (interpreter, jax), passed in outcomes.items():
        print(f"{interpreter:12} {jax:14} {'passed' if passed else 'FAILED'}")
    sys.exit(0 if outcomes and all(outcomes.values()) else "no interpreter was found" if not outcomes else 1)


if __name__ == "__main__":
    main()
