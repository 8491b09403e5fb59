"""What decoding images in every epoch costs."""
