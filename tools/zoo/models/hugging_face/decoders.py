"""Language models that read from left to right: attention, mixtures of experts, scans."""

from __future__ import annotations

from tools.zoo.models.hugging_face.architecture import Architecture
from tools.zoo.models.hugging_face.inputs import VOCABULARY, padded_left, padded_right, texts

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False}
SMALL = {
    **SPECIAL, "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 128, "max_position_embeddings": 64,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2}
GEMMA = {**GROUPED, "head_dim": 16}
OPENAI = {**SPECIAL, "vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}

ATTENTION = {
    "biogpt": Architecture("BioGptForCausalLM", padded_right, SMALL),
    "bloom": Architecture("BloomForCausalLM", padded_right, {
        **SPECIAL, "vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4,
    }),
    "codegen": Architecture("CodeGenForCausalLM", texts, {**OPENAI, "rotary_dim": 8}),
    "cohere": Architecture("CohereForCausalLM", texts, GROUPED),
    "falcon": Architecture("FalconForCausalLM", padded_left, {
        **SPECIAL, "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    }),
    "gemma": Architecture("GemmaForCausalLM", texts, GEMMA),
    "gemma2": Architecture("Gemma2ForCausalLM", padded_left, {**GEMMA, "sliding_window": 8}),
    "gemma3": Architecture("Gemma3ForCausalLM", texts, {
        **GEMMA, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"],
    }),
    "glm": Architecture("GlmForCausalLM", texts, {**GROUPED, "head_dim": 16}),
    "gpt2": Architecture("GPT2LMHeadModel", padded_right, OPENAI),
    "gpt_bigcode": Architecture("GPTBigCodeForCausalLM", texts, OPENAI),
    "gpt_neo": Architecture("GPTNeoForCausalLM", texts, {
        **SPECIAL, "vocab_size": VOCABULARY, "hidden_size": 64, "num_layers": 2,
        "attention_types": [[["global", "local"], 1]], "num_heads": 4, "intermediate_size": 128, "window_size": 8,
        "max_position_embeddings": 64,
    }),
    "gpt_neox": Architecture("GPTNeoXForCausalLM", padded_left, SMALL),
    "gptj": Architecture("GPTJForCausalLM", texts, {**OPENAI, "rotary_dim": 8}),
    "granite": Architecture("GraniteForCausalLM", texts, GROUPED),
    "llama": Architecture("LlamaForCausalLM", padded_left, GROUPED),
    "mistral": Architecture("MistralForCausalLM", padded_right, {**GROUPED, "sliding_window": 8}),
    "mpt": Architecture("MptForCausalLM", texts, {
        **SPECIAL, "vocab_size": VOCABULARY, "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 64,
    }),
    "nemotron": Architecture("NemotronForCausalLM", texts, GROUPED),
    "olmo2": Architecture("Olmo2ForCausalLM", texts, GROUPED),
    "opt": Architecture("OPTForCausalLM", padded_right, {
        **SPECIAL, "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "ffn_dim": 128, "word_embed_proj_dim": 64, "max_position_embeddings": 64,
    }),
    "phi": Architecture("PhiForCausalLM", texts, SMALL),
    "phi3": Architecture("Phi3ForCausalLM", texts, GROUPED),
    "qwen2": Architecture("Qwen2ForCausalLM", texts, GROUPED),
    "qwen3": Architecture("Qwen3ForCausalLM", padded_left, {**GROUPED, "head_dim": 16}),
    "smollm3": Architecture("SmolLM3ForCausalLM", texts, GROUPED),
    "stablelm": Architecture("StableLmForCausalLM", texts, GROUPED),
    "starcoder2": Architecture("Starcoder2ForCausalLM", texts, GROUPED),
    "xglm": Architecture("XGLMForCausalLM", texts, {
        **SPECIAL, "vocab_size": VOCABULARY, "d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 128,
        "max_position_embeddings": 64,
    }),
}  # fmt: skip
EXPERTS = {
    "deepseek_v3": Architecture("DeepseekV3ForCausalLM", texts, {
        **SMALL, "num_key_value_heads": 4, "moe_intermediate_size": 32, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1,
        "q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
    }),
    "gpt_oss": Architecture("GptOssForCausalLM", texts, {
        **GROUPED, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8,
    }),
    "mixtral": Architecture("MixtralForCausalLM", texts, {
        **GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True,
    }),
    "olmoe": Architecture("OlmoeForCausalLM", texts, {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": Architecture("Qwen2MoeForCausalLM", padded_right, {
        **GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
    }),
}  # fmt: skip
SCANS = {
    "falcon_mamba": Architecture("FalconMambaForCausalLM", texts, {
        **SPECIAL, "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8,
    }),
    "jamba": Architecture("JambaForCausalLM", texts, {
        **GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    }),
    "mamba": Architecture("MambaForCausalLM", texts, {
        **SPECIAL, "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8,
    }),
    "mamba2": Architecture("Mamba2ForCausalLM", texts, {
        **SPECIAL, "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 16,
        "num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 8,
    }),
    "qwen3_next": Architecture("Qwen3NextForCausalLM", texts, {
        **GROUPED, "head_dim": 16, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
        "linear_value_head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32, "layer_types": ["linear_attention", "full_attention"],
    }),
    "recurrent_gemma": Architecture("RecurrentGemmaForCausalLM", texts, {
        **SPECIAL, "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 128, "lru_width": 64,
        "attention_window_size": 16,
    }),
    "rwkv": Architecture("RwkvForCausalLM", texts, {
        **SPECIAL, "vocab_size": VOCABULARY, "hidden_size": 64, "attention_hidden_size": 64, "num_hidden_layers": 2,
        "context_length": 64,
    }),
}  # fmt: skip
