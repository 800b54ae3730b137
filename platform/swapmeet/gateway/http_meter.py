"""What a gateway counts of its HTTP requests. Lives on the event loop; other threads may read it."""

from collections import Counter

from swapmeet_serving.metrics import Family, Histogram, Points, single

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0)


class HttpMeter:
    """Counts of one gateway, from its start; routes are the app's templates, so there are few."""

    def __init__(self) -> None:
        self.in_flight = 0
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self._seconds: dict[str, Histogram] = {}
        self._first_byte: dict[str, Histogram] = {}

    def ended(self, method: str, route: str, status: int, first_byte: float | None, seconds: float) -> None:
        """Count a request: seconds from its first byte to the answer's first one, if any, and to its last."""
        self._requests[method, route, str(status)] += 1
        self._seconds.setdefault(route, Histogram(SECONDS)).observe(seconds)
        if first_byte is not None:
            self._first_byte.setdefault(route, Histogram(SECONDS)).observe(first_byte)

    def families(self) -> list[Family]:
        """All counts."""
        requests: Points = {labels: float(number) for labels, number in list(self._requests.items())}
        return [
            single("swapmeet_http_in_flight_requests", "gauge", "HTTP requests under way.", float(self.in_flight)),
            Family("swapmeet_http_requests", "counter", "HTTP requests.", ("method", "route", "status"), requests),
            _by_route("request", "From a request's arrival to its answer's end.", self._seconds),
            _by_route("first_byte", "From a request's arrival to its answer's first byte.", self._first_byte),
        ]


def _by_route(name: str, text: str, histograms: dict[str, Histogram]) -> Family:
    points: Points = {(route,): seconds.read() for route, seconds in list(histograms.items())}
    return Family(f"swapmeet_http_{name}_seconds", "histogram", text, ("route",), points)
