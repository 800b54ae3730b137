"""Every device's kernels against plain torch, and each row's bits against what stands beside it.

Without a GPU, the GPU's kernels run in Triton's interpreter, in float32 and float16: it knows no bfloat16.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("numba")
pytest.importorskip("triton")

from torch.nn.functional import scaled_dot_product_attention  # noqa: E402

from swapmeet_serving import Engine, Request, Sampling  # noqa: E402
from swapmeet_serving.errors import BaseUnsupported  # noqa: E402
from swapmeet_serving.kernels import PAGE  # noqa: E402
from swapmeet_serving.kernels.cpu import CpuKernels  # noqa: E402
from swapmeet_serving.lora_weights import LoraPair  # noqa: E402
from swapmeet_serving.step_plan import Span, StepPlan, row  # noqa: E402

GPU = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 2e-6 if GPU == "cpu" else 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@dataclass
class Layer:
    name: str = "module"
    layer_idx: int = 0


@dataclass
class Shared:
    """Layers with one input, as the kernels see them."""

    layers: list[Layer]
    rows: str = "all"


@dataclass(frozen=True)
class Device:
    """Makes one device's kernels, which compute in a dtype."""

    name: str
    dtype: Any

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.dtype]

    def kernels(self, pages: int, layers: dict[int, tuple[int, int]], groups: Any, sharing: int = 1) -> Any:
        if self.name == "cpu":
            return CpuKernels(pages, layers, self.dtype, groups)
        from swapmeet_serving.kernels.gpu import GpuKernels

        return GpuKernels(pages, layers, self.dtype, groups, GPU, sharing)


CPU = [Device("cpu", torch.float32), Device("cpu", torch.bfloat16)]
ALL = [*CPU, Device("gpu", torch.float32), Device("gpu", torch.float16 if GPU == "cpu" else torch.bfloat16)]


@pytest.fixture(params=ALL, ids=lambda each: f"{each.name}-{each.dtype}")
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    torch.manual_seed(0)
    if request.param.name == "gpu":
        torch.set_default_device(GPU)
    yield request.param
    torch.set_default_device("cpu")


ALONE = Shared([Layer()])


def plan_of(*spans: Span) -> StepPlan:
    zeros = row([0] * spans[-1].stop)[None] if spans else row([])[None]
    return StepPlan(zeros, zeros, row([0] * len(spans)), spans)


def spans_of(rows: list[int], adapters: list[Any]) -> list[Span]:
    starts = [sum(rows[:index]) for index in range(len(rows))]
    return [
        Span(start, start + count, 0, [0], ((adapter, 1.0),) if adapter else ())
        for start, count, adapter in zip(starts, rows, adapters, strict=True)
    ]


def hold(kernels: Any, module: str, pair: LoraPair) -> Any:
    return kernels.bring(kernels.hold(iter([(module, pair)]), {module: pair.down.shape[1]}, {}))


def pair(inputs: int, outputs: int, rank: int) -> LoraPair:
    return LoraPair(torch.randn(inputs, rank), torch.randn(rank, outputs), 0.3)


@pytest.mark.parametrize(("inputs", "outputs"), [(576, 1536), (64, 192), (96, 40), (1, 1)])
def test_adapters_of_any_rank_are_added_to_their_own_rows(device: Device, inputs: int, outputs: int) -> None:
    pairs = [pair(inputs, outputs, rank) for rank in (1, 4, 16, 20, 64, 130)]
    kernels = device.kernels(1, {}, [{"other": (8, 8)}, {"module": (outputs, inputs)}])
    held = [hold(kernels, "module", each) for each in pairs]
    rows = [1, 2, 5, 3, 1, 9, 4]
    adapters: list[Any] = [*held[:3], None, *held[3:]]
    spans = spans_of(rows, adapters)
    kernels.begin(plan_of(*spans))
    x = torch.randn(sum(rows), inputs).to(device.dtype)
    before = torch.randn(sum(rows), outputs).to(device.dtype)
    result = before.clone()
    kernels.add_lora(ALONE, x, [result])
    expected = before.float()
    for span, used in zip(spans, [*pairs[:3], None, *pairs[3:]], strict=True):
        if used:
            down, up = used.down.to(device.dtype).float(), used.up.to(device.dtype).float()
            expected[span.start : span.stop] += x[span.start : span.stop].float() @ down @ up * used.scaling
    assert (result.float() - expected).abs().max() < device.tolerance * expected.abs().max()
    untouched = result.clone()
    kernels.add_lora(Shared([Layer("other")]), x, [result])
    assert torch.equal(result, untouched), "no adapter has this module"


