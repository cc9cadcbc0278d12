"""The data in the repository, its judges, and the models trained on it."""
