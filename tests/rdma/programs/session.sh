#!/bin/bash
# What the tests of verbs run inside the guest, in one boot: session.sh FOLDER. Each step leaves NAME.out (both streams),
# NAME.code and NAME.seconds there; the tests judge.
set -uo pipefail
folder=$1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
cd "$root" || exit 1
# shellcheck source=/dev/null
source launch/env.sh
# MPI keeps off the ports: its libfabric would open them too, and ends the job where it cannot.
export OMPI_MCA_btl=self,sm,tcp
# By default UCX asks the kernel for a route to the peer, whose address is here this machine's own.
export UCX_IB_ROCE_REACHABILITY_MODE=local_subnet
export PYTHONPATH=$root/src:$root

step() {
  local name=$1 begin=$EPOCHSECONDS code=0
  shift
  timeout -k 5 420 "$@" >"/tmp/$name" 2>&1 || code=$?
  echo $code >"$folder/$name.code"
  echo $((EPOCHSECONDS - begin)) >"$folder/$name.seconds"
  mv "/tmp/$name" "$folder/$name.out" # written at once: small writes to a shared folder are slow
  echo "$name: exit code $code after $((EPOCHSECONDS - begin)) s"
}

exchange() {
  local ranks=(mpirun --allow-run-as-root --oversubscribe --bind-to none -n 2 python -m mpi4py)
  step "$1" "${wrap[@]}" "${ranks[@]}" "$here/exchange.py" "${@:2}"
}

wrap=()
step devices ibv_devinfo
exchange rc
exchange ud 'tls=[ud]'
# Root may lock what it likes; without that right the limit holds.
wrap=(setpriv --bounding-set=-ipc_lock --inh-caps=-ipc_lock prlimit --memlock=65536:65536)
exchange memlock
wrap=()

export XPYD_NICS="rxe0:1 rxe1:1" XPYD_WORKERS_PER_NODE=2 XPYD_LOG_DIR=/tmp/logs
workload=(workload=fixed workload.num_requests=3 workload.input_len=300 workload.output_len=4)
bounds=(faults.detect_s=120 run.drain_timeout_s=120 num_pairs=1 null_control=false run.report=false)
step compare launch/mpirun.sh --hosts localhost compare fabric=ib placement=1p1d placement.allow_shared_node=true \
  model=micro transfer.verify=always "${workload[@]}" "${bounds[@]}" run.root="$folder/runs"

rdma link delete rxe1
exchange port_gone 'net_devices=["rxe1:1"]'
rdma link delete rxe0
exchange all_gone
