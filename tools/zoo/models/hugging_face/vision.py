"""Networks of images: convolutions, transformers, detection, segmentation; and of images with texts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tools.zoo.models.hugging_face.architecture import Architecture
from tools.zoo.models.hugging_face.inputs import (
    CLASSES,
    IMAGE,
    TOKENS,
    VOCABULARY,
    captioned_images,
    described_images,
    images,
    measured_images,
    segmented_images,
    sorted_films,
    sorted_images,
)  # fmt: skip

BODY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
PATCHES = {**BODY, "image_size": IMAGE, "patch_size": 8, "num_labels": CLASSES}
STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 24, 32, 40], "num_labels": CLASSES}
SWIN = {"image_size": IMAGE, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
PYRAMID = {
    **SWIN, "model_type": "swin", "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4],
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}  # fmt: skip
DETR = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 8, "num_labels": CLASSES,
}  # fmt: skip
DETECTOR = {
    **DETR,
    "backbone_config": {
        "model_type": "resnet", "depths": [1, 1, 1, 1], "hidden_sizes": [16, 24, 32, 40], "embedding_size": 16,
        "out_features": ["stage3", "stage4"],
    },
}  # fmt: skip
TEXT = {
    **BODY, "vocab_size": VOCABULARY, "max_position_embeddings": TOKENS, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
IMAGES = {**BODY, "image_size": IMAGE, "patch_size": 8}


def first_output(output: Any) -> Tensor:
    """The mean square of the first output, for models that compute no loss."""
    return output[0].float().square().mean()


def masks(output: Any) -> Tensor:
    """The cross-entropy of masks, each query's product with the pixels (Cheng et al. 2021), with a strip for each.

    Their own loss matches masks on the host, with scipy. The mean square of queries would not do: they leave a
    LayerNorm, which fixes it, so that all gradients before are 0 but for rounding.
    """
    pixels, queries = output.pixel_decoder_last_hidden_state, output.transformer_decoder_last_hidden_state
    logits = torch.einsum("bqc,bchw->bqhw", queries, pixels)
    count, height = logits.shape[1:3]
    strips = torch.arange(height) * count // height == torch.arange(count).unsqueeze(1)
    return F.binary_cross_entropy_with_logits(logits, strips.unsqueeze(2).to(logits.dtype).expand_as(logits))


def boxes(output: Any) -> Tensor:
    """The mean square of what a detector says; its own loss matches boxes on the host, with scipy."""
    return output.logits.square().mean() + output.pred_boxes.square().mean()


def pairs(output: Any) -> Tensor:
    """The cross-entropy of finding the text to each image (Radford et al. 2021)."""
    scores = output.logits_per_image
    return F.cross_entropy(scores, torch.arange(len(scores)))


CONVOLUTIONS = {
    "bit": Architecture("BitForImageClassification", sorted_images, {
        **STAGES, "hidden_sizes": [16, 32, 32, 64], "embedding_size": 16, "num_groups": 8,
    }),
    "convnext": Architecture("ConvNextForImageClassification", sorted_images, {**STAGES, "drop_path_rate": 0.1}),
    "convnextv2": Architecture("ConvNextV2ForImageClassification", sorted_images, {**STAGES, "drop_path_rate": 0.1}),
    "efficientnet": Architecture("EfficientNetForImageClassification", sorted_images, {
        "num_labels": CLASSES, "width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320,
        "image_size": IMAGE,
    }),
    "focalnet": Architecture("FocalNetForImageClassification", sorted_images, {
        "image_size": IMAGE, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "focal_levels": [2, 2],
        "focal_windows": [3, 3], "num_labels": CLASSES,
    }),
    "levit": Architecture("LevitForImageClassification", sorted_images, {
        "image_size": IMAGE, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1],
        "key_dim": [8, 8, 8], "num_labels": CLASSES,
    }),
    "mobilenet_v1": Architecture("MobileNetV1ForImageClassification", sorted_images, {
        "depth_multiplier": 0.25, "num_labels": CLASSES,
    }),
    "mobilenet_v2": Architecture("MobileNetV2ForImageClassification", sorted_images, {
        "depth_multiplier": 0.25, "num_labels": CLASSES,
    }),
    "poolformer": Architecture("PoolFormerForImageClassification", sorted_images, STAGES),
    "regnet": Architecture("RegNetForImageClassification", sorted_images, {
        **STAGES, "embedding_size": 16, "groups_width": 8,
    }),
    "resnet": Architecture("ResNetForImageClassification", sorted_images, {**STAGES, "embedding_size": 16}),
}  # fmt: skip
TRANSFORMERS = {
    "beit": Architecture("BeitForImageClassification", sorted_images, {
        **PATCHES, "use_relative_position_bias": True, "drop_path_rate": 0.1,
    }),
    "cvt": Architecture("CvtForImageClassification", sorted_images, {
        "num_labels": CLASSES, "embed_dim": [16, 32, 32], "depth": [1, 2, 3], "num_heads": [1, 2, 2],
    }),
    "deit": Architecture("DeiTForImageClassification", sorted_images, PATCHES),
    "dinov2": Architecture("Dinov2ForImageClassification", sorted_images, {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2, "image_size": IMAGE,
        "patch_size": 8, "num_labels": CLASSES,
    }),
    "hiera": Architecture("HieraForImageClassification", sorted_images, {
        "image_size": [IMAGE, IMAGE], "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8],
        "num_labels": CLASSES,
    }),
    "mobilevit": Architecture("MobileViTForImageClassification", sorted_images, {
        "image_size": IMAGE, "hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 16, 24, 24, 32, 40, 64],
        "num_attention_heads": 4, "num_labels": CLASSES,
    }),
    "pvt": Architecture("PvtForImageClassification", sorted_images, {
        "image_size": IMAGE, "depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 32, 32],
        "num_attention_heads": [1, 2, 2, 2], "sequence_reduction_ratios": [2, 2, 1, 1], "num_labels": CLASSES,
    }),
    "swin": Architecture("SwinForImageClassification", sorted_images, {**SWIN, "num_labels": CLASSES}),
    "swinv2": Architecture("Swinv2ForImageClassification", sorted_images, {**SWIN, "num_labels": CLASSES}),
    "timesformer": Architecture("TimesformerForVideoClassification", sorted_films, {**PATCHES, "num_frames": 4}),
    "videomae": Architecture("VideoMAEForVideoClassification", sorted_films, {**PATCHES, "num_frames": 4}),
    "vit": Architecture("ViTForImageClassification", sorted_images, PATCHES),
    "vit_mae": Architecture("ViTMAEForPreTraining", images, {
        **IMAGES, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4,
        "decoder_intermediate_size": 64,
    }),
}  # fmt: skip
DENSE = {
    "deformable_detr": Architecture("DeformableDetrForObjectDetection", images, {
        **DETECTOR, "encoder_n_points": 2, "decoder_n_points": 2, "num_feature_levels": 2,
    }, boxes),
    "detr": Architecture("DetrForObjectDetection", images, DETECTOR, boxes),
    "dpt": Architecture("DPTForSemanticSegmentation", segmented_images, {
        **PATCHES, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [16, 16, 32, 32],
        "fusion_hidden_size": 32,
    }),
    "glpn": Architecture("GLPNForDepthEstimation", measured_images, {
        "depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 32, 32], "num_attention_heads": [1, 2, 2, 2],
        "sr_ratios": [2, 2, 1, 1], "decoder_hidden_size": 32,
    }),
    "mask2former": Architecture("Mask2FormerModel", images, {
        "backbone_config": PYRAMID, "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32,
        "encoder_feedforward_dim": 64, "encoder_layers": 1, "decoder_layers": 3, "num_attention_heads": 4,
        "dim_feedforward": 64, "num_queries": 8,
    }, masks),
    "maskformer": Architecture("MaskFormerModel", images, {
        "backbone_config": PYRAMID,
        "decoder_config": {**DETR, "model_type": "detr"},
        "fpn_feature_size": 32, "mask_feature_size": 32,
    }, masks),
    "segformer": Architecture("SegformerForSemanticSegmentation", segmented_images, {
        **STAGES, "hidden_sizes": [16, 32, 32, 32], "num_attention_heads": [1, 2, 2, 2], "sr_ratios": [2, 2, 1, 1],
        "decoder_hidden_size": 32,
    }),
    "yolos": Architecture("YolosForObjectDetection", images, {
        **IMAGES, "image_size": [IMAGE, IMAGE], "num_detection_tokens": 8, "num_labels": CLASSES,
    }, boxes),
}  # fmt: skip
WITH_TEXTS = {
    "blip": Architecture("BlipForConditionalGeneration", described_images, {
        "text_config": TEXT, "vision_config": IMAGES,
    }),
    "clip": Architecture("CLIPModel", captioned_images, {
        "text_config": TEXT, "vision_config": IMAGES, "projection_dim": 32,
    }, pairs),
    "siglip": Architecture("SiglipModel", captioned_images, {
        "text_config": {**TEXT, "projection_size": 64}, "vision_config": IMAGES,
    }, pairs),
}  # fmt: skip
