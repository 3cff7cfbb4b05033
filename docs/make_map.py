"""Writes docs/map.md: every module with the first line of its docstring, so that a newcomer finds the file."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("nebula_core", "nebula_agent", "nebula_proxy", "nebula_tui")
HEAD = "# Map\n\nEvery module and what it is for, from its own docstring. Written by `make map`; do not edit.\n"


def first_line(path: Path) -> str:
    """Raises SystemExit for a module without a docstring: then nobody can guess what it is for."""
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    if not docstring:
        raise SystemExit(f"{path.relative_to(ROOT)} has no docstring: its first line is its line in docs/map.md")
    return docstring.strip().split("\n\n")[0].replace("\n", " ")


def section(package: str) -> str:
    lines = [f"\n## {package}\n"]
    folder = None
    for path in sorted(
        (ROOT / package).rglob("*.py"), key=lambda path: (path.parent, path.name != "__init__.py", path.name)
    ):
        if path.name == "__init__.py" and not path.read_text().strip():
            continue
        if path.parent != folder:
            folder = path.parent
            name = folder.relative_to(ROOT).as_posix()
            lines.append(f"\n### {name}\n" if folder != ROOT / package else "")
        lines.append(f"- `{path.name}`: {first_line(path)}")
    return "\n".join(lines)


def render() -> str:
    return HEAD + "".join(section(package) for package in PACKAGES) + "\n"


if __name__ == "__main__":
    target = ROOT / "docs" / "map.md"
    if "--check" in sys.argv:
        sys.exit(0 if target.read_text() == render() else "docs/map.md is old: run `make map`")
    target.write_text(render())
