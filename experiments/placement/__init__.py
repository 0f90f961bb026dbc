"""Placements by ``swap`` beside the published balancer and beside what none can go below."""
