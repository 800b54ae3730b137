"""What the fields of a request are made of."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

AUTO: Literal["auto"] = "auto"


class Strict(BaseModel):
    """Nothing unknown is taken, and no text for a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def unfitting(message: str) -> PydanticCustomError:
    """Why a value does not fit the others; raised by its own field, so that all mistakes are told at once."""
    return PydanticCustomError("unfitting", "{message}", {"message": message})


def _sound(text: str) -> str:
    """Half a surrogate pair and the null character have no place in files and databases."""
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise unfitting("holds a null character or half a surrogate pair. Write whole characters.")
    return text


def _which(value: Any) -> str:
    return "word" if value == AUTO else "number"


def _form(value: Any) -> str:
    return "word" if isinstance(value, str) else "names"


def without_nulls(value: Any) -> Any:
    """OpenAI lets null stand for what is not given."""
    return {name: item for name, item in value.items() if item is not None} if isinstance(value, dict) else value


WithoutNulls = BeforeValidator(without_nulls)
Text = Annotated[str, AfterValidator(_sound)]
Word = Annotated[Literal["auto"], Tag("word")]
Choice = Discriminator(_which)

Epochs = Annotated[Word | Annotated[int, Field(ge=1, le=50), Tag("number")], Choice]
BatchSize = Annotated[Word | Annotated[int, Field(ge=1, le=256), Tag("number")], Choice]
Multiplier = Annotated[Word | Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False), Tag("number")], Choice]
Beta = Annotated[Word | Annotated[float, Field(gt=0, le=2, allow_inf_nan=False), Tag("number")], Choice]

Rate = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.]{0,127}$")]
Modules = Annotated[
    Annotated[Literal["all-linear"], Tag("word")]
    | Annotated[list[ModuleName], Field(min_length=1, max_length=256), Tag("names")],
    Discriminator(_form),
]
Label = Annotated[Text, Field(min_length=1, max_length=64)]
