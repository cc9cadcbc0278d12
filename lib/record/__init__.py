"""A run: parameters in; numbers, claims, figures and provenance out."""
