"""What the data plane answers through ASGI: models, health, metrics, and the plain route of the inference calls."""
