"""What a placement is worth: its cost, what none can go below, what it takes to get there."""
