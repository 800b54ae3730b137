"""What only GPUs have: the NF4 product for middling batches, and steps whose numbers stand at fixed addresses.

Without a GPU all of it runs in Triton's interpreter, but for the capture of CUDA graphs.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
bnb = pytest.importorskip("bitsandbytes")

from swapmeet_serving import Engine, Request, Sampling, engine, runner  # noqa: E402
from swapmeet_serving.base_model import BaseModel  # noqa: E402
from swapmeet_serving.kernels import PAGE, gpu_attention  # noqa: E402
from swapmeet_serving.kernels.decode_graphs import DecodeGraphs  # noqa: E402
from swapmeet_serving.kernels.gpu import GpuKernels  # noqa: E402
from swapmeet_serving.kernels.gpu_nf4 import SplitProduct  # noqa: E402
from swapmeet_serving.mix import parse_mix  # noqa: E402

GPU = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if GPU == "cuda" else torch.float32


def nf4(outputs: int, inputs: int, *, bias: bool, double: bool) -> Any:
    """A quantised layer as the GPU has it, and its dequantised weight."""
    layer = torch.nn.Linear(inputs, outputs, bias=bias, dtype=DTYPE, device=GPU)
    data, state = bnb.functional.quantize_4bit(
        layer.weight.data, blocksize=64, compress_statistics=double, quant_type="nf4"
    )
    layer.weight = torch.nn.Parameter(data, requires_grad=False)
    layer.weight.quant_state = state
    return layer, bnb.functional.dequantize_4bit(data, state).float()


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("rows", [5, 16, 33, 64])
def test_the_nf4_product_is_that_of_the_dequantised_weights(rows: int, double: bool) -> None:
    torch.manual_seed(0)
    shapes = [(192, 256, True), (64, 256, False), (128, 256, True)]
    layers, weights = zip(*(nf4(o, i, bias=b, double=double) for o, i, b in shapes), strict=True)
    product = SplitProduct.of(layers)
    assert product
    x = torch.randn(rows, 256, dtype=DTYPE, device=GPU)
    for result, layer, weight in zip(product(x), layers, weights, strict=True):
        expected = x.float() @ weight.t() + (0 if layer.bias is None else layer.bias.float())
        assert (result.float() - expected).abs().max() < (2e-2 if GPU == "cuda" else 1e-4) * expected.abs().max()
        again = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        assert torch.equal(again, weight), "the layer's own weight is a view that says the same"


def test_a_row_of_the_nf4_product_has_the_same_bits_with_any_others() -> None:
    torch.manual_seed(0)
    layer, _ = nf4(128, 512, bias=False, double=True)
    product = SplitProduct.of([layer])
    assert product
    x = torch.randn(16, 512, dtype=DTYPE, device=GPU)
    (together,), (fewer,) = product(x), product(x[:9])
    assert torch.equal(together[:9], fewer)


def test_layers_that_the_nf4_product_can_not_have_are_left_alone() -> None:
    plain = torch.nn.Linear(64, 64)
    odd, _ = nf4(24, 64, bias=False, double=True)  # 24 constants: no whole block of constants
    assert SplitProduct.of([plain]) is None
    assert SplitProduct.of([odd]) is None
    assert (
        SplitProduct.of([nf4(256, 64, bias=False, double=True)[0], nf4(256, 64, bias=False, double=False)[0]]) is None
    )


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines compute with the GPU's kernels, whatever the device."""

    def kernels_for(base: BaseModel, kv_bytes: int, *, exact: bool) -> GpuKernels:
        return GpuKernels(64, base.kv_layers, base.dtype, base.groups, base.device, base.sharing)

    monkeypatch.setattr(engine, "kernels_for", kernels_for)


