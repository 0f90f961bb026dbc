"""DeepSeek-V2-Lite served with fewer experts per token, on two A800."""
