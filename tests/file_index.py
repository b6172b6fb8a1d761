"""The page that says what every file holds: `python -m tests.file_index` writes docs/files.md from the docstrings."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "files.md"
# As imports go, from what stands on nothing to what stands on all of it.
FOLDERS = {
    "paths": "Between data and noise.",
    "data": "Data sets, as grain pipelines.",
    "models": "Networks, and what they are made of.",
    "models/flows": "Normalizing flows.",
    "losses": "Objectives.",
    "samplers": "Solvers, one algorithm a file, and what changes a denoiser on its way to one.",
    "metrics": "Numbers about samples, densities and embeddings.",
    "training": "What the scripts are made of.",
    "experiments": "Compositions, trained by name.",
    "reproductions": "Papers' figures and tables, drawn by name.",
    "benchmarks": "Speed and memory, beside other codebases where there are any.",
}
HEAD = """# What every file holds

A file's first line says what it is, and its docstring goes on with the equations that it holds. Those first lines, of
all folders; the scripts stand beside them. `python -m tests.file_index` writes this page.
"""


def first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]


def files(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py")


def page() -> str:
    parts = [HEAD]
    for folder, what in FOLDERS.items():
        parts.append(f"## {folder}\n\n{what}\n")
        parts.append(
            "\n".join(f"- [`{path.name}`](../{folder}/{path.name}) {first_line(path)}" for path in files(folder)) + "\n"
        )
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
