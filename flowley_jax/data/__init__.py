"""Records of training examples: their schema, what made them, and how batches are drawn from them."""
