"""One file an equation: its solver, and the initial conditions of its data."""
