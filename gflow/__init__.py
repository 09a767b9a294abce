"""gflow: the gradient flow of adversarial training, followed to its limit and certified."""
