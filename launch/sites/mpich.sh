# shellcheck shell=bash disable=SC2034  # the launch scripts read what a profile sets
# The MPICH family: MPICH, Intel MPI, Cray MPICH. They share an ABI, and mpi4py's wheel loads any of them.
#   MPICH      srun --mpi=pmi2; under pmix it aborts in MPI_Init
#   Intel MPI  also pmi2; I_MPI_PMI_LIBRARY names Slurm's libpmi2.so
#   Cray EX    XPYD_SRUN_MPI=cray_shasta, and the module cray-mpich-abi instead of cray-mpich: wheels want libmpi.so.12
XPYD_SRUN_MPI=${XPYD_SRUN_MPI:-pmi2}
