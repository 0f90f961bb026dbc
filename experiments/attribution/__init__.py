"""What imbalance is said to cost, against what-ifs that remove it."""
