"""Encoders that fill in masked words, and encoders with decoders."""

from __future__ import annotations

from tools.zoo.models.hugging_face.architecture import Architecture
from tools.zoo.models.hugging_face.inputs import (
    CLASSES,
    VOCABULARY,
    padded_right,
    sorted_texts,
    texts,
    translated,
    written_pages,
)

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 128, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
TWO_SIDED = {
    **SPECIAL, "vocab_size": VOCABULARY, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
    "max_position_embeddings": 64, "decoder_start_token_id": 1,
}  # fmt: skip
T5 = {
    "vocab_size": VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_decoder_layers": 2,
    "num_heads": 4, "decoder_start_token_id": 0, "pad_token_id": 0,
}  # fmt: skip

ENCODERS = {
    "albert": Architecture("AlbertForMaskedLM", padded_right, {**SMALL, "embedding_size": 32}),
    "bert": Architecture("BertForMaskedLM", padded_right, SMALL),
    "big_bird": Architecture("BigBirdForMaskedLM", padded_right, {**SMALL, "attention_type": "original_full"}),
    "convbert": Architecture("ConvBertForMaskedLM", padded_right, {**SMALL, "embedding_size": 64}),
    "deberta": Architecture("DebertaForMaskedLM", padded_right, {
        **SMALL, "relative_attention": True, "pos_att_type": ["c2p", "p2c"],
    }),
    "deberta_v2": Architecture("DebertaV2ForMaskedLM", padded_right, {
        **SMALL, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 16,
    }),
    "distilbert": Architecture("DistilBertForMaskedLM", padded_right, {
        "vocab_size": VOCABULARY, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128,
        "max_position_embeddings": 64,
    }),
    "electra": Architecture("ElectraForMaskedLM", padded_right, {**SMALL, "embedding_size": 32}),
    "ernie": Architecture("ErnieForMaskedLM", padded_right, SMALL),
    "esm": Architecture("EsmForMaskedLM", padded_right, {
        **SMALL, "mask_token_id": 3, "position_embedding_type": "rotary",
    }),
    "fnet": Architecture("FNetForMaskedLM", padded_right, SMALL),
    "funnel": Architecture("FunnelForMaskedLM", padded_right, {
        "vocab_size": VOCABULARY, "block_sizes": [1, 1], "num_decoder_layers": 1, "d_model": 64, "n_head": 4,
        "d_head": 16, "d_inner": 128, "initializer_std": 0.02,
    }),
    "ibert": Architecture("IBertForMaskedLM", padded_right, SMALL),
    "layoutlm": Architecture("LayoutLMForSequenceClassification", written_pages, {
        **SMALL, "max_2d_position_embeddings": 32, "num_labels": CLASSES,
    }),
    "longformer": Architecture("LongformerForSequenceClassification", sorted_texts, {
        **SMALL, "attention_window": 8, "num_labels": CLASSES,
    }),
    "mobilebert": Architecture("MobileBertForMaskedLM", padded_right, {
        **SMALL, "embedding_size": 32, "intra_bottleneck_size": 32, "num_feedforward_networks": 2,
    }),
    "modernbert": Architecture("ModernBertForMaskedLM", padded_right, {
        **SMALL, **SPECIAL, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 8,
    }),
    "mpnet": Architecture("MPNetForMaskedLM", padded_right, SMALL),
    "nystromformer": Architecture("NystromformerForMaskedLM", texts, {
        **SMALL, "segment_means_seq_len": 24, "num_landmarks": 6,
    }),
    "perceiver": Architecture("PerceiverForMaskedLM", padded_right, {
        "vocab_size": VOCABULARY, "num_latents": 8, "d_latents": 32, "d_model": 32, "num_self_attends_per_block": 2,
        "num_self_attention_heads": 4, "num_cross_attention_heads": 4, "max_position_embeddings": 24,
        "qk_channels": 32, "v_channels": 32,
    }),
    "roberta": Architecture("RobertaForMaskedLM", padded_right, SMALL),
    "roformer": Architecture("RoFormerForMaskedLM", padded_right, SMALL),
    "squeezebert": Architecture("SqueezeBertForMaskedLM", padded_right, {**SMALL, "embedding_size": 64}),
    "xlnet": Architecture("XLNetForSequenceClassification", sorted_texts, {
        "vocab_size": VOCABULARY, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128, "num_labels": CLASSES,
    }),
}  # fmt: skip
TRANSLATORS = {
    "bart": Architecture("BartForConditionalGeneration", translated, {**TWO_SIDED, "forced_eos_token_id": 2}),
    "led": Architecture("LEDForConditionalGeneration", translated, {
        **TWO_SIDED, "attention_window": 8, "max_encoder_position_embeddings": 64,
        "max_decoder_position_embeddings": 64,
    }),
    "longt5": Architecture("LongT5ForConditionalGeneration", translated, {**T5, "local_radius": 4}),
    "m2m_100": Architecture("M2M100ForConditionalGeneration", translated, TWO_SIDED),
    "marian": Architecture("MarianMTModel", translated, {
        **TWO_SIDED, "forced_eos_token_id": 2, "decoder_vocab_size": VOCABULARY,
    }),
    "mt5": Architecture("MT5ForConditionalGeneration", translated, T5),
    "pegasus": Architecture("PegasusForConditionalGeneration", translated, {**TWO_SIDED, "forced_eos_token_id": 2}),
    "prophetnet": Architecture("ProphetNetForConditionalGeneration", translated, {
        **SPECIAL, "vocab_size": VOCABULARY, "hidden_size": 64, "num_encoder_layers": 2, "num_decoder_layers": 2,
        "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4, "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128, "max_position_embeddings": 64, "decoder_start_token_id": 1,
    }),
    "switch_transformers": Architecture("SwitchTransformersForConditionalGeneration", translated, {
        **T5, "num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "expert_capacity": 16,
    }),
    "t5": Architecture("T5ForConditionalGeneration", translated, T5),
}  # fmt: skip
