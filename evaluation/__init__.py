"""Scores, tables, pictures and what else eval.py and sample.py report."""
