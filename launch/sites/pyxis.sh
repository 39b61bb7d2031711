# shellcheck shell=bash disable=SC2034  # the launch scripts read what a profile sets
# Every rank in a container that Slurm starts (pyxis and enroot): XPYD_IMAGE is an image name or a .sqsh file.
# Only for the Slurm scripts. The container needs an MPI that fits XPYD_SRUN_MPI.
XPYD_PYTHON=${XPYD_PYTHON:-python3}
XPYD_SRUN_ARGS+=(
  "--container-image=${XPYD_IMAGE:?profile pyxis: set XPYD_IMAGE to an image name or a .sqsh file}"
  "--container-mounts=$XPYD_ROOT:$XPYD_ROOT,$PWD:$PWD"
  "--container-workdir=$PWD"
)
