"""Networks and models: pure init/apply, Flax Linen at the leaves. Knows nothing of losses or samplers."""
