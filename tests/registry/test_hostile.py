"""Uploads made to harm: each is refused by its reason, quickly, in little memory, and nothing of it is stored."""

import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors import deserialize as reference

from swapmeet_registry import Fingerprint, Refused
from swapmeet_registry.admission.admit import admit
from swapmeet_registry.safetensors_file import WIDTHS, read_header

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
A, B = f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight"
MEMORY = 128 << 20
CPU = 0.2
GENEROUS = 10
"""Others compute on the same machine; what it takes alone stands in the benchmarks."""

Change = Callable[[Path], object]


def tensor(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


SOUND = {A: tensor([4, 32], 0, 512), B: tensor([16, 4], 512, 768)}


def raw(header: Any, data: bytes = b"\0" * 768) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def weights(data: bytes) -> Change:
    return lambda folder: (folder / WEIGHTS).write_bytes(data)


def header(change: dict[str, Any], data: bytes = b"\0" * 768) -> Change:
    return weights(raw({name: value for name, value in {**SOUND, **change}.items() if value is not None}, data))


def config(**change: Any) -> Change:
    return lambda folder: (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | change))


def said(**facts: Any) -> Change:
    base = {"name": "tiny", "weights": "sha256:" + "a" * 64, "tokenizer": "sha256:" + "b" * 64}
    document = {"schema": "swapmeet.provenance/1", "base": base, **facts}
    return lambda folder: (folder / "swapmeet.json").write_text(json.dumps(document))


