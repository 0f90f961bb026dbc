"""Layers that are faster with a capacity on 8 H20: token drop and expanded drop."""