def test_layers_with_one_input_are_computed_as_each_alone(device: Device) -> None:
    """Bit for bit; adapters have some of the layers or others, at ranks of their own, and results are slices."""
    shapes = {"q": (96, 64), "k": (40, 64), "v": (16, 64)}
    ranks: list[dict[str, int]] = [{"q": 16, "k": 16, "v": 16}, {"v": 5}, {"q": 40, "v": 1}, {"k": 130, "q": 3}]
    apart = device.kernels(1, {}, [{name: shape} for name, shape in shapes.items()])
    together = device.kernels(1, {}, [shapes])
    made = [{name: pair(64, shapes[name][0], rank) for name, rank in each.items()} for each in ranks]
    held = [
        [kernels.bring(kernels.hold(iter(p.items()), each, {})) for p, each in zip(made, ranks, strict=True)]
        for kernels in (apart, together)
    ]
    x, before = torch.randn(11, 64).to(device.dtype), torch.randn(11, 96 + 40 + 16).to(device.dtype)
    results = []
    for kernels, adapters in zip((apart, together), held, strict=True):
        mixes: list[Any] = [((each, 1.0),) for each in adapters] + [((adapters[1], 0.5), (adapters[2], -2.0)), ()]
        kernels.begin(plan_of(*(Span(n, n + 1, 0, [0], mixes[n % 6]) for n in range(11))))
        result = before.clone()
        parts = torch.split(result, [96, 40, 16], dim=1)  # type: ignore[no-untyped-call]
        if kernels is together:
            kernels.add_lora(Shared([Layer(name) for name in shapes]), x, parts)
        else:
            for name, part in zip(shapes, parts, strict=True):
                kernels.add_lora(Shared([Layer(name)]), x, [part])
        results.append(result)
    assert torch.equal(*results)
    assert not torch.equal(results[0][0], before[0])
    assert torch.equal(results[0][5], before[5])


def test_a_mix_adds_each_adapter_by_its_weight(device: Device) -> None:
    pairs = [pair(64, 96, rank) for rank in (4, 16, 30)]
    kernels = device.kernels(1, {}, [{"module": (96, 64)}, {"other": (8, 8)}])
    held = [hold(kernels, "module", each) for each in pairs] + [hold(kernels, "other", pair(8, 8, 2))]
    mixes: list[Any] = [
        ((held[0], 0.7), (held[3], 2.0), (held[1], -0.5)),
        ((held[0], 0.7), (held[3], 2.0), (held[1], 1.5)),
        ((held[3], 1.0),),
        ((held[2], 0.1), (held[0], 1.0)),
    ]
    rows = [1, 6, 2, 3]
    starts = [0, 1, 7, 9]
    kernels.begin(plan_of(*(Span(s, s + n, 0, [0], mix) for s, n, mix in zip(starts, rows, mixes, strict=True))))
    x, before = torch.randn(12, 64).to(device.dtype), torch.randn(12, 96).to(device.dtype)
    result, expected = before.clone(), before.float()
    kernels.add_lora(ALONE, x, [result])
    for start, count, mix in zip(starts, rows, mixes, strict=True):
        for used, weight in mix:
            if used is not held[3]:
                its = pairs[held.index(used)]
                down, up = its.down.to(device.dtype).float(), its.up.to(device.dtype).float()
                part = x[start : start + count].float() @ down @ up * its.scaling
                expected[start : start + count] += weight * part
    assert (result.float() - expected).abs().max() < device.tolerance * expected.abs().max()
    assert torch.equal(result[7:9], before[7:9])


@pytest.mark.parametrize(
    ("kv_heads", "group", "width", "window"),
    [(3, 3, 64, None), (2, 1, 80, 10), (1, 4, 16, 33), (2, 2, 24, None), (1, 1, 128, 16)],
)
def test_attention_is_that_of_torch(device: Device, kv_heads: int, group: int, width: int, window: int | None) -> None:
    """Decode and prefill, from scratch and upon cached tokens, in pages that are scattered and used before."""
    lengths, new = [5, 17, 40, 128, 33, 16], [1, 1, 7, 128, 3, 16]
    case = Attention(device, kv_heads, group, width, lengths)
    case.fill([length - count for length, count in zip(lengths, new, strict=True)])
    found = case.step(new, window)
    for index, (length, count) in enumerate(zip(lengths, new, strict=True)):
        expected = case.expected(index, length - count, window)
        assert (found[index] - expected).abs().max() < device.tolerance, index