@pytest.fixture
def uncaptured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Steps of fixed numbers are computed anew instead of replayed; gives the sizes that there were."""
    sizes: list[Any] = []

    def capture(fixed: Any) -> Any:
        sizes.append(fixed._sizes)
        return fixed.forward

    monkeypatch.setattr(
        runner, "_graphs", lambda base, kernels: DecodeGraphs(base.model, kernels, base.device, capture)
    )
    return sizes


def ask(name: str, prompt: Any, adapter: Any = None, new: int = 4) -> Request:
    return Request(name, tuple(prompt), adapter, Sampling(max_tokens=new, ignore_eos=True))


@pytest.mark.usefixtures("on_gpu")
def test_greedy_tokens_are_those_of_peft(
    tiny_llama: Path, random_lora: Callable[..., Path], make_engine: Callable[..., Engine], answer: Callable[..., Any],
    reference: Callable[..., Any], tmp_path: Path, uncaptured: list[Any],
) -> None:  # fmt: skip
    """A batch of ranks that differ, of prompts in pieces, of a prefix that is there, decoded in fixed steps."""
    adapters = [random_lora(tiny_llama, tmp_path / str(rank), rank=rank, seed=rank) for rank in (3, 16, 40)]
    prompts = [tuple(range(5 + n, 40 + 3 * n)) for n in range(3)]
    made = make_engine(tiny_llama, compute_dtype="float32", max_step_tokens=24, device=GPU)
    requests = [
        ask(f"{index}-{number}", prompt, str(adapter) if adapter else None)
        for index, adapter in enumerate([None, *adapters])
        for number, prompt in enumerate(prompts[:2] if adapter else prompts)
    ]
    for _ in range(2):  # the second time prompts are in the cache
        found = answer(made, *requests)
        for index, adapter in enumerate([None, *adapters]):
            asked = prompts[:2] if adapter else prompts
            for number, expected in enumerate(reference(tiny_llama, adapter, asked, 4, dtype="float32")):
                outputs = found[f"{index}-{number}"]
                assert [t for each in outputs for t in each.token_ids] == expected, (index, number)
    assert any(each.width for each in uncaptured)
    assert any(each.rows > 4 for each in uncaptured)


@pytest.mark.usefixtures("on_gpu")
def test_fixed_steps_change_no_token(
    tiny_llama: Path, random_lora: Callable[..., Path], make_engine: Callable[..., Engine], answer: Callable[..., Any],
    tmp_path: Path, request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """With mixes, DoRA beside them (whose steps are computed as they come), and answers of different lengths."""
    one, two = (random_lora(tiny_llama, tmp_path / str(rank), rank=rank, seed=rank) for rank in (8, 5))
    dora = random_lora(tiny_llama, tmp_path / "dora", rank=4, seed=9, use_dora=True)
    requests = [
        ask("bare", range(5, 12)),
        ask("one", range(6, 30), str(one), new=5),
        ask("mix", range(7, 20), parse_mix(f"{one}*0.7+{two}*-0.5"), new=4),
        ask("dora", range(8, 18), str(dora), new=3),
    ]
    plain = answer(make_engine(tiny_llama, compute_dtype="float32", device=GPU), *requests)
    sizes = request.getfixturevalue("uncaptured")
    fixed = answer(make_engine(tiny_llama, compute_dtype="float32", device=GPU), *requests)
    tokens = [
        {name: [t for o in outputs for t in o.token_ids] for name, outputs in each.items()} for each in (plain, fixed)
    ]
    assert tokens[0] == tokens[1]
    assert sizes
    assert len(set(sizes)) == len(sizes), "each size is captured once"


def test_a_step_that_gives_no_token_is_waited_for(
    tiny_llama: Path, make_engine: Callable[..., Engine], answer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody reads anything of it, so a GPU might compute it still when its adapter is evicted."""
    waited: list[str] = []
    monkeypatch.setattr(runner, "wait_for", waited.append)
    made = make_engine(tiny_llama, max_batch=1, max_step_tokens=24, device=GPU)
    answer(made, ask("one", range(5, 65), new=3))
    assert waited == [GPU, GPU], "of the prompt's 60 tokens, 48 in two steps that give none"


@pytest.mark.parametrize("window", [0, 100])
def test_rows_seen_in_parts_among_others_are_those_of_torch(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Partial sums are of the rows that decode only: of a long context, they take many times the result."""
    torch.manual_seed(0)
    lengths, at, heads, width = (3, 70, 200), (0, 4, 7), 4, 16
    made: list[tuple[int, ...]] = []
    empty = torch.empty

    def noted(*shape: int, **settings: Any) -> Any:
        made.append(shape)
        return empty(*shape, **settings)

    pages = -(-max(lengths) // PAGE)
    cache = tuple(torch.randn(len(lengths) * pages, PAGE, 2, width, device=GPU) for _ in range(2))
    tables = torch.arange(len(lengths) * pages, device=GPU).view(len(lengths), pages)
    found = [(row, 1, n - 1, i) for i, (row, n) in enumerate(zip(at, lengths, strict=True))]
    blocks = torch.tensor([*found, (0, 0, 0, 0)], device=GPU)  # the last one is empty, as in fixed steps
    query = torch.randn(heads, 9, width, device=GPU)
    result = torch.zeros(9, heads, width, device=GPU)
    monkeypatch.setattr(gpu_attention, "PART", 64)
    monkeypatch.setattr(torch, "empty", noted)
    gpu_attention.attend(
        query,
        cache,
        blocks,
        tables,
        result,
        longest=pages * PAGE,
        decoding=True,
        prompt_rows=16,
        scaling=0.25,
        window=window,
    )
    assert made == [(4, 4, heads, width), (4, 4, heads, 2)]
    for index, (row, length) in enumerate(zip(at, lengths, strict=True)):
        k, v = (each[tables[index]].flatten(0, 1)[:length].transpose(0, 1).repeat_interleave(2, 0) for each in cache)
        k, v = (each[:, -window:] for each in (k, v))
        expected = torch.softmax(0.25 * query[:, row, None] @ k.transpose(1, 2), -1) @ v
        assert (result[row] - expected[:, 0]).abs().max() < 1e-4
    assert not result[[1, 2, 3, 5, 6, 8]].any(), "nothing else is written"
