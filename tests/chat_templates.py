"""Chat templates in the style of the large families, in short form, and tokenizers to carry them.

Each template keeps what makes its family differ: what it writes between its generation prompt and
an answer, how it ends a turn, what it trims. The tokenizers are of the two kinds in use: byte-level
BPE, and SentencePiece's way of writing a blank as part of the word after it.
"""

import json
import re
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from setbacks.prompts import prompts

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set content = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% if loop.last %}<think>\n{{ (m.reasoning_content or '').strip('\n') }}\n</think>\n\n"
    "{% endif %}{{ content }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
)


class Family(NamedTuple):
    """A chat template, with the tokens that it needs.

    `end` ends an answer: the token that the template writes after it, or None where it writes none.
    `stops` are all that end a turn. `opening` says how a prompt ends that is not the template's own
    generation prompt; None where it is that one.
    """

    template: str
    special: str
    end: str | None
    stops: str
    eos: str
    bos: str | None = None
    unflagged: str = ""  # added tokens that tokenizer.json does not call special
    opening: str | None = None


FAMILIES = {
    "chatml": Family(
        CHATML, "<|im_start|> <|im_end|> <|endoftext|>", "<|im_end|>", "<|im_end|>", "<|im_end|>"
    ),
    "chatml, other eos": Family(
        CHATML,
        "<|im_start|> <|im_end|> <|endoftext|>",
        "<|im_end|>",
        "<|im_end|> <|endoftext|>",
        "<|endoftext|>",
    ),
    "chatml, tokens not flagged": Family(
        CHATML,
        "<|endoftext|>",
        "<|im_end|>",
        "<|im_end|> <|endoftext|>",
        "<|endoftext|>",
        unflagged="<|im_start|> <|im_end|>",
    ),
    "chatml without a generation prompt": Family(
        CHATML.partition("{% if add")[0],
        "<|im_start|> <|im_end|>",
        "<|im_end|>",
        "<|im_end|>",
        "<|im_end|>",
        opening="<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama 3": Family(
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n"
        "{% endif %}",
        "<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|>",
        "<|eot_id|>",
        "<|eot_id|> <|end_of_text|>",
        "<|end_of_text|>",
        "<|begin_of_text|>",
    ),
    "llama 2": Family(
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] "
        "{{ m.content.strip() }} [/INST]{% else %} {{ m.content.strip() }} {{ eos_token }}"
        "{% endif %}{% endfor %}",
        "<s> </s>",
        "</s>",
        "</s>",
        "</s>",
        "<s>",
    ),
    "mistral": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}"
        "[/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        "<s> </s> [INST] [/INST]",
        "</s>",
        "</s>",
        "</s>",
        "<s>",
    ),
    "zephyr": Family(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        "<s> </s>",
        "</s>",
        "</s>",
        "</s>",
        "<s>",
    ),
    "gemma": Family(
        "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) "
        "%}{{ raise_exception('roles must alternate') }}{% endif %}<start_of_turn>"
        "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        "<bos> <eos> <start_of_turn> <end_of_turn>",
        "<end_of_turn>",
        "<end_of_turn> <eos>",
        "<eos>",
        "<bos>",
    ),
    "gemma 4": Family(
        "{{ bos_token }}{% for m in messages %}<|turn>{{ m.role }}\n{{ m.content | trim }}<turn|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|turn>assistant\n{% endif %}",
        "<bos> <eos> <|turn> <turn|>",
        "<turn|>",
        "<turn|> <eos>",
        "<eos>",
        "<bos>",
    ),
    "phi 3": Family(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        "<s> <|endoftext|> <|user|> <|assistant|> <|end|>",
        "<|end|>",
        "<|end|> <|endoftext|>",
        "<|endoftext|>",
        "<s>",
    ),
    "qwen 3": Family(
        QWEN3 + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
        "{% endif %}{% endif %}",
        "<|im_start|> <|im_end|> <|endoftext|>",
        "<|im_end|>",
        "<|im_end|>",
        "<|im_end|>",
        unflagged="<think> </think>",
        opening="<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    "qwen 3 that always thinks": Family(
        QWEN3 + "<think>\n{% endif %}",
        "<|im_start|> <|im_end|> <|endoftext|>",
        "<|im_end|>",
        "<|im_end|>",
        "<|im_end|>",
        unflagged="<think> </think>",
        opening="<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    "deepseek r1": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
        "{% else %}<｜Assistant｜>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}",
        "<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜>",
        unflagged="<｜User｜> <｜Assistant｜> <think> </think>",
        opening="<｜Assistant｜>",
    ),
    "gpt-oss": Family(
        "<|start|>system<|message|>Today: {{ strftime_now('%Y-%m-%d') }}<|end|>"
        "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.thinking %}<|start|>assistant"
        "<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}<|start|>assistant"
        "<|channel|>final<|message|>{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}"
        "{% else %}<|start|>user<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        "<|start|> <|end|> <|message|> <|channel|> <|return|> <|endoftext|>",
        "<|return|>",
        "<|return|>",
        "<|return|>",
        opening="<|start|>assistant<|channel|>final<|message|>",
    ),
    "glm 4.5": Family(
        "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{{ "
        "'\n<think></think>\n' + m.content.split('</think>')[-1].strip() }}{% else %}{{ '\n' + "
        "m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>"
        "{% if enable_thinking is defined and not enable_thinking %}\n<think></think>{% endif %}"
        "{% endif %}",
        "<|endoftext|> [gMASK] <sop> <|user|> <|assistant|>",
        None,
        "<|endoftext|> <|user|>",  # the next turn begins
        "<|endoftext|>",
        unflagged="<think> </think>",
        opening="<|assistant|>\n<think></think>\n",
    ),
    "command a": Family(
        "{{ bos_token }}{% for m in messages %}<|START_OF_TURN|>{% if m.role == 'assistant' %}"
        "<|CHATBOT|>{% if m.thinking %}<|START_THINKING|>{{ m.thinking }}<|END_THINKING|>"
        "{% endif %}<|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|>{% else %}<|USER|>"
        "{{ m.content }}{% endif %}<|END_OF_TURN|>{% endfor %}"
        "{% if add_generation_prompt %}<|START_OF_TURN|><|CHATBOT|>{% endif %}",
        "<bos> <|START_OF_TURN|> <|END_OF_TURN|> <|CHATBOT|> <|USER|> <|START_RESPONSE|> "
        "<|END_RESPONSE|> <|START_THINKING|> <|END_THINKING|>",
        "<|END_OF_TURN|>",
        "<|END_OF_TURN|>",
        "<|END_OF_TURN|>",
        "<bos>",
        opening="<|START_OF_TURN|><|CHATBOT|><|START_RESPONSE|>",
    ),
    "plain text": Family(
        "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant:\n{% endif %}",
        "</s>",
        None,
        "</s>",
        "</s>",
    ),
}

