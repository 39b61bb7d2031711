# shellcheck shell=bash disable=SC2034  # what is set here is read by the scripts
# What the launch scripts share: set-up, the layout of ranks, the ranks' program, signals. Sourced, never run.
# The scripts set XPYD_ROOT, the checkout, first.
#
# XPYD_SITE              site profiles to source, in order, by name in launch/sites or by path: modules,ib
# XPYD_PYTHON            the Python of the ranks (default: the checkout's .venv, else python on PATH)
# XPYD_WORKERS_PER_NODE  workers on each node (default 1); the client is one more rank on the first node
# XPYD_LOG_DIR           where the ranks' logs go
# XPYD_SRUN_MPI          srun's --mpi (default pmix, for Open MPI; pmi2 for MPICH)
# XPYD_REQUEUE           1: a Slurm job near its time limit, or one that lost a node, goes back into the queue once it
#                        has written what it has; its run goes on at the next block
# XPYD_MEET_S            ranks that have not met in one world this long after their start are ended, and started once
#                        more (default 600; 0: wait for ever)
# XPYD_PART_S            a launcher that still runs this long after all ranks have ended is ended (default 60)
# XPYD_DRY_RUN           1: print the command that would start the ranks, and stop

fail() {
  echo "error: $*" >&2
  exit 2
}

# Profiles extend these: options of srun and mpirun, and a command that the ranks' Python is wrapped into.
XPYD_SRUN_ARGS=()
XPYD_MPIRUN_ARGS=()
XPYD_WRAP=()

