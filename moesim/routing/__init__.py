"""Routing policies: what a deployment changes in the experts that a router chose.

Pure functions on arrays, used by simulator and executor alike; needs only numpy and numba.
"""
