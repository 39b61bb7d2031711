# shellcheck shell=bash disable=SC2034  # the launch scripts read what a profile sets
# Every rank in an Apptainer (Singularity) container: XPYD_IMAGE is the image. MPI inside must be of the family, and for
# srun of the PMI version, that starts the ranks outside.
# The checkout is mounted at its own path; --nv brings the GPU driver; InfiniBand needs /dev/infiniband, which Apptainer
# shows unless its configuration forbids it.
command -v apptainer >/dev/null || fail "profile apptainer: no program apptainer on PATH"
XPYD_PYTHON=${XPYD_PYTHON:-python3}
XPYD_WRAP=(apptainer exec --nv --bind "$XPYD_ROOT" --pwd "$PWD"
  "${XPYD_IMAGE:?profile apptainer: set XPYD_IMAGE to the .sif file}")
