"""RDMD: Rakitin, Shchekotov, Vetrov 2024, Regularized Distribution Matching Distillation."""
