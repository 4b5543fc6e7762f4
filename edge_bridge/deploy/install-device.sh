#!/usr/bin/env bash
# Installs the device agent on an edge device: environment, key, configuration, service. Run it again to update; what is
# there already (key, configuration, results) stays. As root a system service under /opt/edge-bridge, else a service of
# your own under ~/.local/share/edge-bridge.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: install-device.sh [options]
  --bridge FILE     BRIDGE.json of the relay: a file here (copied), or LOGIN:PATH (fetched by ssh at each start)
  --ssh LOGIN       reach the relay through ssh
  --name NAME       name of the device profile, and in its key (default: the host's)
  --options TEXT    further options of `edge-bridge device`, such as "--provider tensorrt" (at the first call; later in
                    device.conf, which stays)
  --onnxruntime X   a wheel or requirement to install in place of onnxruntime (NVIDIA's onnxruntime-gpu)
  --source X        what pip installs: a checkout or a wheel (default: the checkout that this script lies in)
  --python X        the interpreter (default: python3), 3.10 or later
  --prefix DIR      put everything below DIR
  --no-systemd      install no service; the unit is left in the prefix
  --dry-run         say what would be done, and do nothing
TEXT
}
die() { echo "install-device: $*" >&2; exit 2; }
say() { echo "install-device: $*"; }

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
BRIDGE='' LOGIN='' NAME=$(uname -n) OPTIONS='' ONNXRUNTIME='' SOURCE='' PYTHON=python3 PREFIX='' SYSTEMD=yes DRY=''
while [ $# -gt 0 ]; do
  case $1 in
    --no-systemd) SYSTEMD=''; shift; continue ;;
    --dry-run) DRY=yes; shift; continue ;;
    -h|--help) usage; exit 0 ;;
  esac
  [ $# -ge 2 ] || die "$1 wants a value, or is no option (--help shows them)"
  case $1 in
    --bridge) BRIDGE=$2 ;; --ssh) LOGIN=$2 ;; --name) NAME=$2 ;; --options) OPTIONS=$2 ;;
    --onnxruntime) ONNXRUNTIME=$2 ;; --source) SOURCE=$2 ;; --python) PYTHON=$2 ;; --prefix) PREFIX=$2 ;;
    *) die "$1 is no option (--help shows them)" ;;
  esac
  shift 2
