"""Pretrained networks: audio VAE, BigVGAN, CLIP and T5."""
