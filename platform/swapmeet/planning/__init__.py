"""What a job will need, found out before it is queued, and for callers who only ask.

question.py   what is asked: a run, and where it may be put
planner.py    asks a process of its own, because planning reads and tokenises the data
answering.py  that process
needs.py      what of its machine a planned run takes
"""

from swapmeet.planning.needs import needs_of
from swapmeet.planning.planner import Interrupted, Planner
from swapmeet.planning.question import Answer, Made, Place, Question, Refusal, places, question_of

__all__ = [
    "Answer",
    "Interrupted",
    "Made",
    "Place",
    "Planner",
    "Question",
    "Refusal",
    "needs_of",
    "places",
    "question_of",
]
