"""Small random models of many kinds: settings of `model_of`, and the way in which each is right."""

import pytest

from setbacks.engines import fidelity
from setbacks.recipe import Engine

OURS, THEIRS, ALONE = list(fidelity.WAYS)[1:]

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "head_dim": 16,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
}  # fmt: skip
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
MAMBA |= {"mamba_d_conv": 4, "mamba_expand": 2, "mamba_chunk_size": 16}
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 12, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 24, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4,
    "original_max_position_embeddings": 40,
}  # fmt: skip
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 256}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]

# Kinds of models, each with the way in which it is right. The first ones are in every run.
KINDS = {
    "llama": ({}, OURS),
    # States of convolutions and of linear attention beside keys and values.
    "lfm2": ({"layer_types": ["conv", "full_attention", "conv"], "block_ff_dim": 48}, OURS),
    "qwen3_next": (LINEAR | EXPERTS | {"shared_expert_intermediate_size": 24}, OURS),
    # States alone, under another name than that of keys and values.
    "mamba": ({"state_size": 8, "conv_kernel": 4, "expand": 2, "time_step_rank": 4}, ALONE),
    # Attention to a few tokens, as long as its name is one that the model knows.
    "deepseek_v32": (
        LATENT | {"index_topk": 12, "index_head_dim": 16, "index_n_heads": 32},
        OURS,
    ),
    # Frequencies and chunks that depend on the longest text of a batch.
    "phi3": (
        {"rope_parameters": LONG, "original_max_position_embeddings": 40}
        | {"max_position_embeddings": 256},
        OURS,
    ),
    "llama4_text": (
        {
            "head_dim": 8,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 48,
        }
        | {"attention_chunk_size": 16, "no_rope_layers": [1, 1, 0]}
        | {"layer_types": ["chunked_attention", "chunked_attention", "full_attention"]},
        OURS,
    ),
}
MORE_KINDS = {
    "gpt2": ({"sizes": OLD}, OURS),
    "gptj": ({"sizes": OLD}, OURS),
    "codegen": ({"sizes": OLD}, OURS),
    "falcon": ({"alibi": True, "multi_query": False, "new_decoder_architecture": False}, THEIRS),
    "bloom": ({"sizes": {"hidden_size": 32, "n_layer": 2, "n_head": 4}}, OURS),
    "mpt": ({"sizes": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}}, OURS),
    "gpt_neo": (
        {"sizes": {"hidden_size": 32, "num_layers": 2, "num_heads": 4}}
        | {"window_size": 12, "attention_types": [[["global", "local"], 1]]}
        | {"max_position_embeddings": 256},
        OURS,
    ),
    "gemma2": ({"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 12}, OURS),
    "gemma3_text": ({"head_dim": 16, "sliding_window": 12, "layer_types": SLIDING}, OURS),
    "gpt_oss": (
        {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2}
        | {"sliding_window": 12, "layer_types": SLIDING},
        OURS,
    ),
    "qwen3_moe": (EXPERTS | {"head_dim": 16}, OURS),
    "deepseek_v3": (LATENT | {"first_k_dense_replace": 1}, OURS),
    "qwen3_5_text": (LINEAR, OURS),
    "bamba": (MAMBA | {"attn_layer_indices": [1]}, OURS),
    "falcon_h1": (MAMBA | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_expand": 1}, OURS),
    "granitemoehybrid": (
        MAMBA
        | {"num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 48}
        | {"layer_types": ["mamba", "attention", "mamba"], "position_embedding_type": "nope"},
        OURS,
    ),
    "mamba2": (
        {"state_size": 8, "conv_kernel": 4, "expand": 2, "num_heads": 8, "head_dim": 8}
        | {"n_groups": 1, "chunk_size": 16},
        ALONE,
    ),
    "rwkv": ({"attention_hidden_size": 32, "context_length": 256}, ALONE),
    "recurrent_gemma": (
        {"lru_width": 32, "attention_window_size": 12, "conv1d_width": 4}
        | {"block_types": ["recurrent", "attention", "recurrent"]},
        ALONE,
    ),
    "minimax": (
        {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
        | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "block_size": 16},
        ALONE,
    ),
}

ALL = [
    *(pytest.param(kind, *of, id=kind) for kind, of in KINDS.items()),
    *(pytest.param(kind, *of, id=kind, marks=pytest.mark.slow) for kind, of in MORE_KINDS.items()),
]


def spec_of(folder, **overrides):
    return Engine(model=str(folder), dtype="float32", device="cpu", **overrides)
