"""The probability flow's solvers, for samplers and densities."""
