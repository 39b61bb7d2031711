# shellcheck shell=bash
# Defaults for every rank, each only if unset. Sourced by the launch scripts after the site profile.

# Open MPI does not start where HOME is not set, as in sbatch --export=NONE; ~ is then what the system knows.
export HOME=${HOME:-~}

# Compute threads per rank. Slurm says how many cores a task has where it was asked for any.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
export MKL_NUM_THREADS="${MKL_NUM_THREADS:-$OMP_NUM_THREADS}"

# The traceback of a rank is worth its lines; Hydra's short form hides the cause.
export HYDRA_FULL_ERROR="${HYDRA_FULL_ERROR:-1}"
export PYTHONFAULTHANDLER="${PYTHONFAULTHANDLER:-1}"

# What moves KV is chosen by conf/fabric, not here. This only keeps UCX from printing a line per setting it does not know.
export UCX_WARN_UNUSED_ENV_VARS="${UCX_WARN_UNUSED_ENV_VARS:-n}"

# MPI carries small control messages only. ob1 keeps MPI's own UCX, often another version, out of the process.
export OMPI_MCA_pml="${OMPI_MCA_pml:-ob1}"
export OMPI_MCA_osc="${OMPI_MCA_osc:-^ucx}"
# A rank that waits in a collective yields its core: nothing timed goes through MPI, and ranks may outnumber cores.
export OMPI_MCA_mpi_yield_when_idle="${OMPI_MCA_mpi_yield_when_idle:-1}"

# Slurm 22.05's default fence crashed in MPI_Init in 5 % of jobs, ring in none (open-mpi/ompi #12495).
export SLURM_PMIX_FENCE="${SLURM_PMIX_FENCE:-ring}"
# Slurm's PMIx offers munge first, which the embedded Open MPI was built without, and says so on every rank.
export PMIX_MCA_psec="${PMIX_MCA_psec:-native}"
