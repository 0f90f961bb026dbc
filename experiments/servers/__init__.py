"""Published figures of whole servers against the steps that the simulator makes of them."""
