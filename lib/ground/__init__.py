"""Diffusion on tensors: schedules, networks, training; knows no paper."""
