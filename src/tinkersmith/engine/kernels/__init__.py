"""One idea, several implementations: attention, element-wise work, products, output layer."""
