"""LaDiffGAN (Liu et al., CVPR Workshops 2024): GANs with diffusion supervision in latent spaces."""
