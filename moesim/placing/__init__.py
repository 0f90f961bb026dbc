"""From a user's file of loads to a placement, judged and simulated: what ``moesim place`` does."""
