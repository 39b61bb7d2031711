#!/bin/bash
# Runs on every rank, before its program: log file, and the network device beside the rank's GPU. Then becomes it.
#   XPYD_NICS  devices by worker of a node, such as "mlx5_0:1 mlx5_1:1"; used in turn, and only where UCX_NET_DEVICES
#              is not set
set -euo pipefail

rank=${PMIX_RANK:-${PMI_RANK:-${OMPI_COMM_WORLD_RANK:?no MPI launcher has started this}}}
local_rank=${SLURM_LOCALID:-${OMPI_COMM_WORLD_LOCAL_RANK:-${MPI_LOCALRANKID:-${PMI_LOCAL_RANK:-0}}}}

if [[ -n ${XPYD_NICS:-} && -z ${UCX_NET_DEVICES:-} && $rank != 0 ]]; then
  read -ra nics <<<"$XPYD_NICS"
  worker=$local_rank
  # On the first node, where ranks and local ranks are the same, the client comes before the workers.
  if ((rank == local_rank)); then worker=$((local_rank - 1)); fi
  export UCX_NET_DEVICES="${nics[worker % ${#nics[@]}]}"
fi

# The first rank speaks for the job; what the others print is kept, and shown when the job fails.
if [[ $rank != 0 && -n ${XPYD_LOG_DIR:-} ]]; then
  mkdir -p "$XPYD_LOG_DIR"
  exec >>"$XPYD_LOG_DIR/rank-$rank.log" 2>&1
fi
trap '' USR1 # the warning that time is nearly up must not end a program which cannot listen yet
exec "$@"
