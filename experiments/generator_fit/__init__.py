"""A generator fitted to half of a trace's requests, judged on the other half."""
