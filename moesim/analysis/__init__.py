"""What timelines and counts say: metrics, critical path, attribution, stragglers, comparisons."""