# Its generation prompt has an empty thought, and its rendering of an answer has none.
EMPTY_THOUGHT = Family(
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think></think>{% endif %}",
    "<|user|> <|assistant|> <|end|>",
    "<|end|>",
    "<|end|>",
    "<|end|>",
    unflagged="<think> </think>",
)

# Of conversations with system and tool turns: what the published templates below do not show.
_ALTERNATES = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles "
    "must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
_MISTRAL = "<s> </s> [INST] [/INST] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS]"
_NINE = (
    "{% if ID is not defined or ID | length != 9 %}{{ raise_exception('Tool call IDs should be "
    "alphanumeric strings with length 9!') }}{% endif %}"
)
_MISTRAL_CALLS = (
    "{% elif m.tool_calls is defined %}[TOOL_CALLS][{% for call in m.tool_calls %}"
    + _NINE.replace("ID", "call.id")
    + '{{ (call.function | tojson)[:-1] }}, "id": "{{ call.id }}"}'
    "{{ '' if loop.last else ', ' }}"
    "{% endfor %}]{{ eos_token }}{% elif m.role == 'tool' %}"
    + _NINE.replace("ID", "m.tool_call_id")
)
CONVERSING = {
    "llama 2": Family(
        "{% if messages[0].role == 'system' %}{% set loop_messages = messages[1:] %}{% set "
        "system = "
        "messages[0].content %}{% else %}{% set loop_messages = messages %}{% set system = false %}"
        "{% endif %}{% for m in loop_messages %}" + _ALTERNATES + "{% if loop.first and system %}"
        "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m.content %}{% else %}"
        "{% set content = m.content %}{% endif %}{% if m.role == 'user' %}{{ bos_token + '[INST] "
        "' + "
        "content.strip() + ' [/INST]' }}{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}"
        "{% endif %}{% endfor %}",
        "<s> </s>",
        "</s>",
        "</s>",
        "</s>",
        "<s>",
    ),
    "mistral v0.1": Family(
        "{{ bos_token }}{% for m in messages %}" + _ALTERNATES + "{% if m.role == 'user' %}"
        "{{ '[INST] ' + m.content + ' [/INST]' }}{% elif m.role == 'assistant' %}"
        "{{ m.content + eos_token + ' ' }}{% else %}{{ raise_exception('Only user and assistant "
        "roles are supported!') }}{% endif %}{% endfor %}",
        "<s> </s>",
        "</s>",
        "</s>",
        "</s>",
        "<s>",
    ),
    "mistral v0.3": Family(  # the system prompt is in the last turn, if that is the user's
        "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
        "{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% "
        "endif %}"
        "{% set ns = namespace(index=0) %}{% for m in loop_messages %}{% if m.role != 'tool' and "
        "m.tool_calls is not defined %}{% if (m.role == 'user') != (ns.index % 2 == 0) %}"
        "{{ raise_exception('conversation roles must alternate') }}{% endif %}{% set ns.index = "
        "ns.index + 1 %}{% endif %}{% endfor %}{{ bos_token }}{% for m in loop_messages %}"
        "{% if m.role == 'user' %}{% if loop.last and system is defined %}[INST] {{ system }}\n\n"
        "{{ m.content }}[/INST]{% else %}[INST] {{ m.content }}[/INST]{% endif %}"
        + _MISTRAL_CALLS
        + '[TOOL_RESULTS] {"content": {{ m.content }}, "call_id": "{{ m.tool_call_id }}"}'
        "[/TOOL_RESULTS]{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}",
        _MISTRAL,
        "</s>",
        "</s>",
        "</s>",
        "<s>",
    ),
    "mistral v7": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}[SYSTEM_PROMPT]"
        "{{ m.content }}[/SYSTEM_PROMPT]{% elif m.role == 'user' %}[INST]{{ m.content }}[/INST]"
        + _MISTRAL_CALLS
        + "[TOOL_RESULTS]{{ m.tool_call_id }}[TOOL_CONTENT]{{ m.content }}[/TOOL_RESULTS]{% else %}"
        "{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        _MISTRAL + " [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]",
        "</s>",
        "</s>",
        "</s>",
        "<s>",
    ),
    "smollm2": Family(
        "{% for m in messages %}{% if loop.first and messages[0].role != 'system' %}<|im_start|>"
        "system\nYou are a helpful AI assistant<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n"
        "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt "
        "%}<|im_start|>assistant\n"
        "{% endif %}",
        "<|im_start|> <|im_end|>",
        "<|im_end|>",
        "<|im_end|>",
        "<|im_end|>",
    ),
    "phi 4": Family(
        "{% for m in messages %}<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}",
        "<|im_start|> <|im_sep|> <|im_end|>",
        "<|im_end|>",
        "<|im_end|>",
        "<|im_end|>",
    ),
    "command r7b": Family(  # calls and what they return are JSON, joined by their ids
        "{{ bos_token }}{% for m in messages %}{% if m.tool_calls %}<|CHATBOT|><|START_ACTION|>["
        '{% for call in m.tool_calls %}{"tool_call_id": "{{ loop.index0 }}", "tool_name": '
        '{{ call.function.name | tojson }}, "parameters": {{ call.function.arguments | tojson }}}'
        "{{ '' if loop.last else ', ' }}{% endfor %}]<|END_ACTION|><|END|>{% elif m.role == "
        "'tool' %}"
        "<|SYSTEM|><|START_RESULT|>[{% for other in messages %}{% for call in other.tool_calls "
        "or [] "
        "%}{% if call.id == m.tool_call_id %}{{ call.function.name }}: {% endif %}{% endfor %}"
        "{% endfor %}{{ m.content | tojson }}]<|END_RESULT|><|END|>{% else %}<|{{ {'user': 'USER', "
        "'system': 'SYSTEM', 'assistant': 'CHATBOT'}[m.role] }}|>{{ m.content }}<|END|>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|CHATBOT|>{% endif %}",
        "<bos> <|CHATBOT|> <|USER|> <|SYSTEM|> <|START_ACTION|> <|END_ACTION|> <|START_RESULT|> "
        "<|END_RESULT|> <|END|>",
        "<|END|>",
        "<|END|>",
        "<|END|>",
        "<bos>",
    ),
    "python and tags": Family(  # calls as Python writes them, and as tags of their names
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for call in m.tool_calls or [] %}"
        "{{ call.function.arguments }}{% for key, value in call.function.arguments | items %}"
        "<{{ key }}>{{ value }}</{{ key }}>{% endfor %}<{{ call.function.name }}>{% endfor "
        "%}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "<|user|> <|assistant|> <|system|> <|tool|> <|end|>",
        "<|end|>",
        "<|end|>",
        "<|end|>",
        unflagged="<think> </think>",
    ),
}


