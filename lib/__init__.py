"""Companion library: five papers on moving diffusion models between domains, one module a paper."""
