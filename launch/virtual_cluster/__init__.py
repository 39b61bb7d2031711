"""A virtual cluster: N nodes on one machine, with real munge and Slurm, links at a chosen rate, and no trace after."""
