"""The house rules that a tool can keep: floors, types, style, the map, the locks, and what must never be in a file."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command, timeout=900):
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL
    )


def program(name):
    return str(Path(sys.executable).with_name(name))


def tracked():
    """Files git tracks, or will: untracked ones that it does not ignore count too."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard")
    if listed.returncode:
        pytest.skip("not a git checkout: nothing says which files are ours")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("mypy",),
        ("lint-imports",),
    ],
    ids=["style", "format", "types", "floors"],
)
def test_tool(command):
    done = run(program(command[0]), *command[1:])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_the_map_is_of_this_commit():
    done = run(sys.executable, "docs/make_map.py", "--check")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-test.lock"])
def test_a_lock_has_hashes_and_no_addresses(name):
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert "--index-url" not in text
    pins = re.findall(r"^[A-Za-z0-9_.\[\],-]+==", text, re.MULTILINE)
    assert len(pins) > 30
    for block in re.split(r"\n(?=[A-Za-z0-9])", text.split("\n", 1)[-1]):
        if "==" in block.splitlines()[0]:
            assert "--hash=sha256:" in block, block.splitlines()[0]


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("requirements.lock", ()),
        ("requirements-test.lock", ("--extra", "s3", "--group", "dev", "-c", "requirements.lock")),
    ],
)
@pytest.mark.timeout(300)
def test_a_lock_follows_from_pyproject(tmp_path, name, extra):
    """Recompiled onto itself: pins are kept, so that a new release elsewhere breaks nothing."""
    uv = program("uv")
    if not Path(uv).exists():
        pytest.skip("uv is not installed in this environment")
    copy = tmp_path / name
    copy.write_text((ROOT / name).read_text())
    flags = ("--quiet", "--generate-hashes", "--no-emit-index-url", "--no-header", "--python-version", "3.11")
    extras = ("--extra", "up", "--extra", "otel")
    try:
        done = run(uv, "pip", "compile", *flags, *extras, *extra, "pyproject.toml", "-o", str(copy), timeout=110)
    except subprocess.TimeoutExpired:
        pytest.skip("no package index has answered in time")
    away = r"dns|connect|network|tempor|timed out|status server error"
    if done.returncode and re.search(away, done.stderr, re.IGNORECASE):
        pytest.skip(f"no package index can be reached: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    strip = re.compile(r"\s+# via.*|^\s+#.*$", re.MULTILINE)
    assert strip.sub("", copy.read_text()) == strip.sub("", (ROOT / name).read_text())


#: Never in a file: the machine of whoever wrote it, an index host, a credential.
FORBIDDEN = {
    "a machine's path": re.compile(r"(?<![\w.])/(?:work/(?:main|shared)|root/\.|home/[a-z]+/)"),
    "an index host": re.compile(r"(?:files\.)?pythonhosted\.org|pypi\.org|registry\.npmjs|deb\.debian\.org"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a credential": re.compile(r"\bnbl_[A-Za-z0-9]{6,}_[A-Za-z0-9_-]{40,}"),
}


@pytest.mark.parametrize("what", sorted(FORBIDDEN))
def test_no_file_holds(what):
    found = []
    for path in tracked():
        if path.suffix in (".svg", ".lock", ".png") or path == Path(__file__):
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in FORBIDDEN[what].finditer(text)]
    assert not found


def test_no_large_or_generated_file_is_tracked():
    heavy = [path for path in tracked() if path.stat().st_size > 1_500_000]
    noise = [path for path in tracked() if "__pycache__" in path.parts or path.suffix in (".pyc", ".log")]
    assert not heavy + noise


def test_the_readme_names_the_test_command_that_ci_runs():
    readme = (ROOT / "README.md").read_text()
    ci = (ROOT / ".ci" / "run").read_text()
    assert "make test" in readme
    assert re.search(r"^make test", ci, re.MULTILINE)


def test_decisions_are_numbered_and_listed():
    pages = sorted(page.name for page in (ROOT / "docs" / "decisions").glob("0*.md"))
    assert [int(name[:4]) for name in pages] == list(range(1, len(pages) + 1))
    listed = (ROOT / "docs" / "decisions" / "README.md").read_text().splitlines()
    for name in pages:
        title = (ROOT / "docs" / "decisions" / name).read_text().partition("\n")[0].removeprefix(f"# {int(name[:4])}. ")
        assert f"- [{name[:4]}]({name}) {title}" in listed


def test_links_between_documents_lead_somewhere():
    pages = [path for path in tracked() if path.suffix == ".md" and "snapshots" not in path.parts]
    assert pages
    dead = []
    for page in pages:
        for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target and not target.startswith("mailto:") and not (page.parent / target).exists():
                dead.append(f"{page.relative_to(ROOT)}: {target}")
    assert not dead, dead
