"""What works with a model, checked in about a minute, before a run takes hours."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import cached_property

from setbacks.cli.doctor import Check, memory
from setbacks.engines.fidelity import Way, find_way
from setbacks.errors import InputError, SetbacksError
from setbacks.messages import Function, ToolCall, with_system
from setbacks.methods import Method
from setbacks.models.chat_template import encode_answer, ending, plain, stop_tokens
from setbacks.models.fitting import fitted
from setbacks.models.hardware import device, dtype
from setbacks.models.loading import check_model, context, load_model, load_tokenizer, skeleton
from setbacks.models.template_checks import chat_notes
from setbacks.plugins import load_all, plugin
from setbacks.recipe import Recipe
from setbacks.records import Message
from setbacks.training import learner
from setbacks.training.targets import look_up, look_up_start

PROMPT = 512  # tokens of a long prompt, for an estimate
QUESTION, ANSWER = "Which is the largest ocean?", "It is the Pacific Ocean."


def examine(recipe: Recipe) -> Iterator[Check]:
    """Check what works with a recipe's model; write nothing.

    Raises:
        InputError: the model is on a server.
    """
    if plugin("engines", recipe.model.engine).elsewhere:
        raise InputError(f"model: {recipe.model.model} is on a server; name one that runs here")
    examined = _Examined(recipe)
    if not (yield from _safely("model", _layout, examined)):
        return
    complete = yield from _safely("weights", _weights, examined)
    has_tokenizer = yield from _safely("tokenizer", _tokenizer, examined)
    if has_tokenizer and (yield from _safely("chat template", _chat_template, examined)):
        for name, look in CHAT.items():
            yield from _safely(name, look, examined)
    yield from _safely("context", _context, examined)
    has_adapter = yield from _safely("LoRA", _lora, examined)
    if complete and has_adapter:
        yield from _methods(examined)
    yield from _safely("memory for weights", _room, examined)
    if complete and has_tokenizer and examined.fits:
        if (yield from _safely("answers", _fidelity, examined)):
            yield from _safely("memory for answers", _answering, examined, needed=False)
        if has_adapter:
            yield from _safely("memory for training", _training, examined, needed=False)
    yield from _safely("export", _export, examined)


class _Examined:
    """A recipe's model, with what is known of it so far."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.spec, self.train = recipe, recipe.model, recipe.train
        self.fits = False  # whether there is room for its weights
        self.room = 0

    layout = cached_property(lambda self: skeleton(self.spec))
    tokenizer = cached_property(lambda self: load_tokenizer(self.spec))
    model = cached_property(lambda self: load_model(self.spec).eval())
    place = cached_property(lambda self: device(self.spec))

    @property
    def numbers(self) -> str:
        return str(dtype(self.spec, self.place)).removeprefix("torch.")


def _safely(
    name: str,
    look: Callable[[_Examined], Iterator[Check]],
    examined: _Examined,
    *,
    needed: bool = True,
) -> Generator[Check, None, bool]:
    """Yield the checks of one function, and return whether it ran to its end.

    An error is a failed check: a model can bring anything.
    """
    try:
        yield from look(examined)
        return True
    except SetbacksError as error:
        yield Check(name, False, str(error), needed)
    except MemoryError:
        yield Check(name, False, "not enough memory", needed)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        yield Check(name, False, f"{type(error).__name__}: {reason}", needed)
    return False


# The model ---------------------------------------------------------------------------------------


def _layout(examined: _Examined) -> Iterator[Check]:
    model = examined.layout
    count = sum(p.numel() for p in model.parameters())
    yield Check("model", True, f"{type(model).__name__}, {count:,} parameters")


def _weights(examined: _Examined) -> Iterator[Check]:
    check_model(examined.spec)
    yield Check("weights", True, "complete")


def _tokenizer(examined: _Examined) -> Iterator[Check]:
    tokens, known = len(examined.tokenizer), examined.layout.get_input_embeddings().weight.shape[0]
    found = f"{tokens:,} tokens, {known:,} embeddings"
    if tokens > known:
        found += "; text with one of the last tokens is refused: resize the embeddings"
    yield Check("tokenizer", tokens <= known, found, needed=False)


def _context(examined: _Examined) -> Iterator[Check]:
    limit, longest = context(examined.layout.config), examined.train.max_length
    if limit is None:
        yield Check("context", True, "the model names no limit")
        return
    found = f"{limit:,} tokens"
    if longest > limit:
        found += f"; lower train.max_length from {longest:,} to that"
    yield Check("context", longest <= limit, found, needed=False)


