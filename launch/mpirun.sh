#!/bin/bash
# Ranks on given hosts through mpirun (Open MPI 4 or 5, MPICH, Intel MPI):
#   launch/mpirun.sh --hosts node1,node2,node3 compare model=tiny placement=2p1d
#   launch/mpirun.sh --hostfile hosts.txt serve placement=1p1d
# The first host gets the client and a worker, every other host a worker: 2P1D is 4 ranks on 3 hosts.
# Without hosts those of a batch job are used. Settings: the top of launch/common.sh, and
#   XPYD_MPIRUN        the mpirun (default: beside the Python, else on PATH)
#   XPYD_MPIRUN_AGENT  a stand-in for ssh, such as launch/agent on the virtual cluster
set -euo pipefail
XPYD_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
source "$XPYD_ROOT/launch/common.sh"

usage="usage: launch/mpirun.sh [--hosts A,B,... | --hostfile FILE] EXPERIMENT [OVERRIDE...]"
lines=
while [[ ${1-} == -* ]]; do
  case $1 in
    --hosts) lines=$(tr , '\n' <<<"${2:?$usage}") ;;
    --hostfile)
      [[ -r ${2:?$usage} ]] || fail "--hostfile $2: no such file"
      lines=$(<"$2")
      ;;
    -h | --help) echo "$usage" && exit 0 ;;
    *) fail "unknown option $1; $usage" ;;
  esac
  shift 2
done
(($# > 0)) || fail "$usage"
if [[ -z $lines && -n ${SLURM_JOB_NODELIST:-} ]]; then
  lines=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
elif [[ -z $lines && -r ${PBS_NODEFILE:-} ]]; then
  lines=$(<"$PBS_NODEFILE")
fi
# Each host once, without comments and slots: the layout of ranks is ours.
mapfile -t hosts < <(awk '{ sub(/#.*/, ""); sub(/:.*/, "") } NF && !seen[$1]++ { print $1 }' <<<"$lines")
((${#hosts[@]} > 0)) ||
  fail "no hosts: give --hosts or --hostfile, or run inside a batch job; for this machine alone: python -m experiments.$1"

# A line per host, in the printf format $1 of host and number of ranks.
host_slots() {
  local host extra=1
  for host in "${hosts[@]}"; do
    # shellcheck disable=SC2059  # the format is the caller's
    printf "$1" "$host" "$((XPYD_WORKERS_PER_NODE + extra))"
    extra=0
  done
}

setup "mpirun-$(date +%Y%m%d-%H%M%S)-$$"
rank_program "$@"
mpirun=${XPYD_MPIRUN:-$(dirname "$XPYD_PYTHON")/mpirun}
[[ -x $mpirun ]] || mpirun=$(command -v mpirun) || fail "no mpirun: load your site's MPI module, or set XPYD_MPIRUN"
agent=${XPYD_MPIRUN_AGENT:+$(realpath "$XPYD_MPIRUN_AGENT")}
# Open MPI 5 names its session by its process id alone: what a killed mpirun left in /tmp would end a later one.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
hostfile=$scratch/hosts
export PRTE_MCA_prte_local_tmpdir_base=${PRTE_MCA_prte_local_tmpdir_base:-$scratch}
export OMPI_MCA_orte_local_tmpdir_base=${OMPI_MCA_orte_local_tmpdir_base:-$scratch}

# What the ranks must find in their environment: ssh passes nothing on.
forwarded=$(compgen -e | grep -E '^(XPYD_|UCX_|OMP_|MKL_|HYDRA_|PYTHON|CUDA_|NCCL_|PATH$|LD_LIBRARY_PATH$|MPI4PY_)')
version=$("$mpirun" --version 2>&1)
case $version in
  *"Open MPI"*)
    host_slots '%s slots=%d\n' >"$hostfile"
    options=(--hostfile "$hostfile" --map-by slot --bind-to none)
    for name in $forwarded; do options+=(-x "$name"); done
    ((EUID == 0)) && options+=(--allow-run-as-root)
    if [[ -n $agent && $version == *"Open MPI) 4"* ]]; then
      options+=(--mca plm rsh --mca plm_rsh_agent "$agent")
    elif [[ -n $agent ]]; then
      options+=(--prtemca plm ssh --prtemca plm_ssh_agent "$agent")
    fi
    ;;
  *HYDRA* | *Intel*) # MPICH's process manager, also Intel MPI's
    host_slots '%s:%d\n' >"$hostfile"
    options=(-f "$hostfile" -genvlist "$(paste -sd, <<<"$forwarded")")
    [[ -z $agent ]] || options+=(-launcher ssh -launcher-exec "$agent")
    ;;
  *) fail "$mpirun is neither Open MPI nor MPICH: $(head -n 1 <<<"$version")" ;;
esac

num_ranks=$((1 + ${#hosts[@]} * XPYD_WORKERS_PER_NODE))
run_ranks "$mpirun" "${options[@]}" -n "$num_ranks" ${XPYD_MPIRUN_ARGS[@]+"${XPYD_MPIRUN_ARGS[@]}"} "${program[@]}"
