"""Inference as OpenAI's API has it: chat completions, completions and the list of models."""

import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse

from swapmeet.errors import RequestRefused
from swapmeet.gateway.answers import ChatShape, Head, Shape, Tally, TextShape
from swapmeet.gateway.authority import Caller, may
from swapmeet.gateway.charge import Charge, admit
from swapmeet.gateway.choices import answer, generate
from swapmeet.gateway.errors import describe_error
from swapmeet.gateway.presence import while_connected
from swapmeet.gateway.services import Services, services
from swapmeet.gateway.tool_wire import add_tool_calls
from swapmeet.gateway.wire import ChatCompletion, Completion, Generation, StreamOptions
from swapmeet_registry import NotFound, Reference, Version
from swapmeet_serving import Call, Chunk, Sampling
from swapmeet_serving.errors import InvalidRequest as MixInvalid
from swapmeet_serving.mix import Mix, format_mix, mix_of, parse_mix

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode  # json.dumps would make one each time

router = APIRouter(prefix="/v1")
Backend = Annotated[Services, Depends(services)]
Admitted = Annotated[Charge, Depends(admit)]
Reader = Annotated[Caller, Depends(may("infer", "read"))]


@router.post("/chat/completions")
async def chat_completions(request: Request, body: ChatCompletion, backend: Backend, charge: Admitted) -> Response:
    """Answer a conversation, whole or streamed."""
    call = await _call(body, backend, charge.caller)
    messages = tuple(message.as_template_input() for message in body.messages)
    calls = [replace(call, messages=messages, tools=body.tool_use())]
    return await while_connected(request, _answer(calls, body, backend, ChatShape(), charge))


@router.post("/completions")
async def completions(request: Request, body: Completion, backend: Backend, charge: Admitted) -> Response:
    """Continue texts, whole or streamed."""
    call = await _call(body, backend, charge.caller)
    calls = [
        replace(call, request_id=f"{call.request_id}.{place}" if place else call.request_id, prompt=prompt)
        for place, prompt in enumerate(body.prompts)
    ]
    return await while_connected(request, _answer(calls, body, backend, TextShape(), charge))


@router.get("/models")
async def models(backend: Backend, caller: Reader) -> dict[str, Any]:
    """The base and every adapter that the caller may use, by name."""
    names = await run_in_threadpool(backend.access.names, caller)
    return {"object": "list", "data": [_model(name, backend) for name in [backend.base.name, *names]]}


@router.get("/models/{model:path}")
async def show_model(model: str, backend: Backend, caller: Reader) -> dict[str, Any]:
    """One model, if it exists."""
    await _resolve(model, backend, caller)
    return _model(model, backend)


def _model(name: str, backend: Services) -> dict[str, Any]:
    owner = name.split("/")[0] if "/" in name else "swapmeet"
    return {"id": name, "object": "model", "created": 0, "owned_by": owner, "base": backend.base.name}


async def _resolve(name: str, backend: Services, caller: Caller) -> Mix:
    """The versions that a model name means, by digest; none for the base itself. Anything unknown is an error."""
    if name == backend.base.name:
        return ()
    if "/" not in name:
        raise NotFound(f"The model {name!r} does not exist. The hosted base is {backend.base.name!r}.")
    try:
        terms = parse_mix(name) if "*" in name or "+" in name else ((name, 1.0),)
        versions = [await run_in_threadpool(_look_up, each, backend, caller) for each, _ in terms]
        return mix_of(tuple((version.pinned, weight) for version, (_, weight) in zip(versions, terms, strict=True)))
    except MixInvalid as error:
        raise RequestRefused(str(error), "model") from error


def _look_up(reference: str, backend: Services, caller: Caller) -> Version:
    """The version that a reference names; of an adapter that is not the caller's to see, what is said of none."""
    look = partial(backend.unknown.look_up, look=backend.registry.resolve)
    return backend.access.resolve(caller, Reference.parse(reference), look)


async def _call(body: Generation, backend: Services, caller: Caller) -> Call:
    mix = await _resolve(body.model, backend, caller)
    sampling = Sampling(
        max_tokens=body.most_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=tuple(body.logit_bias.items()),
        seed=body.seed,
        stop=tuple(body.stop),
        ignore_eos=body.ignore_eos,
        logprobs=body.alternatives,
        prompt_logprobs=body.alternatives if body.echoes else None,
    )
    return Call(
        request_id=uuid.uuid4().hex,
        adapter=mix,
        sampling=sampling,
        n=body.n,
        echo=body.echoes,
        tenant=caller.tenant,
        constraint=body.constraint(),
    )


async def _answer(calls: list[Call], body: Generation, backend: Services, shape: Shape, charge: Charge) -> Response:
    """Answer whole, or stream once the first chunk is there, so that an error before it still has its status."""
    first_call = calls[0]
    head = Head(shape.prefix + first_call.request_id, int(time.time()), body.model)
    headers = {"x-swapmeet-adapter": format_mix(first_call.mix) or backend.base.name} | charge.headers
    charge.model(first_call.mix, backend.base.name)
    if body.stream:
        chunks = generate(backend.replicas, calls)
        first = await anext(chunks)
        events = _events(first, chunks, head, shape, body, len(calls) * body.n, charge)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)
    tally, choices = Tally(body.n), []
    for whole in await answer(backend.replicas, calls):
        tally.add(whole)
        choices.append(add_tool_calls(shape.choice(whole), whole) | _token_ids(whole, body))
    charge.settle(tally)
    return JSONResponse(head.object(shape.whole, choices, usage=tally.usage), headers=headers)


async def _events(
    first: Chunk, chunks: AsyncIterator[Chunk], head: Head, shape: Shape, body: Generation, choices: int, charge: Charge
) -> AsyncIterator[str]:
    """Server-sent events of one answer; a failure in mid-answer ends it with an error event.

    What was computed is charged, to the client that leaves in between, too.
    """
    options, tally = body.stream_options or StreamOptions(), Tally(body.n)

    def event(choice: dict[str, Any]) -> str:
        so_far = tally.usage if options.continuous_usage_stats else None
        return _event(head.object(shape.part, [choice], **({"usage": so_far} if options.include_usage else {})))

    def part(chunk: Chunk) -> str:
        tally.add(chunk)
        return event(add_tool_calls(shape.delta(chunk), chunk) | _token_ids(chunk, body))

    try:
        for choice in shape.opening(choices):
            yield event(choice)
        yield part(first)
        async for chunk in chunks:
            yield part(chunk)
    except Exception as error:
        yield _event(describe_error(error)[1])
        return
    finally:
        charge.settle(tally)
    if options.include_usage:
        yield _event(head.object(shape.part, [], usage=tally.usage))
    yield "data: [DONE]\n\n"


def _token_ids(chunk: Chunk, body: Generation) -> dict[str, Any]:
    return {"token_ids": list(chunk.token_ids)} if body.return_token_ids else {}


def _event(body: dict[str, Any]) -> str:
    return f"data: {_encode(body)}\n\n"
