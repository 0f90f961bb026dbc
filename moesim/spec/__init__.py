"""What the user writes: models, clusters, workloads, scenarios. Strict, frozen, errors with their line."""
