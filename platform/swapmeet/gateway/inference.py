"""Inference as OpenAI's API has it: chat completions, completions and the list of models."""

import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse

from swapmeet.gateway.errors import InvalidRequest, describe_error
from swapmeet.gateway.services import Services, admit, authorize, services
from swapmeet.gateway.wire import ChatCompletion, Completion, Generation
from swapmeet_registry import NotFound, Version
from swapmeet_serving import Call, Chunk, Sampling

router = APIRouter(prefix="/v1", dependencies=[Depends(authorize)])
Backend = Annotated[Services, Depends(services)]


@router.post("/chat/completions", dependencies=[Depends(admit)])
async def chat_completions(body: ChatCompletion, backend: Backend) -> Response:
    """Answer a conversation, whole or streamed."""
    call = await _call(body, backend, body.max_completion_tokens or body.max_tokens)
    messages = tuple(message.as_template_input() for message in body.messages)
    return await _answer(replace(call, messages=messages), body, backend, _ChatShape())


@router.post("/completions", dependencies=[Depends(admit)])
async def completions(body: Completion, backend: Backend) -> Response:
    """Continue a text, whole or streamed."""
    call = await _call(body, backend, body.max_tokens)
    prompt = body.prompt if isinstance(body.prompt, str) else tuple(body.prompt)
    return await _answer(replace(call, prompt=prompt), body, backend, _TextShape())


@router.get("/models")
async def models(backend: Backend) -> dict[str, Any]:
    """The base and every adapter, by name."""
    names = await run_in_threadpool(backend.registry.names)
    return {"object": "list", "data": [_model(name, backend) for name in [backend.base.name, *names]]}


@router.get("/models/{name:path}")
async def model(name: str, backend: Backend) -> dict[str, Any]:
    """One model, if it exists."""
    await _resolve(name, backend)
    return _model(name, backend)


def _model(name: str, backend: Services) -> dict[str, Any]:
    owner = name.split("/")[0] if "/" in name else "swapmeet"
    return {"id": name, "object": "model", "created": 0, "owned_by": owner, "base": backend.base.name}


async def _resolve(name: str, backend: Services) -> Version | None:
    """The version that a model name means; None for the base itself. Anything unknown is an error."""
    if name == backend.base.name:
        return None
    if "/" not in name:
        raise NotFound(f"The model {name!r} does not exist. The hosted base is {backend.base.name!r}.")
    if "*" in name or "+" in name:
        raise InvalidRequest("Mixes of adapters are not served; name one adapter.", "model")
    return await run_in_threadpool(backend.registry.resolve, name)


async def _call(body: Generation, backend: Services, max_tokens: int | None) -> Call:
    version = await _resolve(body.model, backend)
    sampling = Sampling(
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        seed=body.seed,
        stop=tuple(body.stop),
        ignore_eos=body.ignore_eos,
    )
    return Call(request_id=uuid.uuid4().hex, adapter=version.pinned if version else None, sampling=sampling)


async def _answer(call: Call, body: Generation, backend: Services, shape: "_Shape") -> Response:
    """Answer whole, or stream once the first chunk is there, so that an error before it still has its status."""
    head = _Head(shape.prefix + call.request_id, int(time.time()), body.model)
    headers = {"x-request-id": call.request_id, "x-swapmeet-adapter": call.adapter or backend.base.name}
    if body.stream:
        chunks = backend.replicas.generate(call)
        first = await anext(chunks)
        events = _events(first, chunks, head, shape, body)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)
    whole = await backend.replicas.answer(call)
    choice = shape.choice(whole.text, whole.finish_reason)
    if body.return_token_ids:
        choice["token_ids"] = list(whole.token_ids)
    return JSONResponse(head.object(shape.whole, [choice], _usage(whole)), headers=headers)


async def _events(
    first: Chunk, chunks: AsyncIterator[Chunk], head: "_Head", shape: "_Shape", body: Generation
) -> AsyncIterator[str]:
    """Server-sent events of one answer; a failure in mid-answer ends it with an error event."""

    def part(chunk: Chunk) -> str:
        choice = shape.delta(chunk.text, chunk.finish_reason)
        if body.return_token_ids:
            choice["token_ids"] = list(chunk.token_ids)
        return _event(head.object(shape.part, [choice]))

    last = first
    try:
        for choice in shape.opening():
            yield _event(head.object(shape.part, [choice]))
        yield part(first)
        async for last in chunks:
            yield part(last)
    except Exception as error:
        yield _event(describe_error(error)[1])
        return
    if body.stream_options and body.stream_options.include_usage:
        yield _event(head.object(shape.part, [], _usage(last)))
    yield "data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class _Head:
    """What all objects of one answer share."""

    id: str
    created: int
    model: str

    def object(self, kind: str, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> dict[str, Any]:
        body = {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}
        return body | ({"usage": usage} if usage else {})


class _ChatShape:
    """Objects of chat completions."""

    prefix, whole, part = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def choice(self, text: str, finish: str | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}

    def opening(self) -> list[dict[str, Any]]:
        return [{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}]

    def delta(self, text: str, finish: str | None) -> dict[str, Any]:
        return {"index": 0, "delta": {"content": text} if text else {}, "logprobs": None, "finish_reason": finish}


class _TextShape:
    """Objects of plain completions."""

    prefix, whole, part = "cmpl-", "text_completion", "text_completion"

    def choice(self, text: str, finish: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}

    def opening(self) -> list[dict[str, Any]]:
        return []

    delta = choice


_Shape = _ChatShape | _TextShape


def _usage(last: Chunk) -> dict[str, int]:
    return {
        "prompt_tokens": last.prompt_tokens,
        "completion_tokens": last.completion_tokens,
        "total_tokens": last.prompt_tokens + last.completion_tokens,
    }


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"
