"""SDFT: Hur, Choi, Han, Lee, Kim 2024, Self-Distillation based Fine-Tuning."""
