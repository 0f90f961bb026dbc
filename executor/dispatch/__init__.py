"""Moving tokens: routing, the dispatch modes, and the hops they are made of."""
