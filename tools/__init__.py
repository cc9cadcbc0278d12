"""What the Makefile runs: the DAG, the book, and the care of results."""
