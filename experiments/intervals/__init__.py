"""How often a measurement lies in a 90 % interval that was made without it."""
