"""PyTorch: everything that knows how a model is made. It knows nothing of HTTP."""
