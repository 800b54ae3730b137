"""The states of a job and every move between them, pure.

    validating_files ──► queued ◄──────────────┐ resume, parked, lost
           │               │ start             │
           │               ▼                   │
           │            running ──► paused ────┘
           ▼               ▼
         failed   succeeded, failed          cancelled from each that has not ended

Cancelling takes effect at once: whatever an attempt tells afterwards is refused, and the leader ends it. Pausing a
running job only says what is wanted; it stays running until its attempt has parked.
"""

from dataclasses import dataclass
from enum import StrEnum

from swapmeet.errors import WrongState


class State(StrEnum):
    """Where a job stands, in OpenAI's words."""

    VALIDATING = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing can happen to the job any more."""
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class Wanted(StrEnum):
    """What the caller asked for last."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


class Move(StrEnum):
    """What can happen to a job: the first three by its caller, the others by the queue."""

    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    VALIDATE = "validate"
    START = "start"
    PARK = "park"
    LOSE = "lose"
    SUCCEED = "succeed"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Standing:
    """A job's state and what is wanted of it; `validated` once its files were found good."""

    state: State
    wanted: Wanted = Wanted.RUN
    validated: bool = False


def after(move: Move, standing: Standing) -> Standing:
    """Where a job stands after a move. Cancelling a cancelled job and pausing a paused one change nothing.

    Raises:
        WrongState: the move does not go with the state.
    """
    state, wanted, validated = standing.state, standing.wanted, standing.validated
    waiting = State.QUEUED if validated else State.VALIDATING
    match move, state:
        case Move.CANCEL, State.CANCELLED:
            return standing
        case Move.CANCEL, _ if not state.ended:
            return Standing(State.CANCELLED, Wanted.CANCEL, validated)
        case Move.PAUSE, State.RUNNING:
            return Standing(state, Wanted.PAUSE, validated)
        case Move.PAUSE, _ if not state.ended:
            return Standing(State.PAUSED, Wanted.PAUSE, validated)
        case Move.RESUME, State.PAUSED:
            return Standing(waiting, Wanted.RUN, validated)
        case Move.RESUME, State.RUNNING if wanted is Wanted.PAUSE:
            return Standing(state, Wanted.RUN, validated)
        case _:
            return _by_the_queue(move, standing)


def _by_the_queue(move: Move, standing: Standing) -> Standing:
    state, wanted = standing.state, standing.wanted
    match move, state:
        case Move.VALIDATE, State.VALIDATING:
            return Standing(State.QUEUED, wanted, True)
        case Move.START, State.QUEUED:
            return Standing(State.RUNNING, wanted, True)
        case ((Move.PARK | Move.LOSE), State.RUNNING):
            return Standing(State.PAUSED if wanted is Wanted.PAUSE else State.QUEUED, wanted, True)
        case Move.SUCCEED, State.RUNNING:
            return Standing(State.SUCCEEDED, wanted, True)
        case Move.FAIL, (State.VALIDATING | State.QUEUED | State.RUNNING):
            return Standing(State.FAILED, wanted, standing.validated)
        case _:
            raise WrongState(_refusal(move, state))


def _refusal(move: Move, state: State) -> str:
    words = {Move.CANCEL: "cancelled", Move.PAUSE: "paused", Move.RESUME: "resumed"}
    way = "Only a paused job can be resumed." if move is Move.RESUME and not state.ended else "Create a new job."
    return f"This job is {state} and can not be {words.get(move, move)}. {way}"