# Conversations -----------------------------------------------------------------------------------


def _chat_template(examined: _Examined) -> Iterator[Check]:
    spec = examined.spec
    notes = chat_notes(examined.tokenizer, spec)
    kind = "the tokenizer's own" if spec.chat_template == "own" else "alpaca: one instruction"
    yield Check("chat template", True, kind)
    for note in notes:
        yield Check("chat template", False, note, needed=False)


def _roles(examined: _Examined) -> Iterator[Check]:
    spec, tokenizer = examined.spec, examined.tokenizer
    if spec.chat_template != "own":
        return

    def takes(messages: Sequence[Message]) -> str:
        try:
            fit = fitted(tokenizer, messages, {**spec.template, "add_generation_prompt": True})
        except InputError:
            return "no"
        return "changed" if fit.notes else "yes"

    user, answer = Message(role="user", content="<1>"), Message(role="assistant", content="<2>")
    call = ToolCall(id="abcdefghi", function=Function(name="f", arguments='{"x": 1}'))
    used = [
        Message(role="assistant", tool_calls=(call,)),
        Message(role="tool", content="<3>", tool_call_id=call.id, name="f"),
    ]
    shapes = {
        "a system turn": with_system([user], "<0>"),
        "several turns": [user, answer, user],
        "two turns of one role": [user, user],
        "tool turns": [user, *used],
    }
    found = {shape: takes(messages) for shape, messages in shapes.items()}
    words = ", ".join(f"{shape}: {answer}" for shape, answer in found.items())
    if "changed" in found.values():
        words += "; a run says once what it changes"
    yield Check("roles", True, words)


def _turn_end(examined: _Examined) -> Iterator[Check]:
    tokenizer, template = examined.tokenizer, examined.spec.chat_template
    end = tokenizer.decode(ending(tokenizer, template))
    stops = tokenizer.convert_ids_to_tokens(sorted(stop_tokens(None, tokenizer, template)))
    yield Check("end of turn", True, f"{end!r} is learned; answers end at {', '.join(stops)}")


def _padding(examined: _Examined) -> Iterator[Check]:
    tokenizer = examined.tokenizer
    found = (
        tokenizer.pad_token or f"{tokenizer.convert_ids_to_tokens(0)} (the tokenizer names none)"
    )
    yield Check("padding", True, f"{found}, which is masked")


def _special_tokens(examined: _Examined) -> Iterator[Check]:
    tokenizer = examined.tokenizer
    added = tokenizer.added_tokens_decoder.items()
    special = {*tokenizer.all_special_ids, *(number for number, token in added if token.special)}
    names = tokenizer.convert_ids_to_tokens(sorted(special))
    through = [name for name in names if special & {*plain(tokenizer, f"say {name} twice")}]
    found = "in data they stay text"
    if through:
        found = f"in data {', '.join(through[:5])} would be read as control tokens"
    yield Check("special tokens", not through, found)


def _training_row(examined: _Examined) -> Iterator[Check]:
    tokenizer, spec = examined.tokenizer, examined.spec
    asked = [Message(role="user", content=QUESTION)]
    prompt, answer = encode_answer(
        tokenizer, asked, ANSWER, template=spec.chat_template, variables=spec.template
    )
    row = [*prompt, *answer]
    if spec.chat_template != "own":
        yield Check("training row", True, f"{len(row)} tokens, in the alpaca template")
        return
    turns = [*(turn.model_dump() for turn in asked), {"role": "assistant", "content": ANSWER}]
    rendered = tokenizer.apply_chat_template(
        turns, tokenize=True, return_dict=False, **spec.template
    )
    same = rendered[: len(row)] == row
    found = "the template's own rendering, token by token"
    if not same:
        found = (
            "differs from the template's own rendering: what is learned is "
            f"{tokenizer.decode(row[-40:])!r}"
        )
    yield Check("training row", same, found, needed=False)


CHAT: dict[str, Callable[[_Examined], Iterator[Check]]] = {
    "roles": _roles,
    "end of turn": _turn_end,
    "padding": _padding,
    "special tokens": _special_tokens,
    "training row": _training_row,
}


# Training ----------------------------------------------------------------------------------------


