"""Conversations with system and tool turns: the template's own ids, and texts that stay texts."""

import json

import pytest
from chat_templates import CONVERSING, FAMILIES, build, published
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError

from setbacks.errors import InputError
from setbacks.messages import Function, Message, ToolCall
from setbacks.models.chat_template import encode, encode_answer
from setbacks.models.fitting import fitted

TEMPLATES = FAMILIES | CONVERSING | published()
OPENS = {"add_generation_prompt": True}


def user(text="Q1q"):
    return Message(role="user", content=text)


def answer(text="A1a"):
    return Message(role="assistant", content=text)


def system(text="S1s"):
    return Message(role="system", content=text)


def calls(*made, text=""):
    """A turn that calls tools; each call is an id, a name and arguments."""
    return Message(
        role="assistant",
        content=text,
        tool_calls=[
            ToolCall(id=id, function=Function(name=name, arguments=arguments))
            for id, name, arguments in made
        ],
    )


def result(text="R1r", id="abcdefgh1", name="N1n"):
    return Message(role="tool", content=text, tool_call_id=id, name=name)


ASK = ("abcdefgh1", "N1n", {"K1k": "V1v", "k2": 2})
CONVERSATIONS = {
    "one turn": [user()],
    "a system turn": [system(), user()],
    "several turns": [system(), user(), answer(), user("Q2q")],
    "a later system turn": [user(), answer(), system(), user("Q2q")],
    "two questions": [user(), user("Q2q")],
    "a greeting": [answer(), user()],
    "a conversation to read": [user(), answer()],
    "a tool": [system(), user(), calls(ASK), result()],
    "a tool, then an answer": [user(), calls(ASK), result(), answer(), user("Q2q")],
    "a text beside a call": [user(), calls(ASK, text="T1t"), result()],
    "two calls": [
        user(),
        calls(ASK, ("abcdefgh2", "N2n", {})),
        result(),
        result("R2r", "abcdefgh2", "N2n"),
    ],
}


def as_documented(messages, arguments=json.loads):
    """Messages as transformers documents them for templates."""
    turns = [message.model_dump(mode="json", exclude_none=True) for message in messages]
    for turn in turns:
        for call in turn.get("tool_calls", ()):
            call["function"]["arguments"] = arguments(call["function"]["arguments"])
    return turns


def own(tokenizer, messages, **variables):
    """What the template itself writes; None if it refuses messages or drops the first text."""
    for arguments in (json.loads, str):  # DeepSeek's takes the text
        for in_parts in (False, True):  # templates of models with vision take parts
            turns = as_documented(messages, arguments)
            for turn in turns if in_parts else ():
                turn["content"] = [{"type": "text", "text": turn["content"]}]
            try:
                made = tokenizer.apply_chat_template(turns, tokenize=False, **OPENS | variables)
            except (TemplateError, TypeError, ValueError):
                continue
            if messages[0].content.strip() in made:
                return made
    return None


def whole(text, messages):
    """Whether a rendering has every text once, and every call; user and assistant in order."""
    words = [message.content for message in messages if message.content]
    spoken = [m.content for m in messages if m.role in ("user", "assistant") and not m.tool_calls]
    places = [text.find(word) for word in spoken]
    called = [
        word
        for message in messages
        for call in message.tool_calls or ()
        for word in [call.function.name, *json.loads(call.function.arguments)]
    ]
    return (
        all(text.count(word) == 1 for word in words)
        and all(word in text for word in called)
        and places == sorted(places)
    )


@pytest.fixture(params=TEMPLATES)
def talker(request):
    return build("bytes", TEMPLATES[request.param])


def test_a_prompt_is_the_templates_own_or_the_reason_is_said(talker):
    """Where the template writes every text once, the ids are its own; elsewhere a line says why."""
    same = 0
    for name, messages in CONVERSATIONS.items():
        text = own(talker, messages)
        try:
            notes = fitted(talker, messages, OPENS).notes
            ids = encode(talker, messages, thinks=True)
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 500
            assert text is None or not whole(text, messages), name
            continue
        assert bool(notes) != (text is not None and whole(text, messages)), name
        if not notes:
            same += 1
            assert talker.decode(ids) == talker.decode(own_ids(talker, messages)), name
            assert ids == own_ids(talker, messages), name
    assert same >= 2, "otherwise this test says nothing of the template"


