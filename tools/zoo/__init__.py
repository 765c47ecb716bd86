"""Every model of the zoo in every setting, beside plain torch.compile: the same loss? gradients? memory? time?

python -m tools.zoo --out zoo.jsonl --table zoo.md
python -m tools.zoo --out zoo.jsonl --models swin,unet --lowering eager --bits 8,exact
"""
