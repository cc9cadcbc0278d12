"""Methods that the five papers compare with or build on."""
