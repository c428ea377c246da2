"""A recipe's options for a server: its address, key, limits, price and budget."""

from __future__ import annotations

from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, JsonValue, model_validator

from setbacks.recipe import Engine, Section


class Price(Section):
    """What a server charges, in any currency."""

    input: float = Field(ge=0, description="For a million prompt tokens.")
    output: float = Field(ge=0, description="For a million generated tokens.")


class Budget(Section):
    """What one command may spend at a server before it stops; null: no limit."""

    tokens: int | None = Field(None, ge=1, description="Prompt and generated tokens.")
    money: float | None = Field(None, gt=0, description="In the currency of `price`.")


class Server(Section):
    """A server that speaks OpenAI's chat completions."""

    base_url: str = Field(description="Its address, such as `https://api.openai.com/v1`.")
    api_key_env: str | None = Field(
        None,
        pattern=r"^[A-Z_][A-Z0-9_]*$",
        description="The environment variable that holds the key, such as `OPENAI_API_KEY`; "
        "null: no key. Never write the key into a recipe.",
    )
    concurrency: int = Field(
        32,
        ge=1,
        le=1000,
        description="Largest number of concurrent requests; lower while the server is overloaded.",
    )
    timeout: float = Field(
        120,
        gt=0,
        description="Timeout of one answer in seconds; then the request is retried.",
    )
    retries: int = Field(5, ge=0, le=20, description="Retries of a failed request.")
    failures: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Stop if more than this share of the requests fails, after all retries.",
    )
    prefill: Literal["fold", "continue"] = Field(
        "fold",
        description="How an answer is begun: `fold` asks for it in the prompt; `continue` sends "
        "the beginning for the server to go on from (vLLM, SGLang).",
    )
    thinks: bool = Field(
        False,
        description="True for a model that thinks before it answers: requests ask for "
        "`max_new_tokens` and `max_thinking_tokens` together.",
    )
    body: dict[str, JsonValue] = Field(
        {},
        description="Further keys of each request, such as {top_k: 50}; null leaves out one of "
        "ours, such as {temperature: null}.",
    )
    price: Price | None = Field(None, description="Its price; null: not counted.")
    budget: Budget = Field(Budget(), description="What one command may spend there.")

    @model_validator(mode="after")
    def _sound(self) -> Server:
        try:
            url = urlsplit(self.base_url)
            sound = url.scheme in ("http", "https") and url.hostname and url.port != 0
        except ValueError:
            sound = False
        if not sound:
            raise ValueError("base_url should be an address such as https://api.openai.com/v1")
        if url.username or url.password or url.query or url.fragment:
            raise ValueError(
                "base_url should hold no user, password or query: it is written to disk; name the "
                "key's environment variable in api_key_env"
            )
        if ours := sorted({"model", "messages", "stream", "n"} & self.body.keys()):
            raise ValueError(f'"{ours[0]}" in body is not yours to set')
        if self.budget.money is not None and self.price is None:
            raise ValueError("budget.money needs price: {input: ..., output: ...}")
        return self


class EndpointOptions(Engine):
    """A model behind a server."""

    on_disk: ClassVar[bool] = False
    endpoint: Server = Field(description="The server and how to send requests.")

    @model_validator(mode="before")
    @classmethod
    def _has_a_server(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("endpoint"):
            raise ValueError("engine: endpoint needs endpoint: {base_url: ...}")
        return data
