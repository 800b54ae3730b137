"""Sweeps: one submission, many configurations, each a job of the queue, and the best adapter published.

request.py    what is asked for: a job's request, and what to try; from it each configuration's request
mistakes.py   what is wrong with which of them
rows.py       from there to the rows of the sweep and of its jobs
sweeps.py     what callers may do with a sweep
runs.py       how its configurations stand, and which is the best; pure
measuring.py  what a configuration measured, noted with the end of its job
settling.py   the leader's part: publish the best, remove what the others left
wire.py       as the API has it
totals.py     what all will need together

The command line reads requests without a database, so each is imported from its own module.
"""
