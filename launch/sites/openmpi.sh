# shellcheck shell=bash disable=SC2034  # the launch scripts read what a profile sets
# Open MPI built by the site. srun needs a PMIx that both know: see `srun --mpi=list`. With the wrong one Open MPI 5
# starts N worlds of one rank and exits with 0; the experiments refuse that.
XPYD_SRUN_MPI=${XPYD_SRUN_MPI:-pmix}
# A site's Open MPI was built with Slurm's PMIx, so munge may secure it again (env.sh turns that off for the wheel's).
export PMIX_MCA_psec=${PMIX_MCA_psec:-munge,native}
