"""Plans in a process of its own: it tokenises for long, and a hostile file may take it down."""

from dataclasses import asdict
from time import monotonic

from swapmeet.errors import PlanningFailed
from swapmeet.planning.answering import answer_alone
from swapmeet.planning.question import Answer, Made, Question, Refusal
from swapmeet.settings import Settings
from swapmeet_training.attempts.apart import Process, Raised, apart

SECONDS = 300.0
"""The longest that planning may take."""


class Interrupted(Exception):
    """The server stops; the question is still to be asked."""


class Planner:
    """Answers questions, each in a process; for any thread.

    Args:
        settings: where bases and files are, and what a GPU costs.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._started: set[Process] = set()
        self._closed = False

    def __call__(self, question: Question) -> Answer:
        """A plan, or why there is none.

        Raises:
            PlanningFailed: the process died; nobody knows why.
            Interrupted: `close` was called.
        """
        if not question.places:
            return Refusal("device_missing", "The job asks for a GPU, and the cluster has none now.", own=False)
        began = monotonic()
        asked = asdict(question) | self._surroundings()
        looks = any(place.here and place.gpu is not None for place in question.places)  # at this machine's GPUs
        process = apart(self._settings.folder, answer_alone, asked, fork=not looks)
        self._started.add(process)
        try:
            if self._closed:
                raise Interrupted
            answer = process.receive(SECONDS)
        except TimeoutError:
            return Refusal("planning_failed", f"Planning took over {SECONDS:.0f} s, and was given up.", own=False)
        except EOFError:
            if self._closed:
                raise Interrupted from None
            raise PlanningFailed("Planning was killed. Was it out of memory? Try again.") from None
        finally:
            self._started.discard(process)
            process.close()
        if isinstance(answer, Raised):
            raise PlanningFailed(f"Planning failed ({answer.error[:200]}). Try again.")
        seconds = round(monotonic() - began, 3)
        return Made(answer["plan"], seconds) if "plan" in answer else Refusal(**answer)

    def close(self) -> None:
        """End what is under way, and plan nothing more."""
        self._closed = True
        for process in list(self._started):
            process.kill()

    def _surroundings(self) -> dict[str, object]:
        settings = self._settings
        return {"home": str(settings.folder), "storage": settings.storage_url, "price": settings.gpu_price}
