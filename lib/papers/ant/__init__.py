"""ANT: Wang, Lin, Liu, Chen, Xu 2024, Adversarial Noise-Based Transfer Learning."""
