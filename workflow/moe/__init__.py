"""Mixture-of-Experts routing: routers, experts, models, training, scoring and figures of two papers."""
