"""Settings: command-line options, then `SWAPMEET_*` variables, then one TOML file, then these defaults."""

import os
import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from swapmeet.errors import SettingsError
from swapmeet_registry.signing import Policy, Trust
from swapmeet_registry.signing.keys import PrivateKey

PREFIX = "SWAPMEET_"
OTHERS = ("SWAPMEET_CONFIG", "SWAPMEET_BENCH_", "SWAPMEET_TEST_")
"""Variables under the prefix that are no settings: where the file is, and those of benchmarks and tests."""


class Settings(BaseSettings):
    """What an operator may set. Sizes are in bytes.

    `adapter_memory` is the device's; `adapter_host_memory` keeps, beside a GPU, those that had to leave it, and
    `adapter_disk` is what a machine keeps of adapters fetched from the registry; everywhere those longest unused go.
    `exact` has answers computed in the very order of transformers and PEFT, bit for bit, and slower. `tool_format`
    says how models with chat templates for tools write calls, where the template's text does not tell.
    `storage` keeps uploaded files and runs' checkpoints, like `registry` in a folder or in S3.
    `secret_key` is what secrets in the database are encrypted with; without it, that of `HOME/secret.key` is.
    `gpu_price` is that of a GPU for an hour, for plans.
    `signatures` says what happens to an adapter that none of the `trusted_keys` signed, before it is pulled or served:
    `require` refuses it, `warn` only says so. The keys are a folder of public keys, `*.pem` for adapters of all tenants
    and `TENANT/*.pem` for those of one; every machine must have it. With `signing_key`, a private key in PEM, the
    platform signs what its own runs publish.
    `webhook_private` lets webhooks reach private addresses, this machine's own among them. `mlflow` is the URL of the
    MLflow server that runs may report to, and `tensorboard` the folder where they may.
    `metrics_public` opens `/metrics`, which names tenants' adapters, to whoever reaches the port. Times are in
    seconds. `min_replicas` may be 0: after `downscale_delay` without a call the last engine ends, and the next call
    waits until one has started. Usage is kept by the minute for `usage_days`, and by the day from then on; the audit
    log for `audit_days`; checkpoints and logs of failed and cancelled jobs for `failed_run_days`; each 0 is for ever.
    `drain` is how long answers under way may go on when a server or replica stops.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    home: Path = Path("~/.swapmeet")
    registry: str = ""
    storage: str = ""
    database: str = ""
    base: str = "smollm2-135m"
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_batch: int = Field(32, ge=1, le=4096)
    max_queue: int = Field(512, ge=1)
    adapter_memory: int = Field(1 << 30, ge=1 << 20)
    adapter_host_memory: int = Field(4 << 30, ge=0)
    adapter_disk: int = Field(20 << 30, ge=1 << 20)
    kv_memory: int = Field(1 << 30, ge=1 << 20)
    caller_requests: int = Field(256, ge=1)
    exact: bool = False
    metrics_public: bool = False
    tool_format: Literal["auto", "hermes", "llama", "mistral"] = "auto"
    threads: int | None = Field(None, ge=1)
    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(1, ge=1)
    target_requests: float = Field(32, gt=0)
    upscale_delay: float = Field(10, ge=0)
    downscale_delay: float = Field(600, ge=0)
    drain: float = Field(30, ge=0)
    usage_days: int = Field(90, ge=0, le=36_500)
    audit_days: int = Field(400, ge=0, le=36_500)
    failed_run_days: int = Field(30, ge=0, le=36_500)
    step_timeout: float = Field(120, gt=0)
    secret_key: SecretStr = SecretStr("")
    webhook_private: bool = False
    signatures: Policy = "off"
    trusted_keys: Path | None = None
    signing_key: Path | None = None
    mlflow: str = ""
    gpu_price: float = Field(0, ge=0)
    tensorboard: str = ""
    ray_address: str = ""
    url: str = ""
    api_key: SecretStr = SecretStr("")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas ({self.min_replicas}) exceeds max_replicas ({self.max_replicas})")
        return self

    @model_validator(mode="after")
    def _with_keys(self) -> Self:
        if self.signatures != "off" and self.trusted_keys is None:
            raise ValueError(
                f"signatures can not be checked ({self.signatures}) without trusted_keys, a folder of them"
            )
        return self

    @property
    def folder(self) -> Path:
        """The home folder, absolute."""
        return self.home.expanduser().resolve()

    @property
    def request_log(self) -> Path:
        """Where the gateway logs requests."""
        return self.folder / "logs" / "requests.jsonl"

    @property
    def registry_url(self) -> str:
        """Where adapters are kept: as set, or a folder in the home."""
        return self.registry or f"file://{self.folder}/registry"

    @property
    def trust(self) -> Trust:
        """Whose signatures adapters must bear to be pulled and served."""
        return Trust(self.signatures, self.trusted_keys.expanduser().resolve() if self.trusted_keys else None)

    @property
    def signer(self) -> PrivateKey | None:
        """What the platform signs with, if it does.

        Raises:
            SigningKeyInvalid: the file holds no key that can be used.
        """
        return PrivateKey(self.signing_key.expanduser()) if self.signing_key else None

    @property
    def storage_url(self) -> str:
        """Where uploaded files and runs' checkpoints are kept: as set, or a folder in the home."""
        return self.storage or f"file://{self.folder}/storage"

    @property
    def database_url(self) -> str:
        """Where tenants, keys, jobs and usage are kept: as set, or an SQLite file in the home."""
        return self.database or f"sqlite:///{self.folder}/swapmeet.db"

    @property
    def tensorboard_folder(self) -> Path:
        """Where runs that want TensorBoard's files have them: as set, or a folder in the home."""
        return Path(self.tensorboard).expanduser() if self.tensorboard else self.folder / "tensorboard"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Add the TOML file below the environment."""
        home = getattr(init_settings, "init_kwargs", {}).get("home")
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, _file(home))


def load_settings(**options: Any) -> Settings:
    """Settings from all sources; `options` that are None count as not given.

    Raises:
        SettingsError: one message that names every mistake.
    """
    unknown = [f"{name} is no setting" for name in os.environ if name.startswith(PREFIX) and not _known_variable(name)]
    try:
        settings = Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        mistakes = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise SettingsError("; ".join([*unknown, *mistakes]) + _hint()) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{_file(options.get('home'))} is not TOML: {error}.") from error
    if unknown:
        raise SettingsError("; ".join(sorted(unknown)) + _hint())
    return settings


def _file(home: Path | None) -> Path:
    if named := os.environ.get("SWAPMEET_CONFIG"):
        if not Path(named).expanduser().is_file():
            raise SettingsError(f"SWAPMEET_CONFIG names {named}, which is no file. Correct it or unset it.")
        return Path(named).expanduser()
    return (home or Path(os.environ.get("SWAPMEET_HOME", "~/.swapmeet"))).expanduser() / "swapmeet.toml"


def _known_variable(name: str) -> bool:
    return name.removeprefix(PREFIX).lower() in Settings.model_fields or name.startswith(OTHERS)


def _hint() -> str:
    return f". Settings are {', '.join(Settings.model_fields)}."
