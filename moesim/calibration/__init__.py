"""From measured seconds to a profile: what a machine's kernels and links reach, with how sure that is."""
