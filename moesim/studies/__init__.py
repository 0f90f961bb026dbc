"""What a command does, callable: what-ifs, placements, validations, conversions."""
