"""Pictures from a model: the sampler, previews and contact sheets."""
