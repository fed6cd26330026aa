"""`centermask validate`: what is wrong with a data set, in words and pictures. NumPy and OpenCV alone."""
