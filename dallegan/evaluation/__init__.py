"""How good a model is: metrics, feature networks, the judge, and what is measured with them."""
