"""Floor 2: from expert loads to a placement. Arrays in, arrays out; knows no hardware model."""