def file(name: str, data: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(data)


def sparse(name: str, size: int) -> Change:
    def make(folder: Path) -> None:
        with (folder / name).open("ab") as stream:
            stream.truncate(size)

    return make


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.pkl", pickle.dumps(print))
    return out.getvalue()


def polyglot(folder: Path) -> None:
    """Sound tensors whose last bytes are the end of a zip archive that begins within them."""
    (folder / WEIGHTS).write_bytes(raw(SOUND, zipped().rjust(768, b"\0")))


def swapped(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("/etc/passwd")


def patterns_by_modules(folder: Path) -> None:
    """Each pattern is as long as the last part of a module's name, and only the last one matches, and only one name."""
    (folder / WEIGHTS).write_bytes(raw(DOTS, b"\0" * 32 * 40))
    patterns = {f"{n:03d}": 4 for n in range(1990)} | {f"m.{n}": 4 for n in range(9)} | {"m39": 5}
    config(rank_pattern=patterns, target_modules=["q_proj"] + [f"m{n}" for n in range(40)])(folder)


def expression(folder: Path) -> None:
    """PEFT would run this over the names of all modules, and takes more than a minute."""
    (folder / WEIGHTS).write_bytes(raw({"base_model.model.model.norm.weight": tensor([192], 0, 768)}))
    config(target_modules=".*" * 10 + "x", modules_to_save=["norm"])(folder)


NAN = b"\0" * 764 + struct.pack("<f", float("nan"))
MANY = b"{" + b",".join(b'"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % n for n in range(70_000)) + b"}"
LAUGHS = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))
DOTS = {
    f"base_model.model.{'a.' * 200}m{n}.{name}": entry
    for n in range(40)
    for name, entry in (
        ("lora_A.weight", tensor([4, 1], 32 * n, 32 * n + 16)),
        ("lora_B.weight", tensor([1, 4], 32 * n + 16, 32 * n + 32)),
    )
}
"""Modules whose names have as many ends to compare as there can be."""
EVIL = {"auto_mapping": {"parent_library": "os.path", "base_model_class": "join"}}

CORPUS: dict[str, tuple[Change, str]] = {
    # the container
    "empty file": (weights(b""), r"too short to be a safetensors file"),
    "header longer than the file": (weights(struct.pack("<Q", 1 << 62) + b"{}"), r"its header of .* is too large"),
    "negative header length": (weights(b"\xff" * 8 + b"{}"), r"its header of \d+ bytes is too large"),
    "header of 90 MB": (sparse(WEIGHTS, 90 << 20), r"adapter_model\.safetensors"),
    "a million tensors": (weights(raw(MANY, b"")), r"names too many tensors"),
    "brackets": (weights(raw(b'{"a":' + b"[" * 4_000_000, b"")), r"names too many tensors"),
    "small lists": (weights(raw(b'{"a":[' + b"[],[]," * 600_000 + b"0]}", b"")), r"names too many tensors"),
    "small texts": (weights(raw(b'{"a":[' + b'"",' * 1_300_000 + b"0]}", b"")), r"names too many tensors"),
    "numbers": (weights(raw(b'{"a":[' + b"1," * 2_000_000 + b"0]}", b"")), r"has more numbers in its header"),
    "deep header": (weights(raw(b'{"a":' * 15_000, b"")), r"not sound JSON"),
    "huge metadata": (header({"__metadata__": {"x": "y" * (5 << 20)}}), r"too large"),
    "metadata that is no text": (header({"__metadata__": {"format": ["pt"]}}), r"__metadata__ must map text to text"),
    "metadata twice": (weights(raw(b'{"__metadata__":{},"__metadata__":{}}', b"")), r"names something twice"),
    "tensor twice": (weights(raw(json.dumps(SOUND).encode()[:-1] + b"," + json.dumps(SOUND).encode()[1:])), r"twice"),
    "key twice": (weights(raw(json.dumps(SOUND).replace('"shape"', '"dtype":"F16","shape"').encode())), r"twice"),
    "tensors share bytes": (header({B: tensor([16, 4], 0, 256)}, b"\0" * 512), r"overlaps another or leaves a gap"),
    "a gap": (header({B: tensor([16, 4], 612, 868)}, b"\0" * 868), r"overlaps another or leaves a gap"),
    "trailing bytes": (weights(raw(SOUND, b"\0" * 769)), r"it was cut or added to"),
    "truncated data": (weights(raw(SOUND, b"\0" * 700)), r"it was cut or added to"),
    "truncated header": (weights(raw(SOUND)[:100]), r"its header of \d+ bytes is too large"),
    "shape lies": (header({A: tensor([4, 33], 0, 512)}), r"its shape needs another number"),
    "overflowing shape": (header({A: tensor([1 << 62, 1 << 62], 0, 512)}), r"its shape needs another number"),
    "number without end": (weights(raw(json.dumps(SOUND).replace("512", "5" * 5000).encode())), r"not sound JSON"),
    "minus zero": (weights(raw(json.dumps(SOUND).replace("[0,", "[-0,").encode())), r"sound JSON"),
    "a million dimensions": (header({A: tensor([2] * 1_000_000, 0, 512)}), r"has more numbers in its header than"),
    "a thousand dimensions": (header({A: tensor([2] * 1_000, 0, 512)}), r"has 1000 dimensions; at most 8"),
    "no dtype of ours": (header({A: tensor([4, 16], 0, 512, "F64")}), r"has the dtype F64"),
    "byte order mark": (weights(raw(b"\xef\xbb\xbf" + json.dumps(SOUND).encode())), r"not sound JSON"),
    "half a letter": (header({"__metadata__": {"x": "\ud800"}}), r"not sound JSON"),
    "pickle in disguise": (weights(pickle.dumps({"a": list(range(9999))})), r"its header of \d+ bytes is too large"),
    "zip in disguise": (weights(zipped()), r"its header of \d+ bytes is too large"),
    "7z in disguise": (weights(b"7z\xbc\xaf\x27\x1c" + b"\0" * 5000), r"its header of \d+ bytes is too large"),
    "weights and zip at once": (polyglot, r"ends as a zip archive does"),
    # the tensors
    "NaN": (weights(raw(SOUND, NAN)), r"lora_B\.weight holds a NaN or an infinity"),
    "missing B": (weights(raw({A: SOUND[A]}, b"\0" * 512)), r"q_proj lacks its lora_B"),
    "other rank": (header({B: tensor([8, 8], 512, 768)}), r"A of rank 4 and B of rank 8"),
    "empty tensor": (header({f"{MODULE}.lora_B.bias": tensor([0], 768, 768)}), r"has the shape \[0\]"),
    "traversal": (weights(raw({"../../x": SOUND[A]}, b"\0" * 512)), r"'\.\./\.\./x', which is no part of a LoRA"),
    "long name": (weights(raw({"a." * 1_000_000: SOUND[A]}, b"\0" * 512)), r"which is no part of a LoRA"),
    "other letters": (weights(raw({A.replace("o", "\u043e"): SOUND[A]}, b"\0" * 512)), r"which is no part of a LoRA"),
    "wrong base": (header({A: tensor([4, 16], 0, 256), B: tensor([32, 4], 256, 768)}), r"in tiny it is 16 by 32"),
    "no such layer": (
        weights(raw({name.replace("layers.0", "layers.9"): value for name, value in SOUND.items()})),
        r"tiny has no such linear layer",
    ),
    # adapter_config.json
    "import path": (config(**EVIL), r"uses auto_mapping: a model class imported by name"),
    "import path, deeper": (
        config(auto_mapping={"parent_library": "transformers.models.x.evil.py:y", "base_model_class": "A"}),
        r"uses auto_mapping",
    ),
    "import path, more": (
        config(auto_mapping={"parent_library": "transformers.models.x", "base_model_class": "A", "run": "id"}),
        r"uses auto_mapping",
    ),
    "part of the future": (config(new_code="os.system"), r"uses new_code: a part of PEFT"),
    "slow expression": (config(target_modules="(a+)+$"), r"repeats a group"),
    "many patterns": (config(rank_pattern={f"m{n}": 4 for n in range(30_000)}), r"rank_pattern: .* at most 2000"),
    "patterns by modules": (patterns_by_modules, r"m39 has rank 4, but adapter_config\.json gives it rank 5"),
    "expression instead of weights": (expression, r"holds no LoRA weights"),
    "codes of a terminal": (config(**{"\x1b[31m\n": 1}), r"uses '\\x1b\[31m\\n': a part of PEFT"),
    "half a letter of a key": (config(**{"\ud800": 1}), r"uses '\\ud800': a part of PEFT"),
    "half a letter of a pattern": (config(rank_pattern={"\ud800\x1b": 1}), r"rank_pattern\.'.*'\."),
    "infinity": (config(lora_alpha=float("inf")), r"Infinity is no JSON number"),
    "infinity in digits": (
        file(CONFIG, b'{"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "lora_alpha": 1e999}'),
        r"lora_alpha: input should be (a finite number|less than)",
    ),
    "a number of 5000 digits": (file(CONFIG, b'{"r": ' + b"9" * 5000 + b"}"), r"a number of 5000 digits"),
    "many targets": (config(target_modules=[f"m{n}" for n in range(30_000)]), r"target_modules"),
    "huge config": (sparse(CONFIG, 2 << 20), r"adapter_config\.json has 2097152 bytes"),
    "config with a key twice": (file(CONFIG, b'{"r": 4, "r": 8}'), r"gives 'r' twice"),
    "deep config": (file(CONFIG, b'{"a":' * 100_000), r"nested too deeply"),
    # the folder
    "pickle": (file("adapter_model.bin", pickle.dumps(1)), r"is a pickle, which can run code"),
    "link": (swapped, r"'adapter_model\.safetensors' is a link"),
    "link to a folder": (lambda folder: (folder / "a.json").symlink_to(".."), r"'a\.json' is a link"),
    "pipe": (lambda folder: os.mkfifo(folder / "a.json"), r"'a\.json' is not a plain file"),
    "same name in capitals": (file("Adapter_Config.json", b"{}"), r"are one file where case does not count"),
    "a device's name": (file("nul.json", b"{}"), r"'nul\.json' is not a file name"),
    "direction override": (file("a\u202enosj.json", b"{}"), r"is not a file name that can be published"),
    "5 GB": (sparse(WEIGHTS, 5 << 30), r"has 5368709120 bytes; at most"),
    "a hundred files": (
        lambda folder: [(folder / f"{n}.json").write_text("{}") for n in range(100)],
        r"holds 103 files; an adapter may have 64",
    ),
    # the extras
    "zip as JSON": (file("tokenizer.json", zipped()), r"tokenizer\.json is a zip archive under another name"),
    "pickle as text": (file("merges.txt", pickle.dumps(print)), r"merges\.txt is a pickle under another name"),
    "7z as a model": (file("tokenizer.model", b"7z\xbc\xaf\x27\x1c"), r"tokenizer\.model is a 7z archive"),
    "program as a licence": (file("LICENSE", b"\x7fELF" + b"\0" * 99), r"LICENSE is a program under another name"),
    "zeros in a text": (file("a.txt", b"a\0b"), r"holds a zero byte"),
    "no JSON": (file("tokenizer_config.json", b'{"a": 1'), r"tokenizer_config\.json is not JSON"),
    "deep JSON": (file("a.json", b"[" * 99_999 + b"]" * 99_999), r"nested over 64 levels deep"),
    "JSON of small objects": (
        file("a.json", b'{"auto_map":1,"a":[' + b"{}," * 690_000 + b"0]}"),
        r"a\.json has over 250000 lists and objects",
    ),
    "JSON of small lists": (file("a.json", b"[" + b"[]," * 21_000_000 + b"0]"), r"a\.json has over 2097152 bytes"),
    "remote code": (file("tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": "x.y"}}'), r"import code by name"),
    "a billion laughs": (file("README.md", f"---\na0: &a0 x\n{LAUGHS}\n---\n".encode()), r"uses references or tags"),
    "YAML that makes objects": (file("README.md", b"---\na: !!python/name:os.system\n---\n"), r"references or tags"),
    "huge metadata of a card": (file("README.md", b"---\na: " + b"x" * 99_999 + b"\n---\n"), r"begins with over 65536"),
    "deep metadata of a card": (file("README.md", b"---\na: " + b"[" * 60_000 + b"\n---\n"), r"its metadata"),
    "codes in a licence": (said(license="\x1b]0;x\x07"), r"license has .* signs that can not be printed"),
    "half a letter of provenance": (said(training={"\ud800": 1}), r"training holds what is no JSON"),
    "infinity in provenance": (said(training={"a": float("1e308") * 10}), r"Infinity is no JSON number"),
    "a long licence": (said(license="x" * 3_000_000), r"license has over 200 letters"),
    "many tags and metrics": (
        said(tags=[f"t{n}" for n in range(10_000)], metrics={f"m{n}": 1 for n in range(10_000)}),
        r"over 100 tags; there are over 1000 metrics",
    ),
    "deep provenance": (file("swapmeet.json", b'{"a":' * 99_999), r"swapmeet\.json is nested too deeply"),
}  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "adapter"
    folder.mkdir()
    return make(folder)


def make(folder: Path) -> Path:
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / CONFIG).write_text(json.dumps(settings))
    (folder / WEIGHTS).write_bytes(raw(SOUND))
    (folder / "README.md").write_text("---\nlicense: mit\ntags:\n- lora\n---\nAn adapter.\n")
    return folder


