"""The manifest of one version: its files, its base and its origin. Its SHA-256 is the version's identity."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, FailFast, Field, PrivateAttr, StringConstraints

from swapmeet_registry import canonical
from swapmeet_registry.origin.provenance import Facts, Provenance

FILE_NAME = r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}"
"""Names of published files: no folders, nothing hidden, nothing a shell or an URL would change."""

FileName = Annotated[str, StringConstraints(pattern=rf"^{FILE_NAME}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Timestamp = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")]


class StoredFile(BaseModel):
    """A file of an adapter: its name in the adapter's folder, its size in bytes, the hex SHA-256 of its bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: FileName
    size: int = Field(ge=0)
    sha256: Sha256


class Lora(BaseModel):
    """What a server must know before it fetches the weights.

    Attributes:
        rank: the configured rank; single modules may have others.
        max_rank: the largest rank of any module.
        alpha: LoRA's alpha; the scale is alpha / rank, or alpha / sqrt(rank) with `rslora`.
        target_modules: module name suffixes, or one pattern, as in the adapter's configuration.
        rslora: rank-stabilized scaling (arXiv 2312.03732).
        dora: weight-decomposed LoRA (arXiv 2402.09353).
        parameters: number of adapter weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(ge=1)
    max_rank: int = Field(ge=1)
    alpha: float
    target_modules: tuple[str, ...] | str
    rslora: bool = False
    dora: bool = False
    parameters: int = Field(ge=1)


class Manifest(Facts):
    """One version of an adapter, immutable.

    Attributes:
        adapter: `TENANT/NAME`.
        created_at: RFC 3339, UTC, to the microsecond.
        files: the adapter's files, sorted by name.
        lora: its LoRA settings.
    """

    schema_: Literal["swapmeet.manifest/1"] = Field("swapmeet.manifest/1", alias="schema")
    adapter: str
    created_at: Timestamp
    files: Annotated[tuple[StoredFile, ...], FailFast()] = Field(min_length=1)
    lora: Lora
    _as_read: bytes | None = PrivateAttr(None)  # where another program wrote it in another form of JSON

    @classmethod
    def decode(cls, data: bytes, what: str) -> Self:
        """See `Document`. What is read keeps its bytes, and with them its digest."""
        manifest = super().decode(data, what)
        if manifest.encode() != data:
            manifest._as_read = data
        return manifest

    def encode(self) -> bytes:
        """The bytes that it was read from, or else the canonical ones."""
        return super().encode() if self._as_read is None else self._as_read

    @property
    def digest(self) -> str:
        """`sha256:HEX` of its bytes."""
        return canonical.digest(self.encode())

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)

    def provenance(self) -> Provenance:
        """What stands in a pulled folder's `swapmeet.json`."""
        return Provenance.model_validate(self.facts())