def published() -> "dict[str, Family]":
    """The templates that models were published with, as far as TRL brings them."""
    folder = files("trl") / "chat_templates"
    held = {
        path.name.removesuffix(".jinja"): path.read_text(encoding="utf-8")
        for path in sorted(folder.iterdir(), key=lambda path: path.name)
        if path.name.endswith(".jinja") and not path.name.endswith("_training.jinja")
    }
    tokens = r"<[|｜][^<>|｜]+[|｜]>|<[|/]?[a-z_]+\|?>|\[gMASK\]"
    return {
        name: Family(
            template,
            " ".join(dict.fromkeys(["<s>", "</s>", *re.findall(tokens, template)])),
            None,
            "",
            "</s>",
            "<s>",
        )
        for name, template in held.items()
    }


# How SentencePiece's tokenizers put a blank before a text: Llama 2, Mistral v0.3, and Gemma's not.
KINDS = ("bytes", "prepend", "first", "never")
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
BACK = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


@cache
def _trained(kind: str) -> str:
    """A small BPE without special tokens, trained on our own prompts, as JSON."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    words = prompts("en")
    corpus = [words["guided"], *words["analyze"].values(), words["unguided"], words["alpaca"]]
    corpus = [str(text) for text in corpus] * 4
    if kind == "bytes":
        made = Tokenizer(models.BPE())
        split = r" ?[^\W\d_]+|\d| ?[^\s\w]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # as Llama 3's
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=500, initial_alphabet=alphabet, show_progress=False
        )
        made.train_from_iterator(corpus, trainer)
        return made.to_str()
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=pieces, initial_alphabet=["▁"], show_progress=False
    )
    made.train_from_iterator(corpus, trainer)
    data = json.loads(made.to_str())
    data["added_tokens"] = data["added_tokens"][:1]
    data["pre_tokenizer"] = data["normalizer"] = None
    strip = [STRIP]
    if kind == "prepend":
        before = {"type": "Prepend", "prepend": "▁"}
        data["normalizer"] = {"type": "Sequence", "normalizers": [before, REPLACE]}
    elif kind == "first":
        data["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "first",
            "split": False,
        }
    else:
        data["normalizer"], strip = REPLACE, []
    steps = [BACK, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    data["decoder"] = {"type": "Sequence", "decoders": steps}
    return json.dumps(data)


def build(kind: str, family: Family) -> "object":
    """Make a tokenizer of a kind, with a family's tokens and template."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer.from_str(_trained(kind))
    inner.add_special_tokens([AddedToken(t, special=True) for t in family.special.split()])
    inner.add_tokens(
        [AddedToken(t, special=False, normalized=False) for t in family.unflagged.split()]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=family.bos,
        eos_token=family.eos,
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = family.template
    return made
