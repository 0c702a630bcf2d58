"""A short list of numbers for each image, near for images of the same person or thing: section 4.7 of the paper."""