def test_the_corpus_is_refused(tmp_path: Path) -> None:
    assert len(CORPUS) >= 40
    folders = []
    for number, (change, _) in enumerate([(lambda _: None, ""), *CORPUS.values()]):
        folders.append(tmp_path / str(number) / "adapter")
        folders[-1].mkdir(parents=True)
        change(make(folders[-1]))
    script = Path(__file__).with_name("admitter.py")
    store = tmp_path / "registry"
    command = [sys.executable, script, (tmp_path / "first").as_uri(), store.as_uri(), *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    first, *lines = map(json.loads, done.stdout.splitlines())
    assert first["error"] == "NoneType", first
    told = dict(zip(CORPUS, lines, strict=True))
    wrong = {
        name: told[name]
        for name, (_, reason) in CORPUS.items()
        if told[name]["error"] != "Refused" or not re.search(reason, told[name]["words"])
    }
    assert wrong == {}
    assert {name: line for name, line in told.items() if line["peak"] > MEMORY} == {}
    assert {name: line for name, line in told.items() if line["seconds"] > GENEROUS * CPU} == {}
    assert all(len(line["words"]) < 1000 for line in lines)
    assert list((tmp_path / "first").rglob("hostile.json"))
    assert [path for path in store.rglob("*") if path.is_file()] == []
    assert {path.name for path in tmp_path.glob("[0-9]*/*")} == {"adapter"}, "no scratch folder is left"


def test_no_flipped_bit_is_published_unseen(sound: Path, tmp_path: Path, base: Fingerprint) -> None:
    """In every region: what is admitted in spite of it is what the reference reads from it, in canonical form."""
    folder = make(tmp_path)
    whole = raw({"__metadata__": {"format": "pt"}, **SOUND}, bytes(range(96)) * 8)
    end = len(whole) - 768
    outcomes = set()
    for place in (*range(0, end, 3), *range(end, len(whole), 37)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        (folder / WEIGHTS).write_bytes(data)
        try:
            with admit(folder, base) as admitted:
                published = (admitted.folder / WEIGHTS).read_bytes()
        except Refused:
            outcomes.add("refused")
        else:
            assert values(published) == values(bytes(data))
            outcomes.add("admitted")
    assert outcomes == {"refused", "admitted"}


def values(data: bytes) -> dict[str, Any]:
    return {name: (each["dtype"], each["shape"], bytes(each["data"])) for name, each in reference(data)}


NAMES = st.sampled_from([A, B, "__metadata__", "a", "", "\u00e9", "base_model.model.x.lora_A.weight"])
NUMBERS = st.integers(-2, 40) | st.sampled_from([2**31, 2**62, 2**63, 2**64, -1, 0.0, 1.5, True, None, "1"])
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*WIDTHS, "F4", "", 3]),
        "shape": st.lists(NUMBERS, max_size=3),
        "data_offsets": st.lists(NUMBERS, max_size=3),
    },
    optional={"x": NUMBERS},
)
HEADERS = st.dictionaries(NAMES, ENTRIES | st.dictionaries(st.text(max_size=3), st.text(max_size=3)), max_size=4)


