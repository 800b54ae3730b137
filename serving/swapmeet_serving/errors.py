"""Every error that serving raises.

    ServingError
    ├── InvalidRequest       (ValueError)    a request's parameters make no sense
    ├── ContextTooLong       (ValueError)    prompt and max_tokens can never fit
    ├── Overloaded           (RuntimeError)  the queue is full; try again later
    ├── TooManyRequests      (RuntimeError)  one tenant's requests fill the queue; try again later
    ├── AdapterUnsupported   (ValueError)    an adapter has parts that the engine can not serve
    ├── AdapterTooLarge      (ValueError)    an adapter exceeds the memory set aside for adapters
    ├── NotFinite            (OverflowError) an adapter's numbers overflow at a prompt
    ├── BaseUnsupported      (ValueError)    a base's attention is not one the engine computes
    ├── NoChatTemplate       (LookupError)   messages were sent to a base without a chat template
    └── EngineDead           (RuntimeError)  a step failed; the engine must be started anew

To add one: derive from `ServingError` and one standard class, give it a `code`, take one message that says
what to do, and keep it picklable (Ray carries errors between processes).
"""


class ServingError(Exception):
    """Base of all serving errors; `code` is what the HTTP API answers."""

    code = "serving_error"


class InvalidRequest(ServingError, ValueError):
    """A request's parameters make no sense."""

    code = "invalid_request"


class ContextTooLong(ServingError, ValueError):
    """Prompt and max_tokens exceed the model's context or the whole KV cache."""

    code = "context_length_exceeded"


class Overloaded(ServingError, RuntimeError):
    """The queue is full."""

    code = "overloaded"


class TooManyRequests(ServingError, RuntimeError):
    """One tenant's requests fill its part of the queue."""

    code = "rate_limit_exceeded"


class AdapterUnsupported(ServingError, ValueError):
    """An adapter's weights do not fit the base's modules, or are of a kind that is not served."""

    code = "adapter_unsupported"


class AdapterTooLarge(ServingError, ValueError):
    """An adapter alone exceeds the memory set aside for adapters."""

    code = "adapter_too_large"


class NotFinite(ServingError, OverflowError):
    """An adapter's weights, finite themselves, make products at a prompt that no number can hold."""

    code = "adapter_overflows"


class BaseUnsupported(ServingError, ValueError):
    """A base model needs something that the engine does not compute."""

    code = "base_unsupported"


class NoChatTemplate(ServingError, LookupError):
    """Messages can not be turned into a prompt, because neither adapter nor base has a chat template."""

    code = "no_chat_template"


class EngineDead(ServingError, RuntimeError):
    """A step of the engine failed, so nothing can be answered until it is started anew."""

    code = "engine_dead"