done
case $NAME in ''|*[!A-Za-z0-9._-]*) die "name '$NAME': letters, digits, dots, dashes and underscores only" ;; esac
case "$LOGIN$OPTIONS$BRIDGE" in *[\"\\\$\`]*) die "--ssh, --options and --bridge must not hold quotes, \\ or \$" ;; esac

# --- where things go
SYSTEM=''
if [ -n "$PREFIX" ]; then
  case $PREFIX in /*) ;; *) PREFIX=$PWD/$PREFIX ;; esac
  CONF=$PREFIX/etc STATE=$PREFIX/state
elif [ "$(id -u)" = 0 ]; then
  PREFIX=/opt/edge-bridge CONF=/etc/edge-bridge STATE=/var/lib/edge-bridge SYSTEM=yes
else
  PREFIX=$HOME/.local/share/edge-bridge CONF=$HOME/.local/share/edge-bridge/etc STATE=$HOME/.local/state/edge-bridge/agent
fi
case $PREFIX in *[[:blank:]]*) die "prefix '$PREFIX' holds blanks: choose another" ;; esac
VENV=$PREFIX/venv
if [ -n "$SYSTEM" ]; then UNIT=/etc/systemd/system/edge-bridge-device.service CTL=(systemctl)
else UNIT=$HOME/.config/systemd/user/edge-bridge-device.service CTL=(systemctl --user); fi
[ -n "$SYSTEMD" ] || UNIT=$PREFIX/edge-bridge-device.service
if [ -n "$SYSTEMD" ] && ! command -v systemctl >/dev/null; then die "there is no systemd here: give --no-systemd"; fi
if [ -z "$SOURCE" ]; then
  if [ -f "$HERE/../../setup.cfg" ]; then SOURCE=$(cd "$HERE/../.." && pwd)
  else die "this script lies in no checkout: give --source, the checkout or the wheel to install"; fi
fi
"$PYTHON" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
  || die "$PYTHON is not a Python 3.10 or later that can make environments: apt-get install python3-venv, or give --python"

run() { if [ -n "$DRY" ]; then printf '+'; printf ' %q' "$@"; echo; else "$@"; fi; }
# put FILE MODE: standard input becomes the file
put() {
  if [ -n "$DRY" ]; then echo "+ write $1 (mode $2)"; cat >/dev/null; return; fi
  cat > "$1.new"; chmod "$2" "$1.new"; mv "$1.new" "$1"
}

# --- the environment
say "environment $VENV"
run mkdir -p "$PREFIX" "$CONF"
[ -x "$VENV/bin/python" ] || run "$PYTHON" -m venv "$VENV"
if [ -n "$ONNXRUNTIME" ]; then
  # Both packages fill the same folder: two of them, or an upgrade of one by the other, leave a mixture.
  if [ -x "$VENV/bin/python" ]; then run "$VENV/bin/python" -m pip uninstall -q -y onnxruntime onnxruntime-gpu; fi
  run "$VENV/bin/python" -m pip install -q --upgrade "$SOURCE" h5py "$ONNXRUNTIME"
elif [ -x "$VENV/bin/python" ] && "$VENV/bin/python" -m pip show -q onnxruntime-gpu 2>/dev/null; then
  say "onnxruntime-gpu stays as it is; --onnxruntime replaces it"
  run "$VENV/bin/python" -m pip install -q --upgrade --only-binary=:all: "$SOURCE" h5py
else
  run "$VENV/bin/python" -m pip install -q --upgrade --only-binary=:all: "${SOURCE}[device]"
fi

# --- the key is made here and its secret half never leaves this machine
if [ -e "$CONF/device.key" ]; then say "key $CONF/device.key stays"
else run "$VENV/bin/edge-bridge" keygen "$CONF/device" --role device --name "$NAME"; fi

# --- what the service is told
case $BRIDGE in
  '') TOLD=$CONF/BRIDGE.json ;;
  *:*) TOLD=$BRIDGE ;;
  *) [ -f "$BRIDGE" ] || die "$BRIDGE is not there: copy the BRIDGE.json that \`edge-bridge relay\` wrote, or give LOGIN:PATH"
     TOLD=$CONF/BRIDGE.json
     run install -m 644 "$BRIDGE" "$TOLD" ;;
esac
case $TOLD in *[[:blank:]]*) die "'$TOLD' holds blanks: choose another" ;; esac
WANTED="BRIDGE=$TOLD
OPTIONS=--name $NAME${LOGIN:+ --ssh $LOGIN}${OPTIONS:+ $OPTIONS}"
if [ -e "$CONF/device.conf" ] && [ "$(cat "$CONF/device.conf")" != "$WANTED" ]; then
  say "configuration $CONF/device.conf stays; this call would have written:"
  echo "$WANTED"
else echo "$WANTED" | put "$CONF/device.conf" 644; fi

# --- the service
unit() {
  local groups='' each
  for each in video render; do if getent group "$each" >/dev/null; then groups="$groups $each"; fi; done
  if [ -n "$SYSTEM" ]; then sed "s|^SupplementaryGroups=.*|SupplementaryGroups=${groups# }|" "$HERE/edge-bridge-device.service"; return; fi
  sed -e '/^# -- system service only/,/^# -- end/d' -e 's|^WantedBy=.*|WantedBy=default.target|' \
    -e '/network-online/d' -e "s|/opt/edge-bridge/venv|$VENV|; s|/etc/edge-bridge|$CONF|g; s|/var/lib/edge-bridge|$STATE|g" \
    "$HERE/edge-bridge-device.service"
}
if [ -n "$SYSTEM" ]; then
  id edge-bridge >/dev/null 2>&1 \
    || run useradd --system --user-group --home-dir "$STATE" --shell /usr/sbin/nologin edge-bridge
  run install -d -m 700 -o edge-bridge -g edge-bridge "$STATE"
  run chown -R root:root "$CONF"
  run chown edge-bridge:edge-bridge "$CONF/device.key"
else
  run mkdir -p "$STATE"; run chmod 700 "$STATE"
fi
run mkdir -p "$(dirname "$UNIT")"
unit | put "$UNIT" 644
if [ -n "$SYSTEMD" ]; then
  run "${CTL[@]}" daemon-reload
  run "${CTL[@]}" enable edge-bridge-device
  if [ -e "$TOLD" ] || [ "$TOLD" != "$CONF/BRIDGE.json" ]; then run "${CTL[@]}" restart edge-bridge-device; fi
  [ -n "$SYSTEM" ] || say "for a start without your login, once: loginctl enable-linger"
fi

if [ -n "$DRY" ]; then say "a dry run: nothing was done"; exit 0; fi
say "installed. To do, if not done:"
say "  add this line to the relay's allow-list:"; cat "$CONF/device.pub"
[ "$TOLD" != "$CONF/BRIDGE.json" ] || [ -e "$TOLD" ] || say "  copy the relay's BRIDGE.json to $TOLD"
if [ -n "$SYSTEMD" ]; then say "  look: ${CTL[*]} status edge-bridge-device; journalctl $([ -n "$SYSTEM" ] || echo "--user ")-u edge-bridge-device"
else say "  start: $VENV/bin/edge-bridge device $TOLD --key $CONF/device.key --state $STATE $(echo "$WANTED" | sed -n 's/^OPTIONS=//p')"; fi
