#!/usr/bin/env bash
# build_horovod.sh VERSION FOLDER: builds the Horovod wheel for the torch and the mpicc now on PATH into FOLDER.
# Called by setup.sh inside the virtual environment; takes 2 to 7 minutes on 2 cores.
set -euo pipefail
version=$1 folder=$2
die() { echo "setup: $*" >&2; exit 2; }

cxx=${CXX:-g++}
command -v "$cxx" >/dev/null || die "no C++ compiler ($cxx): Horovod is built from source; install g++ (Debian: package g++) or set CXX"
command -v make >/dev/null || die "no make: Horovod is built from source; install make"
include=$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')
[ -e "$include/Python.h" ] || die "no Python.h in $include: Horovod is built from source; install python3-dev (Debian) or the like"
if ! command -v cmake >/dev/null || ! cmake --version | grep -qE ' 3\.'; then
  python -m pip --disable-pip-version-check --quiet install -c constraints.txt cmake  # < 4: gloo's cmake minimum is 2.8.12, which cmake 4 refuses
fi

work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
# Horovod asks for C++14, torch needs C++17: the last -std wins. -g0: a wheel of 1 MB, not 60.
printf '#!/bin/sh\nexec %s "$@" -std=c++17 -g0\n' "$cxx" > "$work/cxx"; chmod +x "$work/cxx"
case $(uname -m) in
  x86_64) arch="-mf16c -mavx -mfma" ;;
  *)      arch="" ;;
esac
started=$SECONDS
CXX=$work/cxx MAKEFLAGS=-j${JOBS:-$(nproc)} HOROVOD_BUILD_ARCH_FLAGS=$arch \
HOROVOD_WITH_MPI=1 HOROVOD_WITH_GLOO=1 HOROVOD_WITH_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 \
  python -m pip --disable-pip-version-check wheel --quiet --no-deps --no-build-isolation --no-binary horovod "horovod==$version" -w "$work/out" \
  > "$work/log" 2>&1 &
build=$!
trap 'kill $build 2>/dev/null || true; rm -rf "$work"' EXIT
while kill -0 $build 2>/dev/null; do
  sleep 1
  (( (SECONDS - started) % 30 )) || echo "setup:   still building Horovod, $((SECONDS - started)) s"
done
if ! wait $build; then
  tail -n 40 "$work/log" >&2
  die "Horovod did not build; the end of its log is above"
fi
mkdir -p "$folder"
mv "$work"/out/horovod-*.whl "$folder/"
echo "setup:   Horovod built in $((SECONDS - started)) s"
