"""What a request to go on with texts or conversations says."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo, field_validator

from weightpager.server.inputs.picture_inputs import MOST_PICTURES, MOST_URL_CHARACTERS
from weightpager.server.schema import Body, Name, Text, TextsOrIds, encodable

_Stop = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(encodable)]
_Temperature = Annotated[
    float,
    Field(
        ge=0,
        le=2,
        allow_inf_nan=False,
        description="0 is greedy. Unless stated: 0 for a task of text generation while `top_p` is 1; 1 for others.",
    ),
]
_Nothing = Annotated[list[Any], Field(max_length=0)] | None


class StreamOptions(Body):
    """Options of a stream. With ``include_usage`` its last chunk tells how many tokens there were."""

    include_usage: bool = False


def _by_type(what: str, **forms: str) -> Discriminator:
    """Tells forms apart by ``type``; their tags are no names that a path to a field could have."""

    def tag(given: Any) -> str | None:
        kind = given.get("type") if isinstance(given, dict) else getattr(given, "type", None)
        return forms.get(kind) if isinstance(kind, str) else None

    names = [f"'{name}'" for name in forms]
    expected = f"{what} whose type is {', '.join(names[:-1])} or {names[-1]}"
    return Discriminator(tag, custom_error_type="type", custom_error_message=f"expected {expected}")


class PlainText(Body):
    """Any answer."""

    type: Literal["text"]


class JsonObject(Body):
    """An answer that is an object of JSON."""

    type: Literal["json_object"]


class NamedSchema(Body):
    """A JSON schema. It is kept to whether or not it is ``strict``; ``name`` and ``description`` are ignored."""

    name: Annotated[Text, Field(min_length=1, max_length=64)]
    description: Text | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")] = {}  # noqa: RUF012 - a model's field
    strict: bool | None = None


class JsonSchema(Body):
    """An answer that is valid by a JSON schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


_Form = Annotated[
    Annotated[PlainText, Tag("any text")]
    | Annotated[JsonObject, Tag("an object")]
    | Annotated[JsonSchema, Tag("a schema's")],
    _by_type("a form", text="any text", json_object="an object", json_schema="a schema's"),
]


_MOST_CHOICES, _MOST_BIASES = 16, 300
_Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
_Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
_TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,8}$", examples=["50256"])]


class GenerationBody(Body):
    """The fields of both routes. A field that would change the answer, and that a bundle can't serve, is refused."""

    model: Name
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: _Temperature | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=4)] | None = None
    n: Annotated[int, Field(ge=1, le=_MOST_CHOICES)] | None = 1
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    logit_bias: Annotated[dict[_TokenId, _Bias], Field(max_length=_MOST_BIASES)] | None = None
    response_format: _Form | None = None

    @property
    def schema_wanted(self) -> dict[str, Any] | None:
        """The schema that an answer must be valid by; None for any answer."""
        form = self.response_format
        if isinstance(form, JsonSchema):
            return form.json_schema.schema_
        return {"type": "object"} if isinstance(form, JsonObject) else None

    @property
    def with_usage(self) -> bool:
        """Whether a stream tells at its end how many tokens there were."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end a continuation."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


_Picture = Annotated[
    str,
    Field(
        max_length=MOST_URL_CHARACTERS,
        description="A data URL, `data:image/png;base64,…` (or bmp, jpeg, webp): nothing is fetched from an address.",
    ),
]


class TextPart(Body):
    """A piece of a message's text."""

    type: Literal["text"]
    text: Text


class PictureUrl(Body):
    """Where a picture is. ``detail`` is ignored: every picture takes as many tokens as the model was trained with."""

    url: _Picture
    detail: Literal["auto", "low", "high"] | None = None


class PicturePart(Body):
    """A picture among a message's words, for tasks that read pictures."""

    type: Literal["image_url"]
    image_url: PictureUrl


_Part = Annotated[
    Annotated[TextPart, Tag("a text")] | Annotated[PicturePart, Tag("a picture")],
    _by_type("a part", text="a text", image_url="a picture"),
]


class Message(Body):
    """A message of a conversation: a text, or texts and pictures in the order in which they are read."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[_Part], Field(max_length=64)]


class ChatBody(GenerationBody):
    """A conversation to go on with."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: _Nothing = None
    functions: _Nothing = None

    @field_validator("top_logprobs")
    @classmethod
    def _beside_logprobs(cls, wanted: int | None, info: ValidationInfo) -> int | None:
        if wanted is not None and not info.data.get("logprobs"):
            raise ValueError("expected logprobs to be true beside it")
        return wanted

    @property
    def likeliest(self) -> int | None:
        """How many of the likeliest tokens each place tells; None where no logprobs are wanted."""
        return self.top_logprobs or 0 if self.logprobs else None


class CompletionBody(GenerationBody):
    """One or more texts to continue, or one with pictures.

    ``images`` is weightpager's own: pictures of the prompt, for tasks that read any. They stand where the prompt has
    the model's placeholder, such as ``<image>``, or in front of it.
    """

    prompt: TextsOrIds
    images: Annotated[list[_Picture], Field(max_length=MOST_PICTURES)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = 16
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: Literal[False] | None = None
    suffix: None = None
    best_of: Literal[1] | None = None

    @property
    def likeliest(self) -> int | None:
        """As `ChatBody.likeliest`."""
        return self.logprobs
