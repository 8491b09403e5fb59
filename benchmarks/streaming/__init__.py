"""Cost of decoding images in every epoch."""
