"""A zoo: tiny models with random weights, one of each architecture that people align.

Every model is built from a config class of transformers, so nothing is fetched. Weights are scaled
so that a token depends on much of what came before it: an engine that loses a token, a state or a
position writes another text. A few of the vocabulary's tokens end a turn, so that rows of a batch
end at different steps. The tokenizer is byte-level BPE with a ChatML template.

A name's ending says how the model's sliding window lies: `_near` is shorter than every prompt, and
`_wide` is longer than every text. Without one, texts cross the window while they are written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from setbacks.messages import Prompt, turns_of

VOCABULARY = 400  # more than the tokenizer has, as published models pad theirs
NEAR, CROSSED, WIDE = 8, 40, 512
SPECIAL = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
PAD, BOS, EOS = range(3)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IMAGE = VOCABULARY - 1  # the token that stands for an image


class Architecture(NamedTuple):
    """One architecture, and what is expected of it.

    Args:
        kind: what is special in it, for people.
        model_type: transformers' name of its config class.
        config: what that class is told.
        auto: the class of transformers that builds and loads its checkpoint.
        every_run: whether every CI run tries it.
        refused: what the line says that refuses it; None where everything has to work.
    """

    kind: str
    model_type: str
    config: dict[str, Any]
    auto: str = "AutoModelForCausalLM"
    every_run: bool = False
    refused: str | None = None

    @property
    def loader(self) -> Any:
        """The class of transformers that builds and loads its checkpoint."""
        import transformers

        return getattr(transformers, self.auto)


def usual(**special: Any) -> dict[str, Any]:
    """Return a config of a small model in the words that most config classes use."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    } | special


def older(**special: Any) -> dict[str, Any]:
    """Return a config of a small model in the words of GPT-2."""
    return {
        "vocab_size": VOCABULARY,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 1024,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    } | special


def sliding(window: int, **special: Any) -> dict[str, Any]:
    """Return the usual config with a full layer between two that see a window."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    return usual(**{"sliding_window": window, "layer_types": kinds} | special)


def gemma4(window: int, **special: Any) -> dict[str, Any]:
    """Return a config of Gemma 4's text model."""
    return sliding(
        window,
        **{
            "head_dim": 16,
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCABULARY,
            "num_kv_shared_layers": 0,
            "tie_word_embeddings": True,
        }
        | special,
    )


MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL_MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED_MOE = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
}
# With few heads many keys score 0, and which of them are looked at is chance.
INDEX = {"index_topk": 16, "index_head_dim": 16, "index_n_heads": 32}
LATER_SPARSE = ["dense", "sparse", "sparse"]
STATE_AND_ATTENTION = ["linear_attention", "linear_attention", "full_attention"]
DELTA = {
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": STATE_AND_ATTENTION,
}
MAMBA = {"state_size": 8, "conv_kernel": 4, "expand": 2}
MAMBA_LAYERS = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
LLAMA4 = {
    "head_dim": 8,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "intermediate_size_mlp": 48,
    "attention_chunk_size": 16,
    "interleave_moe_layer_step": 2,
    "layer_types": ["chunked_attention", "chunked_attention", "full_attention"],
    "no_rope_layers": [1, 1, 0],
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 14,
}
QWEN_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": IMAGE - 1,
    "vision_start_token_id": IMAGE - 2,
}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
SEES_IMAGES = "AutoModelForImageTextToText"


