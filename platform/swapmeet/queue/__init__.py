"""Which job runs next and where, decided by one leader.

records.py      what a decision is made from, and what it says
backlog.py      waiting jobs, each tenant's in its order
turns.py        whose turn it is, and what quotas allow
room.py         what is free on the nodes, when more will be, and what is held for whom
preemption.py   which running jobs to park for waiting ones
outlook.py      why each waiting job waits, and about how long
policy.py       `decide`, which puts these together; pure
lease.py        who leads
"""
