"""The MoE layer of one rank, its router, its lanes and its clock."""
