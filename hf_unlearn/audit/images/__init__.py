"""Images that can be read off weights and gradients."""
