"""What a real run is told: its plan and its options."""
