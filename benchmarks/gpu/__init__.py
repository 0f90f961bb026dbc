"""Our MoE layer on a GPU beside those of others, and against what the GPU can do at best."""
