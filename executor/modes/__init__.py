"""The dispatch modes: which ranks get a copy of a token, and the way it takes."""
