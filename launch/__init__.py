"""Starting training on clouds and clusters."""
