"""Stable Diffusion: editing by text with DDS, its network, its speed."""
