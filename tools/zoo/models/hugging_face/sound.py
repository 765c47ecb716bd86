"""Networks of sounds and of time series."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tools.zoo.models.hugging_face.architecture import Architecture
from tools.zoo.models.hugging_face.inputs import (
    BANDS,
    CLASSES,
    FRAMES,
    VOCABULARY,
    dated_series,
    heard,
    series,
    sorted_sounds,
    sorted_spectra,
    sounds,
    spoken,
)  # fmt: skip

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BODY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
WAVES = {
    **BODY, **SPECIAL, "vocab_size": VOCABULARY, "conv_dim": [32, 32, 32], "conv_kernel": [10, 3, 3],
    "conv_stride": [5, 2, 2], "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4,
    "num_feat_extract_layers": 3,
    "apply_spec_augment": False,  # its masks are drawn with numpy
}  # fmt: skip

DATED = {
    "prediction_length": 8, "context_length": 32, "num_time_features": 1, "d_model": 32, "encoder_layers": 2,
    "decoder_layers": 2, "use_cache": False,
}  # fmt: skip


def heard_again(output: Any) -> Tensor:
    """The mean square of a sound as a codec gives it back."""
    return output.audio_values.square().mean()


SOUNDS = {
    "ast": Architecture("ASTForAudioClassification", sorted_spectra, {
        **BODY, "max_length": FRAMES, "num_mel_bins": BANDS, "patch_size": 8, "frequency_stride": 4, "time_stride": 4,
        "num_labels": CLASSES,
    }),
    "encodec": Architecture("EncodecModel", sounds, {
        "hidden_size": 32, "num_filters": 8, "upsampling_ratios": [4, 2], "codebook_size": 16, "codebook_dim": 32,
        "kernel_size": 3, "last_kernel_size": 3,
    }, heard_again),
    "hubert": Architecture("HubertForSequenceClassification", sorted_sounds, {
        **WAVES, "num_labels": CLASSES, "classifier_proj_size": 32,
    }),
    "wav2vec2": Architecture("Wav2Vec2ForCTC", spoken, WAVES),
    "wavlm": Architecture("WavLMForSequenceClassification", sorted_sounds, {
        **WAVES, "num_labels": CLASSES, "classifier_proj_size": 32,
    }),
    "whisper": Architecture("WhisperForConditionalGeneration", heard, {
        **SPECIAL, "vocab_size": VOCABULARY, "num_mel_bins": BANDS, "d_model": 64, "encoder_layers": 2,
        "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128, "max_source_positions": FRAMES // 2, "max_target_positions": 32,
        "decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None,
    }),
}  # fmt: skip
SERIES = {
    "autoformer": Architecture("AutoformerForPrediction", dated_series, {**DATED, "moving_average": 5}),
    "informer": Architecture("InformerForPrediction", dated_series, DATED),
    "patchtsmixer": Architecture("PatchTSMixerForPrediction", series, {
        "context_length": 32, "prediction_length": 8, "num_input_channels": 4, "patch_length": 4, "patch_stride": 4,
        "d_model": 32, "num_layers": 2,
    }),
    "patchtst": Architecture("PatchTSTForPrediction", series, {
        "context_length": 32, "prediction_length": 8, "num_input_channels": 4, "patch_length": 4, "patch_stride": 4,
        "d_model": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64,
    }),
}  # fmt: skip
