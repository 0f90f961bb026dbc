"""What is asked: the problem, its rules, and the placement that answers it."""
