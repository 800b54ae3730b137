"""Ways in which servers that speak S3 do not keep what they promise."""

import time
from email.utils import formatdate

from s3_proxy import Answer, Behaviour, Forward, Request

FAILED = b"<Error><Code>PreconditionFailed</Code></Error>"


def strips_conditions(request: Request, forward: Forward) -> Answer:
    del request.headers["If-Match"], request.headers["If-None-Match"]
    return forward()


def ignores_if_match(request: Request, forward: Forward) -> Answer:
    if request.method == "PUT":
        del request.headers["If-Match"]
    return forward()


def forgets_metadata(request: Request, forward: Forward) -> Answer:
    for name in [name for name in request.headers if name.lower().startswith("x-amz-meta-")]:
        del request.headers[name]
    return forward()


def finds_damage_everywhere(request: Request, forward: Forward) -> Answer:
    if request.method == "PUT" and not request.conditional:
        return Answer(400, b"<Error><Code>BadDigest</Code></Error>")
    return forward()


def tears_ranges(request: Request, forward: Forward) -> Answer:
    answer = forward()
    if answer.status == 206 and answer.body:
        return answer._replace(body=answer.body[:-1] + bytes([answer.body[-1] ^ 1]))
    return answer


def ignores_ranges(request: Request, forward: Forward) -> Answer:
    del request.headers["Range"]
    return forward()


def refuses_at_random() -> Behaviour:
    """Of ten conditional writes one is refused, whether or not its condition holds."""
    count = iter(range(1, 1_000_000))

    def behave(request: Request, forward: Forward) -> Answer:
        if request.conditional and next(count) % 10 == 0:
            return Answer(412, FAILED)
        return forward()

    return behave


def serves_stale(what: str) -> Behaviour:
    """What was read of an address once is read of it from then on; only listings, or only objects."""
    seen: dict[str, Answer] = {}

    def behave(request: Request, forward: Forward) -> Answer:
        if request.method == "GET" and ("list-type" in request.path) == (what == "listings"):
            if request.path not in seen:
                answer = forward()
                if answer.status != 200:
                    return answer
                seen[request.path] = answer
            return seen[request.path]
        return forward()

    return behave


def looks_before_it_writes() -> Behaviour:
    """Conditions are looked at, and some time later the write takes place: of two at once both win."""
    etags: dict[str, str] = {}

    def behave(request: Request, forward: Forward) -> Answer:
        if request.method == "DELETE":
            etags.pop(request.path, None)
        if request.method != "PUT" or not request.conditional:
            return forward()
        if etags.get(request.path, "") != request.headers.get("If-Match", ""):
            return Answer(412, FAILED)
        time.sleep(0.02)
        answer = strips_conditions(request, forward)
        etags[request.path] = dict(answer.headers)["ETag"].strip('"')
        return answer

    return behave


def wrong_clock(request: Request, forward: Forward) -> Answer:
    answer = forward()
    late = formatdate(time.time() - 7200, usegmt=True)
    return answer._replace(headers=tuple((n, late if n == "Last-Modified" else v) for n, v in answer.headers))
