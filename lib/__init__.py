"""Companion library: six floors, arrows only downward; in `papers` one room a paper."""
