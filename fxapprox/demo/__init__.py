"""A demonstration without downloads: a generated image data set, a pre-activation ResNet, a comparison."""
