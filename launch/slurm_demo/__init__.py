"""``make slurm-demo``: one comparison as a Slurm job on a slow and on a fast link of the virtual cluster."""
