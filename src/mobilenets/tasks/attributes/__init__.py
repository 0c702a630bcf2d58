"""Yes or no to several questions about an image, such as a face: smiling, glasses."""