class Attention:
    """Random sequences over one cache, written and attended to by `CpuKernels`."""

    def __init__(self, device: Device, kv_heads: int, group: int, width: int, lengths: list[int]) -> None:
        self.group, self.lengths = group, lengths
        pages = [-(-length // PAGE) for length in lengths]
        self.kernels = device.kernels(sum(pages), {0: (kv_heads, width)}, [], group)
        order = torch.randperm(sum(pages)).tolist()
        self.pages = [[order.pop() for _ in range(count)] for count in pages]
        self.keys, self.values = (
            [torch.randn(1, kv_heads, length, width).to(device.dtype) for length in lengths] for _ in range(2)
        )
        self.queries = [torch.randn(1, kv_heads * group, length, width).to(device.dtype) for length in lengths]
        for cache in self.kernels._cache[0]:
            cache.fill_(77.0)  # whoever used the pages before

    def fill(self, until: list[int]) -> None:
        """Cache each sequence's first tokens."""
        if any(until):
            self._run([(index, 0, stop) for index, stop in enumerate(until) if stop], None)
        self.cached = until

    def step(self, new: list[int], window: int | None, only: list[int] | None = None) -> dict[int, Any]:
        """Attend from each sequence's next tokens; float32 (rows, heads, width) by sequence."""
        chosen = range(len(new)) if only is None else only
        return self._run([(index, self.cached[index], self.cached[index] + new[index]) for index in chosen], window)

    def _run(self, parts: list[tuple[int, int, int]], window: int | None) -> dict[int, Any]:
        spans, start = [], 0
        for index, begin, end in parts:
            spans.append(Span(start, start + end - begin, begin, self.pages[index], ()))
            start += end - begin
        self.kernels.begin(plan_of(*spans))
        query, key, value = (
            torch.cat([tensors[index][:, :, begin:end] for index, begin, end in parts], dim=2)
            for tensors in (self.queries, self.keys, self.values)
        )
        value = value.transpose(1, 2).contiguous().transpose(1, 2)  # as models give it: heads are the inner stride
        result = self.kernels.attend(Layer(), query, key, value, sliding_window=window)  # type: ignore[arg-type]
        return {
            index: result[0, span.start : span.stop].float() for (index, *_), span in zip(parts, spans, strict=True)
        }

    def expected(self, index: int, begin: int, window: int | None) -> Any:
        rows, columns = torch.arange(begin, self.lengths[index])[:, None], torch.arange(self.lengths[index])
        seen = (columns <= rows) & (rows - columns < (window or 1 << 30))
        query = self.queries[index][:, :, begin:].float()
        keys, values = (each[index].float().repeat_interleave(self.group, dim=1) for each in (self.keys, self.values))
        return scaled_dot_product_attention(query, keys, values, attn_mask=seen)[0].transpose(0, 1)


def test_a_row_has_the_same_bits_alone_and_in_any_batch(device: Device) -> None:
    kernels = device.kernels(1, {}, [{"module": (96, 64)}])
    held = [hold(kernels, "module", pair(64, 96, rank)) for rank in (16, 5)]
    rows = [3, 6, 1]
    x, before = torch.randn(10, 64).to(device.dtype), torch.randn(10, 96).to(device.dtype)
    together = before.clone()
    kernels.begin(plan_of(*spans_of(rows, [held[0], held[1], held[0]])))
    kernels.add_lora(ALONE, x, [together])
    for index, adapter in [(0, 0), (2, 0), (3, 1), (8, 1), (9, 0)]:
        alone = before[index : index + 1].clone()
        kernels.begin(plan_of(Span(0, 1, 0, [0], ((held[adapter], 1.0),))))
        kernels.add_lora(ALONE, x[index : index + 1], [alone])
        assert torch.equal(alone[0], together[index]), index


def test_attention_has_the_same_bits_alone_in_a_batch_and_in_chunks(device: Device) -> None:
    lengths = [60, 33, 100]
    case = Attention(device, 3, 3, 64, lengths)
    case.fill([0, 0, 0])
    together = case.step(lengths, None)
    for index, length in enumerate(lengths):
        chunks = []
        case.cached = [0, 0, 0]
        for count in (1, 6, 13, length - 20):
            chunks.append(case.step([count] * 3, None, only=[index])[index])
            case.cached[index] += count
        if device.name == "cpu":
            assert torch.equal(torch.cat(chunks), together[index]), index
        else:  # whose tiles are of another height for prompts than for single tokens
            assert (torch.cat(chunks) - together[index]).abs().max() < device.tolerance, index


@pytest.mark.parametrize("device", CPU, indirect=True, ids=str)
def test_the_number_of_threads_changes_no_bit(device: Device) -> None:
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.manual_seed(0)
            torch.set_num_threads(count)
            case = Attention(device, 3, 3, 64, [60, 33])
            case.fill([20, 30])
            results.append(case.step([40, 3], None))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(each[index], results[0][index]) for each in results for index in (0, 1))


def test_without_openmp_one_thread_computes(tmp_path: Path) -> None:
    """As on systems whose torch brings another threading library."""
    program = """
import ctypes, torch
from pathlib import Path
real = Path.read_text
Path.read_text = lambda path, *rest, **others: "" if str(path) == "/proc/self/maps" else real(path, *rest, **others)
from swapmeet_serving.kernels import threads
from swapmeet_serving.kernels.cpu import CpuKernels
from swapmeet_serving.lora_weights import LoraPair
from swapmeet_serving.step_plan import Span, StepPlan
assert threads._LIBRARY is None
threads.compute_alone()
kernels = CpuKernels(1, {}, torch.float32, [{"m": (8, 8)}])
held = kernels.hold(iter([("m", LoraPair(torch.ones(8, 2), torch.ones(2, 8), 0.5))]), {"m": 2}, {})
kernels.begin(StepPlan(None, None, [2], (Span(0, 3, 0, [0], ((held, 1.0),)),)))
class M: name = 'm'
class S: layers, rows = [M], 'all'
result = torch.zeros(3, 8)
kernels.add_lora(S, torch.ones(3, 8), [result])
assert (result == 8).all(), result
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr


def test_where_nothing_can_be_cached_loops_are_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    from swapmeet_serving.kernels.threads import parallel

    compile_ = numba.cfunc

    def refusing(*arguments: Any, cache: bool = False, **settings: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")  # numba's words
        return compile_(*arguments, **settings)

    monkeypatch.setattr(numba, "cfunc", refusing)

    def loop(a: Any) -> None:
        numba.carray(a, (1,))[0] = 1

    parallel(loop)([0])


def test_rows_that_do_not_fit_never_reach_the_loops(device: Device) -> None:
    kernels = device.kernels(1, {}, [{"module": (8, 8)}])
    kernels.begin(plan_of(Span(0, 3, 0, [0], ((hold(kernels, "module", pair(8, 8, 2)), 1.0),))))
    for x, result in [
        (torch.ones(2, 8), torch.ones(2, 8)),
        (torch.ones(3, 8), torch.ones(3, 8).double()),
        (torch.ones(3, 8), torch.ones(8, 3).t()),
    ]:
        result = result.to(device.dtype) if result.dtype == torch.float32 else result
        with pytest.raises(RuntimeError, match="3 rows were expected"):
            kernels.add_lora(ALONE, x.to(device.dtype), [result])


def test_a_dtype_without_loops_is_refused(tiny_llama: Path, make_engine: Callable[..., Engine]) -> None:
    with pytest.raises(BaseUnsupported, match="bfloat16 or float32"):
        make_engine(tiny_llama, compute_dtype="float16")


def test_an_answer_is_the_same_alone_and_in_any_batch(
    tiny_llama: Path, random_lora: Callable[..., Path], make_engine: Callable[..., Engine], answer: Callable[..., Any],
    tmp_path: Path,
) -> None:  # fmt: skip
    adapters = [str(random_lora(tiny_llama, tmp_path / str(rank), rank=rank, seed=rank)) for rank in (4, 16)]
    requests = [
        Request(f"{name}:{length}", tuple(range(5, 5 + length)), name, Sampling(max_tokens=24, ignore_eos=True))
        for name in (None, *adapters)
        for length in (1, 9, 40)
    ]
    engine = make_engine(tiny_llama)
    together = answer(engine, *requests)
    for request in requests:
        alone = answer(engine, request)[request.id]
        assert [each.token_ids for each in alone] == [each.token_ids for each in together[request.id]], request.id


@pytest.mark.parametrize("device", CPU, indirect=True, ids=str)
def test_a_step_that_can_not_be_laid_out_says_why_also_once_it_is_ended(device: Device) -> None:
    kernels = device.kernels(1, {}, [])

    def step() -> None:
        try:
            kernels.begin(plan_of())
        finally:
            kernels.end()

    with pytest.raises(ValueError, match="empty"):
        step()
