#!/usr/bin/env bash
# Does the device side install alone? Makes an environment as an edge device would have it, and uses it: no torch, no MPI,
# no compiler, Python 3.10 where there is one. Run it as `make check-device`; needs a package index.
#
#   PYTHON=...        the interpreter (default: python3.10 on PATH or of pyenv, else python3)
#   SKIP_AARCH64=1    leave out the look for aarch64 wheels
set -euo pipefail
cd "$(dirname "$0")/.."
SOURCE=$PWD
WORK=$(mktemp -d)
RELAY='' DEVICE=''
finish() {
  for pid in $DEVICE $RELAY; do kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; done
  rm -rf "$WORK"
}
trap finish EXIT
die() { echo "check-device: $*" >&2; exit 1; }
began=$SECONDS
step() { echo "check-device: [$((SECONDS - began)) s] $*"; }
# wait_for SECONDS COMMAND…: until the command succeeds
wait_for() { local end=$((SECONDS + $1)); shift; until "$@"; do [ "$SECONDS" -lt "$end" ] || return 1; sleep 0.1; done; }

pick_python() {
  local each
  for each in "${PYTHON:-}" python3.10 "$HOME"/.pyenv/versions/3.10*/bin/python3.10 python3; do
    if [ -n "$each" ] && "$each" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      echo "$each"; return
    fi
  done
  die "no Python 3.10 or later with venv: install python3-venv, or name one with PYTHON=…"
}
PYTHON=$(pick_python)

step "a new environment from $PYTHON ($("$PYTHON" -V))"
"$PYTHON" -m venv "$WORK/venv"
# A copy: an old build folder in the tree must not find its way into the package.
mkdir "$WORK/source"
cp -r setup.cfg pyproject.toml README.md LICENSE mpinas edge_bridge "$WORK/source/"
export PATH="$WORK/venv/bin:$PATH" CC=/bin/false CXX=/bin/false PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONPATH VIRTUAL_ENV
pip install -qq --only-binary=:all: "$WORK/source[device]" || die "pip install '.[device]' failed (its message is above)"
cd "$WORK"
step "installed: $(pip list --format=freeze 2>/dev/null | tr '\n' ' ')"

python - "$SOURCE" <<'PY' || die "the environment is not what a device should have"
import importlib.util, pathlib, sys
import edge_bridge
wrong = [each for each in ("torch", "mpi4py", "horovod", "onnx", "sklearn") if importlib.util.find_spec(each)]
assert not wrong, f"came with it, and must not: {wrong}"
assert pathlib.Path(sys.argv[1]) not in pathlib.Path(edge_bridge.__file__).parents, "the tree is used, not the package"
PY
step "no torch, no MPI"
# The search's own command is there, too; it says what it lacks.
code=0; said=$(mpinas results . 2>&1) || code=$?
if [ "$code" != 2 ] || [[ $said != "mpinas: error: "*" is not installed here: "* ]]; then
  echo "mpinas ended with $code and said: $said"
  exit 1
fi

edge-bridge --help > /dev/null
for role in relay job device; do edge-bridge keygen "$role" --role "$role" > /dev/null; done
mkdir allowed && cp job.pub device.pub allowed/
# A model without the onnx package: the one that the device side ships.
MODEL=$(python -c 'import edge_bridge.device as d, pathlib; print(pathlib.Path(d.__file__).with_name("reference.onnx"))')
[ -f "$MODEL" ] || die "the reference model is not in the package: setup.cfg, package_data"
for each in edge-bridge-device.service install-device.sh; do
  python -c "import edge_bridge, pathlib, sys; sys.exit(not (pathlib.Path(edge_bridge.__file__).parent / 'deploy/$each').is_file())" \
    || die "deploy/$each is not in the package: setup.cfg, package_data"
done
timeout 120 edge-bridge --log-level warning measure "$MODEL" --json > measured.json || die "measure failed"
python -c 'import json; m = json.load(open("measured.json")); assert m["samples"] >= 64 and m["p50_s"] > 0, m'
step "measured on this machine: p50 $(python -c 'import json; print(json.load(open("measured.json"))["p50_s"] * 1e3)') ms"

touch relay.out device.out
edge-bridge relay --key relay.key --allow allowed > relay.out 2> relay.log & RELAY=$!
wait_for 30 test -s relay.out || die "the relay does not start: $(tail -1 relay.log)"
edge-bridge device BRIDGE.json --key device.key --name dut --state state > device.out 2> device.log & DEVICE=$!
wait_for 60 grep -q "registered dut" device.out || die "the device does not register: $(tail -1 device.log)"
timeout 30 edge-bridge status BRIDGE.json --key job.key > status.out 2>&1 || die "status failed: $(tail -1 status.out)"
grep -q dut status.out || die "status does not show the device: $(cat status.out)"
kill "$DEVICE"; wait "$DEVICE" || die "the device does not end in peace: $(tail -1 device.log)"; DEVICE=''
kill "$RELAY"; wait "$RELAY" || die "the relay does not end in peace: $(tail -1 relay.log)"; RELAY=''
step "relay, device and status work with keys"

# The installer, twice: the second call updates and leaves key and configuration alone.
for each in first second; do
  bash "$SOURCE/edge_bridge/deploy/install-device.sh" --prefix "$WORK/opt" --no-systemd --source "$WORK/source" \
    --python "$PYTHON" --name dut --bridge BRIDGE.json > "install-$each.out" 2>&1 \
    || die "install-device.sh, $each call: $(tail -3 "install-$each.out")"
  cat opt/etc/device.key opt/etc/device.conf > "kept-$each"
done
cmp -s kept-first kept-second || die "the second call of install-device.sh changed the key or the configuration"
[ "$(stat -c %a opt/etc/device.key)" = 600 ] || die "install-device.sh left the key readable"
opt/venv/bin/edge-bridge device --help > /dev/null || die "what install-device.sh installed does not run"
step "install-device.sh works, and works again"

if [ -z "${SKIP_AARCH64:-}" ]; then
  # What a Jetson (Python 3.10, glibc 2.35) would download; a dependency without a wheel fails here.
  python - "$WORK/source/setup.cfg" > wants.txt <<'PY'
import configparser, sys
found = configparser.ConfigParser(interpolation=None)
found.read(sys.argv[1])
print(found["options"]["install_requires"], found["options.extras_require"]["device"])
PY
  platforms=()
  for each in 2014 _2_17 _2_24 _2_26 _2_27 _2_28 _2_31 _2_34 _2_35; do platforms+=(--platform "manylinux${each}_aarch64"); done
  grep -v '^ *#' wants.txt > wants-only.txt
  pip download -qq --only-binary=:all: "${platforms[@]}" --python-version 3.10 --implementation cp --abi cp310 --abi abi3 \
    --abi none -d wheels -r wants-only.txt || die "a dependency has no wheel for aarch64 and Python 3.10"
  step "wheels for aarch64: $(cd wheels && echo *aarch64*)"
fi
step "done"
