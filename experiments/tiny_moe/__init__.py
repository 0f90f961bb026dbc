"""A mixture-of-experts model of our own: a router that learned, small enough to train on a CPU."""
