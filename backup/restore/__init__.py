"""The way back: images, files and the definition of a domain."""