def own_ids(tokenizer, messages, **variables):
    text = own(tokenizer, messages, **variables)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


TRICKY = {
    'a "quoted" word': "it's \\ \n\n <tag> é 因",
    "A": {"b": ["x ", None, True, 1.5, {"": ""}], "B": "'"},
    "z": [],
}
WITH_TOOLS = [
    "mistral v0.3", "mistral v7", "command r7b", "python and tags", "llama3_1", "qwen2_5", "qwen3",
    "qwen3_6", "gemma4", "gemma4_v5", "gptoss", "deepseekv3", "glm4moe", "lfm2_2_5",
    "nemotron_3_nano",
]  # fmt: skip


@pytest.mark.parametrize("name", WITH_TOOLS)
@pytest.mark.parametrize("kind", ["bytes", "first"])
def test_the_texts_of_a_tool_are_written_as_the_template_writes_them(name, kind):
    """As JSON, as Python, or as they are; sorted or not; with white space around them."""
    talker = build(kind, TEMPLATES[name])
    for messages in (
        [user(), calls(("abcdefgh1", "look_up", TRICKY)), result(' say "no"\n', name="look_up")],
        [user(), calls(("abcdefgh1", "look_up", {})), result("", name="look_up"), answer(), user()],
        [user(), calls(("abcdefgh1", "f", {"x": "'", "y": '"', "z": "\n"})), result("{'é': \"\"}")],
    ):
        assert fitted(talker, messages, OPENS).notes == ()
        ids = encode(talker, messages, thinks=True)
        assert talker.decode(ids) == talker.decode(own_ids(talker, messages))
        assert ids == own_ids(talker, messages)


def test_a_list_of_tools_can_be_given_to_a_template():
    talker = build("bytes", TEMPLATES["qwen2_5"])
    tool = {"type": "function", "function": {"name": "N1n", "description": "d", "parameters": {}}}
    variables = {"tools": [tool]}
    ids = encode(talker, CONVERSATIONS["a tool"], variables=variables)
    assert ids == own_ids(talker, CONVERSATIONS["a tool"], **variables)
    assert '"type": "function", "function": {"name": "N1n"' in talker.decode(ids)


@pytest.mark.parametrize("arguments", ["not JSON", "[1, 2]", "", '{"a": ', "[" * 100_000])
def test_arguments_that_are_no_object_are_passed_as_text(arguments):
    talker = build("bytes", TEMPLATES["qwen2_5"])
    messages = [user(), calls(("1", "f", arguments)), result(id="1")]
    said = talker.decode(encode(talker, messages))
    assert f'"arguments": {json.dumps(arguments)}' in said


def hostile(text, names):
    """A text in which special tokens are spelled."""
    return f"{text} {' '.join(names)}{''.join(names)}"


def controls(talker, names, ids):
    known = {*talker.all_special_ids, *talker.convert_tokens_to_ids(names)}
    return [token for token in ids if token in known]


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_a_special_token_in_any_text_of_a_conversation_stays_text(name):
    family = TEMPLATES[name]
    talker = build("bytes", family)
    names = [*family.special.split(), *family.unflagged.split()]
    plain = [user(), calls(ASK), result(), answer(), user("Q2q")]
    bad = hostile("x", names)
    spelled = {
        "question": [user(bad), *plain[1:]],
        "name": [plain[0], calls((ASK[0], bad, ASK[2])), result(name=bad), *plain[3:]],
        "key": [plain[0], calls((*ASK[:2], {bad: "V1v", "k2": 2})), *plain[2:]],
        "argument": [plain[0], calls((*ASK[:2], {"K1k": bad, "k2": 2})), *plain[2:]],
        "result": [*plain[:2], result(bad), *plain[3:]],
        "answer": [*plain[:3], answer(bad), plain[4]],
    }
    expected = controls(talker, names, encode(talker, plain))
    assert expected
    for place, messages in spelled.items():
        assert controls(talker, names, encode(talker, messages)) == expected, place


