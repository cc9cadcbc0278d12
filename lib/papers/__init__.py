"""One room a paper; none imports another, all may use the baselines."""
