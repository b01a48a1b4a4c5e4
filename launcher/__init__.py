"""The `remote-train` command: reads options, calls ansible-runner, nothing else."""
