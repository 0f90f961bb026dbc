"""Dispatch modes: the way that copies of tokens take, and how they are counted. Arrays only."""
