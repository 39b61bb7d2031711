"""xpyd: measure what splitting prefill from decode costs and what it saves, on your own cluster."""
