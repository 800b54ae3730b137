"""Every error the registry raises.

    RegistryError
    ├── InvalidName          (ValueError)       a name, version, alias or digest is misspelt
    ├── InvalidQuery         (ValueError)       a search asks for what can not be
    ├── IndexFailed          (OSError)          the search index can not be used
    ├── NotFound             (LookupError)      no such adapter, version, alias or digest
    ├── Recalled             (PermissionError)  the version was recalled: nobody may use it
    ├── Conflict             (RuntimeError)     somebody else wrote first
    ├── Refused              (ValueError)       the adapter's files are unsound or unsupported
    │   └── Unsound          (ValueError)       a version that comes from elsewhere could not have been published here
    ├── SignatureInvalid     (PermissionError)  no good signature of a trusted key, where one is asked for
    ├── SigningKeyInvalid    (ValueError)       a key that signs, or is trusted, can not be used
    ├── BaseMismatch         (ValueError)       the adapter was trained on other weights
    ├── BaseNotFound         (LookupError)      no such base model, or it cannot be fetched
    ├── BaseInvalid          (ValueError)       a base model's folder is unusable
    ├── Corrupt              (OSError)          stored bytes differ from their digest
    └── StoreError           (OSError)          the store cannot be reached, read or written
        ├── StoreDenied      (PermissionError)  wrong or missing credentials
        └── StoreFull        (OSError)          no space left

To add one: derive from `RegistryError` and one standard class, give it a `code`, take one message that
says what to do, and keep it picklable (Ray carries errors between processes).
"""


class RegistryError(Exception):
    """Base of all registry errors; `code` is what the HTTP API answers."""

    code = "registry_error"


class InvalidName(RegistryError, ValueError):
    """A name, version, alias or digest that can not exist."""

    code = "invalid_name"


class InvalidQuery(RegistryError, ValueError):
    """A search with a filter, sort or place that can not be."""

    code = "invalid_query"


class IndexFailed(RegistryError, OSError):
    """The search index's database can not be used. The registry itself is as it was."""

    code = "index_unavailable"


class NotFound(RegistryError, LookupError):
    """Nothing goes by that name, version, alias or digest."""

    code = "model_not_found"


class Recalled(RegistryError, PermissionError):
    """A version was recalled, and must not be used by anybody."""

    code = "model_recalled"


class Conflict(RegistryError, RuntimeError):
    """A concurrent writer won, and trying again would overwrite what it wrote."""

    code = "conflict"


class Refused(RegistryError, ValueError):
    """An adapter's files are unsound, unsafe or unsupported."""

    code = "adapter_refused"


class Unsound(Refused):
    """A version of another store's or a bundle's could not have been published here: admission refuses it."""

    code = "adapter_unsound"


class SignatureInvalid(RegistryError, PermissionError):
    """A signature is not what it must be, or there is none of a trusted key where one is asked for."""

    code = "signature_invalid"


class SigningKeyInvalid(RegistryError, ValueError):
    """A key's file can not be read, or holds no key of a kind that is used."""

    code = "signing_key_invalid"


class BaseMismatch(RegistryError, ValueError):
    """An adapter was trained on other base weights than the ones at hand."""

    code = "base_mismatch"


class BaseNotFound(RegistryError, LookupError):
    """No such base model, or its weights cannot be fetched."""

    code = "base_not_found"


class BaseInvalid(RegistryError, ValueError):
    """A base model's folder lacks something, or its weights are not safetensors."""

    code = "base_invalid"


class Corrupt(RegistryError, OSError):
    """Bytes read from a store differ from the digest they are kept under."""

    code = "corrupt"


class StoreError(RegistryError, OSError):
    """A store cannot be reached, read or written."""

    code = "store_unavailable"


class StoreDenied(StoreError, PermissionError):
    """The store refuses these credentials."""

    code = "store_denied"


class StoreFull(StoreError):
    """The store has no space left; nothing was published."""

    code = "store_full"