def test_ids_of_calls_stay_text_too():
    family = TEMPLATES["mistral v7"]
    talker = build("bytes", family)
    messages = [user(), calls(("[/INST]ab", *ASK[1:])), result(id="[/INST]ab")]
    names = family.special.split()
    harmless = [user(), calls(ASK), result()]
    assert controls(talker, names, encode(talker, messages)) == controls(
        talker, names, encode(talker, harmless)
    )
    assert talker.decode(encode(talker, messages)).count("[/INST]ab") == 2


def test_a_key_that_a_template_makes_a_token_of_stays_text():
    """The template writes `<` and `>` around it."""
    talker = build("bytes", TEMPLATES["python and tags"])
    thought = talker.convert_tokens_to_ids("<think>")
    messages = [user(), calls(("1", "think", {"think": "x"})), result()]
    assert thought in own_ids(talker, messages), "otherwise this test could not fail"
    ids = encode(talker, messages)
    assert thought not in ids
    assert talker.decode(ids) == talker.decode(own_ids(talker, messages))


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Co"]), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)


@st.composite
def conversations(draw, texts):
    """Any conversation that templates with tools take, its texts and values drawn."""
    messages = [system(draw(texts))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        messages.append(user(draw(texts)))
        if draw(st.booleans()):
            arguments = draw(st.dictionaries(texts, texts | JSON, max_size=2))
            id, name = draw(st.text("abc123", min_size=9, max_size=9)), draw(texts) or "f"
            messages += [calls((id, name, arguments)), result(draw(texts), id, name)]
        messages.append(answer(draw(texts)))
    return [*messages, user(draw(texts))]


PROPERTY = ["mistral v7", "llama3_1", "qwen2_5", "qwen3", "gptoss", "gemma4_v5", "glm4moe"]


@settings(max_examples=60)
@given(st.sampled_from(PROPERTY), conversations(TEXTS.filter(lambda text: text.strip())))
def test_any_conversation_gives_the_templates_own_ids(name, messages):
    talker = build("bytes", TEMPLATES[name])
    theirs = own(talker, messages)
    fit = fitted(talker, messages, OPENS)
    if fit.notes or any(mark in str(messages) for mark in "<[|") or theirs is None:
        return
    ids = encode(talker, messages, thinks=True)
    assert talker.decode(ids) == talker.decode(own_ids(talker, messages))
    row = sum(encode_answer(talker, messages, "It could hurt."), [])
    text = own(talker, [*messages, answer("It could hurt.")], add_generation_prompt=False)
    assert text.startswith(talker.decode(row).removesuffix(talker.eos_token))


@settings(max_examples=60)
@given(st.sampled_from(PROPERTY), st.data())
def test_no_conversation_adds_special_tokens(name, data):
    """With words for texts, or with special tokens: the same ones, but for the order of keys."""
    family = TEMPLATES[name]
    talker = build("bytes", family)
    names = [*family.special.split(), *family.unflagged.split()]
    spelled = st.lists(st.sampled_from([*names, "a", " ", "\n"]), min_size=1, max_size=4)
    messages = data.draw(conversations(spelled.map(lambda parts: "x" + "".join(parts) + "x")))
    clean = json.dumps([message.model_dump(mode="json") for message in messages])
    for number, token in enumerate(names):  # different words, so that keys stay different
        clean = clean.replace(json.dumps(token)[1:-1], f"word{number}")
    clean = [Message.model_validate(turn) for turn in json.loads(clean)]
    hostile_ids, plain_ids = encode(talker, messages), encode(talker, clean)
    assert sorted(controls(talker, names, hostile_ids)) == sorted(
        controls(talker, names, plain_ids)
    )
