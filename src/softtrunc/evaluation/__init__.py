"""Any figure of a run or of images, with its whole protocol."""
