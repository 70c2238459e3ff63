"""Shows what a fused model is made of and what its routers say."""
