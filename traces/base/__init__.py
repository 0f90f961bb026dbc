"""What all floors use: errors, compiled code, whole files, memory guards, columns in Parquet, YAML."""