@st.composite
def tight(draw: st.DrawFn) -> tuple[dict[str, Any], bytes]:
    """Headers that are sound, or nearly so."""
    fields, end = {}, 0
    for name in draw(st.lists(NAMES, unique=True, max_size=4)):
        dtype, shape = draw(st.sampled_from(sorted(WIDTHS))), draw(st.lists(st.integers(0, 3), max_size=3))
        start, end = end, end + int(np.prod(shape)) * WIDTHS[dtype]
        fields[name] = tensor(shape, start, end, dtype)
    return fields, draw(st.binary(min_size=end, max_size=end + draw(st.sampled_from([0, 0, 0, 1]))))


@st.composite
def containers(draw: st.DrawFn) -> bytes:
    fields, data = draw(tight() | st.tuples(HEADERS, st.binary(max_size=64)))
    text = json.dumps(fields, ensure_ascii=draw(st.booleans())).encode() + b" " * draw(st.integers(0, 3))
    whole = bytearray(struct.pack("<Q", len(text) + draw(st.sampled_from([0, 0, 0, 1, -1]))) + text + data)
    for place, value in draw(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=2)):
        if place < len(whole):
            whole[place] = value
    return bytes(whole)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=containers() | st.binary(max_size=200))
def test_whatever_is_read_the_reference_reads_alike(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(data)
    try:
        found = read_header(path)
    except Refused:
        return
    try:
        wanted = values(data)
    except SafetensorError as error:
        raise AssertionError(f"the reference refuses {data!r}") from error
    start = found.data_start
    assert wanted == {
        entry.name: (entry.dtype, list(entry.shape), data[start + entry.start : start + entry.start + entry.size])
        for entry in found.tensors
    }


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=containers())
def test_admission_refuses_or_publishes_what_is_sound(tmp_path: Path, base: Fingerprint, data: bytes) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir(exist_ok=True)
    (make(folder) / WEIGHTS).write_bytes(data)
    try:
        with admit(folder, base) as admitted:
            assert values((admitted.folder / WEIGHTS).read_bytes()) == values(data)
    except Refused:
        pass
