"""Runs: the run folder, its journals, the session that works in it, and progress."""