def _lora(examined: _Examined) -> Iterator[Check]:
    recipe = examined.recipe
    if recipe.start is not None:
        yield Check("LoRA", True, str(look_up_start(recipe, recipe.start)))
        return
    found = look_up(recipe)
    yield Check("LoRA", True, str(found.coverage))
    if found.left_out:
        yield Check("LoRA", False, found.left_out, needed=False)


def _methods(examined: _Examined) -> Iterator[Check]:
    """Whether methods with requirements can train the model; most have none."""
    usable, _ = load_all("methods")  # the checks of the machine name the broken ones
    for name, kind in usable.items():
        method: Method = kind()
        if type(method).check is Method.check:
            continue

        def look(examined: _Examined, name: str = name, method: Method = method) -> Iterator[Check]:
            method.check(examined.recipe)
            yield Check(f"method {name}", True, "possible")

        chosen = name == examined.train.method
        yield from _safely(f"method {name}", look, examined, needed=chosen)


# Memory and answers ------------------------------------------------------------------------------


def _room(examined: _Examined) -> Iterator[Check]:
    taken, examined.room = memory.of_weights(examined.layout), memory.free(examined.place)
    examined.fits = taken < examined.room
    found = (
        f"{_size(taken)} in {examined.numbers} of {_size(examined.room)} free on {examined.place}"
    )
    if not examined.fits:
        found += "; name a smaller model, model.dtype=bfloat16 or another model.device"
    yield Check("memory for weights", examined.fits, found)


def _fidelity(examined: _Examined) -> Iterator[Check]:
    spec, model, tokenizer = examined.spec, examined.model, examined.tokenizer
    pad = tokenizer.pad_token_id or 0
    found, _ = find_way(model, tokenizer, pad, context(model.config), spec.cuda_graphs, spec.model)
    sentence = found.summary.removeprefix(f'model "{spec.model}": ')
    yield Check("answers", not found.fell_back, sentence, needed=False)
    yield _graphs(examined, found)


def _graphs(examined: _Examined, found: Way) -> Check:
    used = "CUDA graphs" in found.name
    why = "used"
    if not used:
        why = "not used: their results are wrong for this model"
    if not examined.place.startswith("cuda"):
        why = f"not used: they need a CUDA GPU, and this is {examined.place}"
    elif not examined.spec.cuda_graphs:
        why = "not used: model.cuda_graphs is false"
    return Check("CUDA graphs", used, why, needed=False)


def _answering(examined: _Examined) -> Iterator[Check]:
    recipe, rows = examined.recipe, examined.spec.batch_size
    stages = (recipe.induce, recipe.analyze, recipe.respond)
    length = PROMPT + max(stage.sampling.max_new_tokens for stage in stages)
    weights = memory.of_weights(examined.layout)
    cache = memory.of_cache(examined.model, rows, length)
    yield _fits(
        "memory for answers",
        {"weights": weights, f"{rows} rows of {length:,} tokens": cache},
        examined,
        "lower model.batch_size",
    )


def _training(examined: _Examined) -> Iterator[Check]:
    """Load the model again, as training does; drop the one that answers first."""
    from peft import get_peft_model

    train = examined.train
    vars(examined).pop("model", None)
    model, new = learner(examined.recipe)
    weights = memory.of_weights(model)
    model = (model if new is None else get_peft_model(model, new)).train()
    step = memory.of_training(model, train.batch_size, train.max_length)
    yield _fits(
        "memory for training",
        {"weights": weights, f"{train.batch_size} examples of {train.max_length:,} tokens": step},
        examined,
        "lower train.batch_size or train.max_length, or set train.gradient_checkpointing=true",
    )


def _fits(name: str, parts: dict[str, int], examined: _Examined, remedy: str) -> Check:
    """Compare an estimate for the longest texts with the free memory."""
    taken = sum(parts.values())
    words = ", ".join(f"{part} {_size(size)}" for part, size in parts.items())
    found = f"at most about {_size(taken)} of {_size(examined.room)} free ({words})"
    fits = taken < examined.room
    return Check(name, fits, found if fits else f"{found}; {remedy}", needed=False)


def _export(examined: _Examined) -> Iterator[Check]:
    quantized = getattr(examined.layout.config, "quantization_config", None) is not None
    found = "an adapter alone: weights are quantized" if quantized else "an adapter, merged weights"
    yield Check("export", not quantized, found, needed=False)


def _size(number: int) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"
