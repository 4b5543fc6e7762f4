#!/usr/bin/env bash
# demo.sh RANKS RUN: simulates recordings in both published layouts (once), then searches. Called by `make demo`.
set -euo pipefail
cd "$(dirname "$0")/.."
ranks=$1 run=$2 data=runs/demo-data
[ -e $data/train.hdf5 ] || mpinas data simulate $data/train.hdf5 --layout v1.0 --objects T1,T2,T3,T4,T5,T6,T7,T8 --layers 5 --lines 15 --seed 1
[ -e $data/test ] || { rm -rf $data/test.part; mpinas data simulate $data/test.part --layout v1.1 --objects U1,U2,U3,U4 --layers 3 --lines 15 --seed 2 | sed "s/test.part/test/"; mv $data/test.part $data/test; }
set -x
mpirun --oversubscribe -n "$ranks" python -m mpinas search examples/demo.toml --run "$run"
mpinas results "$run"
