"""Fig. 5: one training image changed against thirty test images at once."""