def rope(kind: str, **overrides: Any) -> dict[str, Any]:
    """Return a config's rotary positions."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **overrides}}


A = Architecture
ZOO = {
    # Dense
    "llama": A("dense, grouped queries", "llama", usual(), every_run=True),
    "llama_tied": A("tied embeddings", "llama", usual(tie_word_embeddings=True)),
    "llama_mqa": A("one key head, odd width", "llama", usual(num_key_value_heads=1, head_dim=12)),
    "llama3": A(
        "rotary positions by parts",
        "llama",
        usual(
            **rope(
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            )
        ),
    ),
    "llama_yarn": A(
        "YaRN", "llama", usual(**rope("yarn", factor=4.0, original_max_position_embeddings=64))
    ),
    "qwen2": A("biases", "qwen2", usual()),
    "qwen3": A("normed queries", "qwen3", usual(head_dim=16)),
    "phi": A("partial rotary positions", "phi", usual()),
    "phi3": A("fused projections", "phi3", usual()),
    "smollm3": A(
        "layers without positions",
        "smollm3",
        usual(no_rope_layers=[1, 1, 0], no_rope_layer_interval=3),
    ),
    "olmo": A("norms without weights", "olmo", usual()),
    "olmo2": A("norms after layers", "olmo2", usual()),
    "granite": A(
        "multipliers",
        "granite",
        usual(
            embedding_multiplier=2.0,
            attention_multiplier=0.3,
            residual_multiplier=0.5,
            logits_scaling=2.0,
        ),
    ),
    "cohere": A("parallel layers", "cohere", usual()),
    "stablelm": A("partial rotary positions", "stablelm", usual()),
    "glm4": A("interleaved rotary positions", "glm4", usual(head_dim=16)),
    "gemma": A("scaled embeddings", "gemma", usual(head_dim=16)),
    "seed_oss": A("biases", "seed_oss", usual(head_dim=8)),
    "hunyuan": A("normed queries", "hunyuan_v1_dense", usual(head_dim=8)),
    "ernie4_5": A("interleaved rotary positions", "ernie4_5", usual()),
    "apertus": A("xIELU", "apertus", usual()),
    "nemotron": A("squared ReLU", "nemotron", usual(head_dim=8)),
    "helium": A("dense", "helium", usual(head_dim=8)),
    "bitnet": A("norms within layers", "bitnet", usual()),
    "diffllama": A("differences of attention", "diffllama", usual()),
    "nanochat": A("softcaps, no weights in norms", "nanochat", usual()),
    # Sliding windows, softcaps, sinks
    "mistral": A("sliding window", "mistral", usual(sliding_window=CROSSED), every_run=True),
    "mistral_near": A("sliding window", "mistral", usual(sliding_window=NEAR)),
    "mistral_wide": A("sliding window", "mistral", usual(sliding_window=WIDE)),
    "qwen2_window": A(
        "sliding window in upper layers",
        "qwen2",
        usual(use_sliding_window=True, sliding_window=CROSSED, max_window_layers=1),
    ),
    "ministral": A("sliding and full layers", "ministral", sliding(CROSSED, head_dim=8)),
    "ministral3": A(
        "YaRN, scaled queries",
        "ministral3",
        usual(
            **rope(
                "yarn",
                factor=16.0,
                original_max_position_embeddings=16,
                max_position_embeddings=1024,
                beta_fast=32.0,
                beta_slow=1.0,
                mscale=1.0,
                mscale_all_dim=1.0,
                llama_4_scaling_beta=0.5,
            )
        ),
    ),
    "gemma2": A(
        "softcaps, sliding window",
        "gemma2",
        sliding(NEAR, head_dim=16, query_pre_attn_scalar=16, tie_word_embeddings=True),
    ),
    "gemma2_wide": A(
        "softcaps, sliding window",
        "gemma2",
        sliding(WIDE, head_dim=16, query_pre_attn_scalar=16, tie_word_embeddings=True),
        every_run=True,
    ),
    "gemma3_text": A(
        "sliding and full layers",
        "gemma3_text",
        sliding(CROSSED, head_dim=16, tie_word_embeddings=True),
    ),
    "gemma3n_text": A(
        "shared keys, inputs of layers",
        "gemma3n_text",
        usual(
            head_dim=16,
            sliding_window=CROSSED,
            num_hidden_layers=4,
            layer_types=["sliding_attention", "full_attention"] * 2,
            intermediate_size=[48] * 4,
            vocab_size_per_layer_input=VOCABULARY,
            hidden_size_per_layer_input=8,
            num_kv_shared_layers=2,
            laurel_rank=8,
            activation_sparsity_pattern=[0.0] * 4,
            tie_word_embeddings=True,
        ),
    ),
    "gemma4_text": A("inputs of layers", "gemma4_text", gemma4(CROSSED)),
    "gemma4_shared": A(
        "shared keys",
        "gemma4_text",
        gemma4(
            CROSSED,
            num_hidden_layers=4,
            num_kv_shared_layers=2,
            layer_types=["sliding_attention", "full_attention"] * 2,
        ),
    ),
    "vaultgemma": A("softcaps", "vaultgemma", sliding(WIDE, head_dim=16, query_pre_attn_scalar=16)),
    "phi3_window": A("sliding window", "phi3", usual(sliding_window=NEAR)),
    "olmo3": A("sliding and full layers", "olmo3", sliding(CROSSED)),
    "cohere2": A("sliding and full layers", "cohere2", sliding(CROSSED)),
    "exaone4": A("sliding and full layers", "exaone4", sliding(CROSSED)),
    "starcoder2": A("sliding window", "starcoder2", usual(sliding_window=NEAR)),
    "granite_swa": A("sliding and full layers", "granite_swa", sliding(WIDE)),
    # Positions that depend on how long the text is
    "llama_dynamic": A(
        "dynamic rotary positions",
        "llama",
        usual(**rope("dynamic", factor=4.0)),
    ),
    "phi3_longrope": A(
        "LongRoPE",
        "phi3",
        usual(
            original_max_position_embeddings=CROSSED,
            **rope(
                "longrope",
                short_factor=[1.0] * 4,
                long_factor=[3.0] * 4,
                original_max_position_embeddings=CROSSED,
                max_position_embeddings=1024,
            ),
        ),
    ),
    # Mixtures of experts, latent attention, sparse attention
    "mixtral": A("experts", "mixtral", usual(**LOCAL_MOE)),
    "qwen2_moe": A("experts", "qwen2_moe", usual(**MOE, shared_expert_intermediate_size=24)),
    "qwen3_moe": A("experts", "qwen3_moe", usual(head_dim=16, **MOE), every_run=True),
    "gpt_oss": A(
        "sinks, experts, sliding window", "gpt_oss", sliding(NEAR, head_dim=16, **LOCAL_MOE)
    ),
    "gpt_oss_wide": A(
        "sinks, experts, sliding window",
        "gpt_oss",
        sliding(WIDE, head_dim=16, **LOCAL_MOE),
        every_run=True,
    ),
    "olmoe": A("experts", "olmoe", usual(num_experts=4, num_experts_per_tok=2)),
    "flex_olmo": A("experts", "flex_olmo", usual(num_experts=4, num_experts_per_tok=2)),
    "phimoe": A("experts", "phimoe", usual(**LOCAL_MOE)),
    "granitemoe": A("experts", "granitemoe", usual(**LOCAL_MOE)),
    "minimax_m2": A("experts", "minimax_m2", usual(head_dim=8, **LOCAL_MOE)),
    "jetmoe": A(
        "experts in attention",
        "jetmoe",
        usual(num_local_experts=4, num_experts_per_tok=2, kv_channels=8),
    ),
    "dbrx": A(
        "experts",
        "dbrx",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 1024,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
            "ffn_config": {
                "hidden_size": 32,
                "ffn_hidden_size": 48,
                "moe_num_experts": 4,
                "moe_top_k": 2,
            },
        },
    ),
    "glm4_moe": A("experts", "glm4_moe", usual(head_dim=16, first_k_dense_replace=1, **ROUTED_MOE)),
    "dots1": A("experts", "dots1", usual(first_k_dense_replace=1, **ROUTED_MOE)),
    "ernie4_5_moe": A(
        "experts",
        "ernie4_5_moe",
        usual(moe_num_experts=4, moe_k=2, moe_intermediate_size=24, moe_num_shared_experts=1),
    ),
    "hunyuan_moe": A("experts", "hunyuan_v1_moe", usual(head_dim=8, num_experts=4, moe_topk=2)),
    "afmoe": A(
        "gated attention, experts",
        "afmoe",
        sliding(CROSSED, head_dim=8, num_dense_layers=1, **MOE),
    ),
    "mimo_v2": A(
        "sinks, experts, two widths of heads",
        "mimo_v2_flash",
        usual(
            moe_intermediate_size=24,
            n_routed_experts=4,
            num_experts_per_tok=2,
            head_dim=12,
            v_head_dim=8,
            sliding_window=CROSSED,
            layer_types=["full_attention", "sliding_attention", "sliding_attention"],
            mlp_layer_types=LATER_SPARSE,
        ),
    ),
    "llama4_text": A("chunked attention, experts", "llama4_text", usual(**LLAMA4)),
    "minicpm3": A("latent attention", "minicpm3", usual(**LATENT | {"v_head_dim": 8})),
    "deepseek_v2": A(
        "latent attention, experts",
        "deepseek_v2",
        usual(first_k_dense_replace=1, **LATENT, **ROUTED_MOE),
    ),
    "deepseek_v3": A(
        "latent attention, experts in groups",
        "deepseek_v3",
        usual(first_k_dense_replace=1, **LATENT, **ROUTED_MOE | {"n_group": 2}),
        every_run=True,
    ),
    "glm4_moe_lite": A(
        "latent attention, experts",
        "glm4_moe_lite",
        usual(mlp_layer_types=LATER_SPARSE, **LATENT, **ROUTED_MOE),
    ),
    "longcat_flash": A(
        "latent attention, experts that do nothing",
        "longcat_flash",
        usual(
            **LATENT,
            head_dim=8,
            num_layers=2,
            ffn_hidden_size=48,
            expert_ffn_hidden_size=24,
            n_routed_experts=4,
            zero_expert_num=2,
            moe_topk=2,
        ),
    ),
    "deepseek_v32": A(
        "sparse attention",
        "deepseek_v32",
        usual(**LATENT, **ROUTED_MOE, **INDEX),
        every_run=True,
    ),
    "glm_moe_dsa": A(
        "sparse attention",
        "glm_moe_dsa",
        usual(**LATENT, **ROUTED_MOE, **INDEX),
    ),
    "hy_v3": A(
        "experts",
        "hy_v3",
        usual(head_dim=8, num_shared_experts=1, mlp_layer_types=LATER_SPARSE, **MOE),
    ),
    "solar_open": A("experts", "solar_open", usual(head_dim=8, **ROUTED_MOE)),
    "exaone_moe": A(
        "experts, sliding and full layers",
        "exaone_moe",
        sliding(CROSSED, head_dim=8, first_k_dense_replace=1, num_shared_experts=1, **MOE),
    ),
    "cohere2_moe": A(
        "experts, sliding and full layers",
        "cohere2_moe",
        sliding(CROSSED, head_dim=8, mlp_layer_types=LATER_SPARSE, **MOE),
    ),
    "laguna": A(
        "experts, sliding and full layers",
        "laguna",
        sliding(CROSSED, head_dim=8, shared_expert_intermediate_size=24, **MOE),
    ),
    "mellum": A(
        "experts, sliding and full layers",
        "mellum",
        sliding(CROSSED, head_dim=8, moe_intermediate_size=24, **LOCAL_MOE),
    ),
    "mistral4": A(
        "latent attention, experts, scaled queries",
        "mistral4",
        usual(**LATENT, **ROUTED_MOE),
        auto=SEES_IMAGES,
    ),
    "minimax_m3": A(
        "sparse attention in blocks, experts",
        "minimax_m3_vl_text",
        usual(
            head_dim=16,
            rotary_dim=8,
            dense_intermediate_size=48,
            shared_intermediate_size=24,
            mlp_layer_types=LATER_SPARSE,
            layer_types=["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
            index_n_heads=2,
            index_head_dim=16,
            index_block_size=8,
            index_topk_blocks=2,
            **LOCAL_MOE,
        ),
    ),
    "deepseek_v4": A(
        "compressed attention, experts, several streams",
        "deepseek_v4",
        usual(
            head_dim=16,
            num_key_value_heads=1,
            q_lora_rank=16,
            o_lora_rank=8,
            o_groups=2,
            qk_rope_head_dim=8,
            moe_intermediate_size=24,
            n_routed_experts=4,
            n_shared_experts=1,
            num_experts_per_tok=2,
            hc_mult=2,
            sliding_window=CROSSED,
            index_topk=8,
            index_head_dim=16,
            index_n_heads=32,
            compress_rates={"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
            layer_types=[
                "sliding_attention",
                "compressed_sparse_attention",
                "heavily_compressed_attention",
            ],
            mlp_layer_types=["hash_moe", "moe", "moe"],
        ),
    ),
    # Hybrids: layers of attention and layers that carry a state
    "qwen3_next": A(
        "gated delta rule, experts",
        "qwen3_next",
        usual(**DELTA, **MOE, shared_expert_intermediate_size=24),
        every_run=True,
    ),
    "qwen3_5_text": A("gated delta rule", "qwen3_5_text", usual(**DELTA)),
    "qwen3_5_moe_text": A(
        "gated delta rule, experts",
        "qwen3_5_moe_text",
        usual(**DELTA, **MOE, shared_expert_intermediate_size=24),
    ),
    "lfm2": A(
        "short convolutions",
        "lfm2",
        usual(layer_types=["conv", "full_attention", "conv"], block_ff_dim=48, conv_L_cache=3),
        every_run=True,
    ),
    "lfm2_moe": A(
        "short convolutions, experts",
        "lfm2_moe",
        usual(
            layer_types=["conv", "full_attention", "conv"],
            conv_L_cache=3,
            num_dense_layers=1,
            **MOE,
        ),
    ),
    "granitemoehybrid": A(
        "Mamba-2 layers",
        "granitemoehybrid",
        usual(
            num_local_experts=0,
            num_experts_per_tok=0,
            shared_intermediate_size=48,
            layer_types=["mamba", "attention", "mamba"],
            position_embedding_type="nope",
            **MAMBA_LAYERS,
        ),
        every_run=True,
    ),
    "bamba": A("Mamba-2 layers", "bamba", usual(attn_layer_indices=[1], **MAMBA_LAYERS)),
    "falcon_h1": A(
        "Mamba-2 beside attention",
        "falcon_h1",
        usual(
            head_dim=8,
            **MAMBA_LAYERS | {"mamba_n_heads": 4, "mamba_expand": 1, "mamba_d_ssm": 32},
        ),
    ),
    "jamba": A(
        "Mamba layers, experts",
        "jamba",
        usual(
            num_experts=2,
            num_experts_per_tok=1,
            mamba_d_state=8,
            mamba_d_conv=4,
            mamba_expand=2,
            mamba_dt_rank=4,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            use_mamba_kernels=False,
        ),
    ),
    "zamba2": A(
        "Mamba-2 layers, one shared attention",
        "zamba2",
        usual(
            num_hidden_layers=4,
            layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
            mamba_d_state=8,
            mamba_d_conv=4,
            mamba_expand=2,
            mamba_headdim=8,
            n_mamba_heads=8,
            mamba_ngroups=1,
            chunk_size=16,
            num_mem_blocks=1,
            attention_hidden_size=64,
            attention_head_dim=16,
            num_key_value_heads=4,
            adapter_rank=4,
        ),
    ),
    "nemotron_h": A(
        "Mamba-2 layers",
        "nemotron_h",
        usual(
            layers_block_type=["mamba", "attention", "mlp"],
            mamba_num_heads=8,
            mamba_head_dim=8,
            n_groups=1,
            ssm_state_size=8,
            conv_kernel=4,
            chunk_size=16,
            head_dim=8,
        ),
    ),
    "kimi_linear": A(
        "Kimi delta attention, latent attention, experts",
        "kimi_linear",
        usual(
            moe_intermediate_size=24,
            num_experts=4,
            num_experts_per_token=2,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=8,
            num_key_value_heads=4,
            linear_head_dim=8,
            linear_num_heads=4,
            layer_types=["linear_attention", "full_attention", "linear_attention"],
            mlp_layer_types=LATER_SPARSE,
        ),
    ),
    "olmo_hybrid": A(
        "gated delta rule",
        "olmo_hybrid",
        usual(
            linear_num_key_heads=2,
            linear_num_value_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=16,
            layer_types=STATE_AND_ATTENTION,
        ),
    ),
    "recurrent_gemma": A(
        "linear recurrences",
        "recurrent_gemma",
        usual(
            lru_width=32,
            attention_window_size=16,
            conv1d_width=4,
            block_types=["recurrent", "attention", "recurrent"],
        ),
    ),
    "minimax": A(
        "lightning attention, experts",
        "minimax",
        usual(
            layer_types=["linear_attention", "full_attention", "linear_attention"],
            head_dim=8,
            block_size=16,
            **LOCAL_MOE,
        ),
    ),
    "lfm3": A(
        "short convolutions, sliding and full layers",
        "lfm3",
        usual(
            num_hidden_layers=4,
            layer_types=["conv", "sliding_attention", "conv", "full_attention"],
            head_dim=8,
            sliding_window=CROSSED,
            conv_L_cache=3,
        ),
    ),
    "zamba": A(
        "Mamba layers, one shared attention",
        "zamba",
        usual(
            num_hidden_layers=4,
            layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
            mamba_d_state=8,
            mamba_d_conv=4,
            mamba_expand=2,
            n_mamba_heads=2,
            mamba_dt_rank=4,
            attention_hidden_size=64,
            attention_head_dim=16,
            num_key_value_heads=4,
            use_mamba_kernels=False,
        ),
    ),
    "zaya": A(
        "convolutions within attention, experts",
        "zaya",
        usual(head_dim=16, router_hidden_size=16, **MOE | {"num_experts_per_tok": 1}),
    ),
    "bailing_hybrid": A(
        "Kimi delta attention, latent attention, experts",
        "bailing_hybrid",
        usual(
            **LATENT,
            moe_intermediate_size=24,
            num_experts=4,
            num_experts_per_token=2,
            num_shared_experts=1,
            num_expert_group=1,
            topk_group=1,
            linear_head_dim=8,
            head_dim=8,
            layer_types=["linear_attention", "full_attention", "linear_attention"],
            mlp_layer_types=LATER_SPARSE,
        ),
    ),
    # States alone
    "mamba": A("state space", "mamba", usual(time_step_rank=4, **MAMBA)),
    "mamba2": A(
        "state space",
        "mamba2",
        usual(num_heads=8, head_dim=8, n_groups=1, chunk_size=16, **MAMBA),
        every_run=True,
    ),
    "falcon_mamba": A("state space", "falcon_mamba", usual(time_step_rank=4, **MAMBA)),
    "rwkv": A("recurrent", "rwkv", usual(attention_hidden_size=32, context_length=1024)),
    "xlstm": A(
        "recurrent; transformers' own generate fails",
        "xlstm",
        usual(num_heads=2, num_blocks=3),
        refused="its answers would be wrong",
    ),
    # Older ones: learned positions, ALiBi
    "gpt2": A("learned positions", "gpt2", older(), every_run=True),
    "gpt_bigcode": A("learned positions, one key head", "gpt_bigcode", older()),
    "gptj": A("rotary positions", "gptj", older(rotary_dim=8, tie_word_embeddings=False)),
    "codegen": A("rotary positions", "codegen", older(rotary_dim=8, tie_word_embeddings=False)),
    "gpt_neo": A(
        "learned positions, local attention",
        "gpt_neo",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "window_size": 16,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 1024,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
        },
    ),
    "gpt_neox": A("partial rotary positions", "gpt_neox", usual()),
    "opt": A(
        "learned positions",
        "opt",
        usual(ffn_dim=48, num_hidden_layers=2, word_embed_proj_dim=32, tie_word_embeddings=True),
    ),
    "xglm": A(
        "sinusoidal positions",
        "xglm",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "tie_word_embeddings": False,
            "ffn_dim": 48,
            "num_layers": 3,
            "attention_heads": 4,
            "max_position_embeddings": 1024,
            "pad_token_id": PAD,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
        },
    ),
    "biogpt": A("learned positions", "biogpt", usual(num_hidden_layers=2)),
    "persimmon": A("squared ReLU", "persimmon", usual()),
    "falcon": A("one key head", "falcon", usual(multi_query=True)),
    "falcon_alibi": A(
        "ALiBi",
        "falcon",
        usual(alibi=True, multi_query=False, new_decoder_architecture=False),
    ),
    "bloom": A(
        "ALiBi",
        "bloom",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "n_layer": 2,
            "n_head": 4,
            "pad_token_id": PAD,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
        },
        every_run=True,
    ),
    "mpt": A(
        "ALiBi",
        "mpt",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 1024},
    ),
    "openai_gpt": A("learned positions, no cache", "openai-gpt", older(tie_word_embeddings=False)),
    "modernbert_decoder": A(
        "a decoder in BERT's style",
        "modernbert-decoder",
        sliding(CROSSED, local_attention=CROSSED, cls_token_id=BOS, sep_token_id=EOS),
    ),
    # Models that see images, asked in words alone
    "gemma3": A(
        "images",
        "gemma3",
        {
            "text_config": sliding(CROSSED, head_dim=16, tie_word_embeddings=True)
            | {"model_type": "gemma3_text"},
            "vision_config": VISION,
            "mm_tokens_per_image": 4,
            "image_token_index": IMAGE,
        },
        auto=SEES_IMAGES,
        every_run=True,
    ),
    "gemma4": A(
        "images",
        "gemma4",
        {
            "text_config": gemma4(CROSSED),
            "vision_config": VISION | {"head_dim": 16},
            "audio_config": None,
            "image_token_id": IMAGE,
        },
        auto=SEES_IMAGES,
    ),
    "llama4": A(
        "images",
        "llama4",
        {
            "text_config": usual(**LLAMA4),
            "vision_config": VISION
            | {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
            "image_token_index": IMAGE,
        },
        auto=SEES_IMAGES,
    ),
    "qwen2_5_vl": A(
        "images",
        "qwen2_5_vl",
        {
            "text_config": usual(rope_parameters=MROPE),
            "vision_config": QWEN_VISION | {"fullatt_block_indexes": [0]},
            **QWEN_TOKENS,
        },
        auto=SEES_IMAGES,
    ),
    "qwen3_vl": A(
        "images",
        "qwen3_vl",
        {
            "text_config": usual(head_dim=8, rope_parameters=MROPE),
            "vision_config": QWEN_VISION
            | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
            **QWEN_TOKENS,
        },
        auto=SEES_IMAGES,
    ),
    "qwen3_5": A(
        "images, gated delta rule",
        "qwen3_5",
        {
            "text_config": usual(**DELTA),
            "vision_config": QWEN_VISION | {"num_position_embeddings": 16},
            **QWEN_TOKENS,
        },
        auto=SEES_IMAGES,
        every_run=True,
    ),
    "mistral3": A(
        "images",
        "mistral3",
        {
            "text_config": usual() | {"model_type": "mistral"},
            "vision_config": VISION | {"model_type": "pixtral", "head_dim": 16},
            "image_token_index": IMAGE,
        },
        auto=SEES_IMAGES,
    ),
    "llava": A(
        "images",
        "llava",
        {
            "text_config": usual() | {"model_type": "llama"},
            "vision_config": VISION | {"model_type": "clip_vision_model"},
            "image_token_index": IMAGE,
        },
        auto=SEES_IMAGES,
    ),
    "qwen3_vl_moe": A(
        "images, experts",
        "qwen3_vl_moe",
        {
            "text_config": usual(head_dim=8, rope_parameters=MROPE, **MOE),
            "vision_config": QWEN_VISION
            | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
            **QWEN_TOKENS,
        },
        auto=SEES_IMAGES,
    ),
    "kimi_k25": A(
        "images, latent attention, experts",
        "kimi_k25",
        {
            "text_config": usual(first_k_dense_replace=1, **LATENT, **ROUTED_MOE)
            | {"model_type": "deepseek_v3"},
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
            },
            "projection_hidden_size": 32,
            **QWEN_TOKENS,
        },
        auto=SEES_IMAGES,
    ),
    "paligemma": A(
        "images; a prompt sees both sides",
        "paligemma",
        {
            "text_config": usual(head_dim=16) | {"model_type": "gemma"},
            "vision_config": VISION | {"model_type": "siglip_vision_model"},
            "projection_dim": 32,
            "image_token_index": IMAGE,
        },
        auto=SEES_IMAGES,
        refused="its answers would be wrong",
    ),
    "smolvlm": A(
        "images",
        "smolvlm",
        {
            "text_config": usual() | {"model_type": "llama"},
            "vision_config": VISION,
            "image_token_id": IMAGE,
            "pad_token_id": PAD,
        },
        auto=SEES_IMAGES,
    ),
    "lfm2_vl": A(
        "images, short convolutions",
        "lfm2_vl",
        {
            "text_config": usual(
                layer_types=["conv", "full_attention", "conv"], block_ff_dim=48, conv_L_cache=3
            )
            | {"model_type": "lfm2"},
            "vision_config": VISION | {"model_type": "siglip2_vision_model"},
            "image_token_id": IMAGE,
        },
        auto=SEES_IMAGES,
    ),
    # No causal language models, or not all of one
    "t5": A(
        "encoder and decoder",
        "t5",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
        },
        auto="AutoModelForSeq2SeqLM",
        every_run=True,
        refused="encoder",
    ),
    "bart": A(
        "encoder and decoder",
        "bart",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
        },
        auto="AutoModelForSeq2SeqLM",
        every_run=True,
        refused="encoder",
    ),
    "bert": A(
        "encoder",
        "bert",
        usual(num_hidden_layers=2),
        auto="AutoModel",
        every_run=True,
        refused="",
    ),
    "roberta": A(
        "fills gaps, sees both sides",
        "roberta",
        usual(num_hidden_layers=2),
        auto="AutoModelForMaskedLM",
        every_run=True,
        refused="",
    ),
    "headless": A("no head", "llama", usual(), auto="AutoModel", every_run=True, refused="lm_head"),
    "reward": A(
        "a head for scores",
        "llama",
        usual(num_labels=1),
        auto="AutoModelForSequenceClassification",
        every_run=True,
        refused="does not generate text",
    ),
}


def build(name: str, folder: Path) -> Path:
    """Save a model of the zoo, as it would be published, with its tokenizer."""
    import torch
    from transformers import AutoConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    data = ZOO[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(data.model_type, **data.config)
    model = data.loader.from_config(config, dtype=torch.float32).eval()
    _scale(model)
    if data.refused is None:
        model.generation_config.pad_token_id = PAD
        model.generation_config.eos_token_id = sorted({EOS, *_ends(model)})
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    if data.auto == SEES_IMAGES:  # what its images go through is published beside it
        for part in ("preprocessor", "processor"):
            (folder / f"{part}_config.json").write_text("{}\n")
    return folder


def _scale(model: Any) -> None:
    """Draw weights that have each token depend on much of what came before."""
    import torch

    draw = torch.Generator().manual_seed(1)
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    tied = ends[1] is not None and ends[0].weight is ends[1].weight
    # What layers write has to outweigh the last token, or a tied model says it again and again.
    embedding, layer = (0.15, 4.0) if tied else (0.7, 2.0)
    if "gemma" in model.config.model_type or getattr(model.config, "scale_embedding", False):
        embedding /= 5  # they are multiplied by the root of the width
    own = ("conv", "vision", "visual", "a_log", "dt_", "time_")  # stay as they are drawn
    with torch.no_grad():
        for name, weight in model.named_parameters():
            name = name.lower()
            if "q_norm" in name or "k_norm" in name:
                weight.fill_(2.0)  # attention that looks at few places, not at the mean of all
            if weight.dim() < 2 or any(word in name for word in own):
                continue
            fan_in = weight.shape[-1] if weight.dim() == 2 else weight.shape[-2]
            is_embedding = any(word in name for word in ("embed", "wte", "word_emb"))
            scale = embedding if is_embedding else layer / math.sqrt(fan_in)
            weight.copy_(torch.randn(weight.shape, generator=draw) * scale)
    model.tie_weights()


def _ends(model: Any) -> Iterator[int]:
    """Yield two tokens at which answers of a model are to end: on the way, at different steps."""
    answers = [_written(model, text, 16) for text in ("Hi", "Say yes.")]
    begun = {token for answer in answers for token in answer[:3]}
    for answer, step in zip(answers, (4, 10), strict=True):
        yield next((token for token in answer[step:] if token not in begun), EOS)


def _written(model: Any, text: str, length: int) -> list[int]:
    """Return the tokens that a model writes to a text, one row, without a cache."""
    import torch

    ids = prompt_ids(text)
    start = len(ids)
    with torch.inference_mode():
        for _ in range(length):
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
            ids.append(int(logits[0, -1].argmax()))
    return ids[start:]


def prompt_ids(prompt: Prompt, begun: str = "") -> list[int]:
    """Return the ids of a question or conversation in the template, and of how an answer begins."""
    turns = [{"role": turn.role, "content": turn.content} for turn in turns_of(prompt)]
    text = tokenizer().apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer()(text + begun, add_special_tokens=False)["input_ids"]
    return ids


@cache
def tokenizer() -> Any:
    """Return a byte-level tokenizer with a ChatML template, trained on this very file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 20,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([__doc__], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=SPECIAL[PAD],
        bos_token=SPECIAL[BOS],
        eos_token=SPECIAL[EOS],
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = TEMPLATE
    return made
