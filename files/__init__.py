"""Data files: opened and checked, written by the built-in solvers, inspected."""
