"""Attempts at runs on Ray: each one worker, which outlives what started it and tells how it fares."""