load_site() {
  local names name profile
  IFS=, read -ra names <<<"${XPYD_SITE:-}"
  for name in ${names[@]+"${names[@]}"}; do
    profile=$XPYD_ROOT/launch/sites/$name.sh
    [[ $name == */* ]] && profile=$name
    [[ -r $profile ]] || fail "XPYD_SITE=$name: no profile $profile; there are: $(ls -x "$XPYD_ROOT/launch/sites")"
    # shellcheck source=/dev/null
    source "$profile"
  done
}

# Everything before the ranks: profile, defaults, Python, workers per node, log folder named $1.
setup() {
  load_site
  # shellcheck source=launch/env.sh
  source "$XPYD_ROOT/launch/env.sh"
  if [[ -z ${XPYD_PYTHON:-} ]]; then
    XPYD_PYTHON=$XPYD_ROOT/.venv/bin/python
    [[ -x $XPYD_PYTHON ]] || XPYD_PYTHON=$(command -v python) || fail "no python on PATH; set XPYD_PYTHON or XPYD_SITE"
  fi
  XPYD_WORKERS_PER_NODE=${XPYD_WORKERS_PER_NODE:-1}
  [[ $XPYD_WORKERS_PER_NODE =~ ^[1-9][0-9]*$ ]] || fail "XPYD_WORKERS_PER_NODE=$XPYD_WORKERS_PER_NODE: must be a positive number"
  export XPYD_LOG_DIR="${XPYD_LOG_DIR:-$PWD/logs}/$1" XPYD_WORLD
  XPYD_WORLD=$XPYD_LOG_DIR/world
  export PYTHONPATH="$XPYD_ROOT${PYTHONPATH:+:$PYTHONPATH}"
}

# The host of every rank, one per line: client and workers on the first node, then the workers of each other node.
rank_hosts() {
  local host
  echo "$1"
  for host in "$@"; do
    for ((worker = 0; worker < XPYD_WORKERS_PER_NODE; worker++)); do
      echo "$host"
    done
  done
}

# The program of every rank, into the array `program`: rank.sh, the site's wrapper, Python, the experiment, its overrides.
rank_program() {
  local experiment=$1
  shift
  [[ -r $XPYD_ROOT/experiments/$experiment.py ]] ||
    fail "no experiment $experiment; there are: $(cd "$XPYD_ROOT/experiments" && echo [a-z]*.py | sed 's/\.py//g')"
  program=("$XPYD_ROOT/launch/rank.sh" ${XPYD_WRAP[@]+"${XPYD_WRAP[@]}"}
    "$XPYD_PYTHON" -m mpi4py -m "experiments.$experiment" "$@")
}

# Options of every srun, into the array `options`. A rank that fails takes the others along; one that is stuck after
# others have ended does so after --wait.
srun_options() {
  options=("--mpi=${XPYD_SRUN_MPI:-pmix}" --kill-on-bad-exit=1 --wait=60)
  if ! scontrol show config | grep -q '^TaskPlugin *= task/none'; then
    options+=(--cpu-bind=none) # ranks pin themselves
  fi
  options+=(${XPYD_SRUN_ARGS[@]+"${XPYD_SRUN_ARGS[@]}"})
}

# Run the step of a Slurm job, and end the job with its code.
finish_job() {
  local code=0
  export XPYD_JOB=slurm-$SLURM_JOB_ID # names the run folder where the command line does not: a requeued job finds it
  run_ranks "$@" || code=$?
  if [[ ${XPYD_REQUEUE:-} == 1 ]] && should_requeue "$code"; then
    scontrol requeue "$SLURM_JOB_ID" || true # Slurm may have done so itself
  fi
  exit "$code"
}

# After an end in order near the time limit, and after a failure ($1 is not 0) of which a lost node is the cause.
should_requeue() {
  if (($1 == 0)); then
    ((XPYD_NEAR_LIMIT))
  else
    node_lost
  fi
}

# Whether there is a node of the job that a step no longer reaches. Slurm itself takes minutes to notice that.
node_lost() {
  local step=(srun --overlap --mpi=none "--nodes=$SLURM_JOB_NUM_NODES" "--ntasks=$SLURM_JOB_NUM_NODES")
  ! env -u SLURM_HOSTFILE timeout -k 5 30 "${step[@]}" --ntasks-per-node=1 true 2>/dev/null
}

# Run the ranks to their end and return their code. SIGUSR1 (time is nearly up) and SIGTERM go on to them.
run_ranks() {
  XPYD_NEAR_LIMIT=0
  if [[ ${XPYD_DRY_RUN:-} == 1 ]]; then
    printf '%q ' "$@"
    echo
    return 0
  fi
  mkdir -p "$XPYD_LOG_DIR"
  local code interrupted ending=0 launcher='' world
  trap 'interrupted=1; XPYD_NEAR_LIMIT=1; kill -USR1 "$launcher" || true' USR1
  trap 'interrupted=1; ending=1; kill -TERM "$launcher" || true' TERM INT
  run_launcher "$@"
  if [[ $world == apart ]] && ((!XPYD_NEAR_LIMIT && !ending)); then
    echo "starting them once more" >&2
    run_launcher "$@"
  fi
  trap - TERM INT
  trap '' USR1 # a warning that comes too late must not fail a job that is done
  ((code == 0)) || show_logs "$code"
  return "$code"
}

# Run mpirun or srun to its end, beside a watch that ends it where it hangs. Sets `code`, and `world`.
run_launcher() {
  local watch
  rm -f "$XPYD_WORLD"
  "$@" &
  launcher=$!
  watch_launcher "$1" &
  watch=$!
  interrupted=1
  while ((interrupted)); do # a signal ends `wait` before the child ends
    interrupted=0
    code=0
    wait "$launcher" || code=$?
  done
  kill "$watch" 2>/dev/null || true
  wait "$watch" 2>/dev/null || true
  look_at_world
  if [[ $world == "parted "* ]]; then code=${world#parted }; fi
}

# Sets `world` to what is known of the ranks. Rank 0 writes it (src/xpyd/mpi.py): `met` when all are in one world,
# `ended CODE` when all have come to their end. The watch makes `apart` of neither, and `parted CODE` of the second.
look_at_world() {
  world=
  if [[ -s $XPYD_WORLD ]]; then read -r world <"$XPYD_WORLD" || true; fi
}

# End the launcher, named $1, where its ranks do not meet, and where they have ended and it has not: srun of Slurm 22.05
# can wait for ever for a thread that both components of a heterogeneous pmix step want to end.
watch_launcher() {
  local meet_s=${XPYD_MEET_S:-600} part_s=${XPYD_PART_S:-60} since=$SECONDS ended=
  trap '' USR1 INT
  while sleep 1 >/dev/null 2>&1 && kill -0 "$launcher" 2>/dev/null; do
    look_at_world
    if [[ -z $world ]] && ((meet_s > 0 && SECONDS - since >= meet_s)); then
      echo "error: the ranks have not met within XPYD_MEET_S=$meet_s s of their start; ending them" >&2
      end_launcher apart
    elif [[ $world == "ended "* ]] && ((SECONDS - ${ended:=$SECONDS} >= part_s)); then
      echo "warning: all ranks ended XPYD_PART_S=$part_s s ago, and $1 has not; ending it" >&2
      end_launcher "parted ${world#ended }"
    fi
  done
}

# For the reason $1. By SIGTERM, so that it ends its ranks; by SIGKILL where it does not within 15 s. Its end is the end
# of the watch.
end_launcher() {
  echo "$1" >"$XPYD_WORLD" || true
  kill -TERM "$launcher" || true
  sleep 15 >/dev/null 2>&1
  kill -KILL "$launcher" || true
}

# The last words of every rank but the first, whose output is the job's.
show_logs() {
  local log
  echo "the ranks ended with exit code $1; logs are in $XPYD_LOG_DIR" >&2
  for log in "$XPYD_LOG_DIR"/rank-*.log; do
    [[ -s $log ]] || continue
    echo "--- $log" >&2
    tail -n 20 "$log" >&2
  done
}
