"""The subcommands of `python -m pyvmm_loader` that take more than a path, one a file."""
