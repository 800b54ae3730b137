"""Plans in a process of its own: it tokenises for long, and a hostile file may take it down."""

import json
import subprocess
import sys
from dataclasses import asdict

from swapmeet.errors import PlanningFailed
from swapmeet.planning.question import Answer, Made, Question, Refusal
from swapmeet.settings import Settings

PROGRAM = "from swapmeet.planning.answering import main; main()"
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
        self._started: set[subprocess.Popen[str]] = set()
        self._closed = False

    def __call__(self, question: Question) -> Answer:
        """A plan, or why there is none.

        Raises:
            PlanningFailed: the process died; nobody knows why.
            Interrupted: `close` was called.
        """
        if not question.places:
            return Refusal("device_missing", "The job asks for a GPU, and the cluster has none now.", own=False)
        asked = json.dumps(asdict(question) | self._surroundings())
        with subprocess.Popen(  # noqa: S603 - fixed words
            [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        ) as process:  # fmt: skip
            self._started.add(process)
            try:
                if self._closed:
                    process.kill()
                said, complaint = process.communicate(asked, timeout=SECONDS)
            except subprocess.TimeoutExpired:
                return Refusal("planning_failed", f"Planning took over {SECONDS:.0f} s, and was given up.", own=False)
            finally:
                process.kill()
                self._started.discard(process)
        if self._closed:
            raise Interrupted
        if process.returncode:
            last = (complaint.strip().splitlines() or ["no word"])[-1]
            raise PlanningFailed(f"Planning ended with exit code {process.returncode} ({last[:200]}). Try again.")
        answer = json.loads(said.splitlines()[-1])
        return Made(answer["plan"]) if "plan" in answer else Refusal(**answer)

    def close(self) -> None:
        """End what is under way, and plan nothing more."""
        self._closed = True
        for process in list(self._started):
            process.kill()

    def _surroundings(self) -> dict[str, object]:
        settings = self._settings
        return {"home": str(settings.folder), "storage": settings.storage_url, "price": settings.gpu_price}
