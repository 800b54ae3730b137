"""Which job runs next and where, decided by one leader.

records.py      what a decision is made from, and what it says
backlog.py      waiting jobs, each tenant's in its order
turns.py        whose turn it is, and what quotas allow
free.py         what a node has free, and which GPUs its jobs are on; ends.py says when those will be gone
room.py         the nodes as a decision fills them, and what is held for whom
preemption.py   which running jobs to park for waiting ones
outlook.py      why each waiting job waits, and about how long
policy.py       `decide`, which puts these together; pure
lease.py        who leads
scheduler.py    the leader's round: recover, listen, obey, validate, place
leading.py      the leader's transactions
listening.py    what attempts tell; recording.py writes it down, chores.py publishes it meanwhile
validating.py   whether a new job can be queued
planning.py     what it will need, before it is queued; comparing.py holds that against what it took
placing.py      jobs and machines as the policy sees them, with each tenant's share from shares.py
spending.py     what each tenant used lately, kept up to date where attempts end
orders.py       what an attempt is started with
dispatcher.py   the cluster; survey.py asks its nodes what GPUs they have
"""
