"""What an output stores of one domain from one run: the manifest, checksums, and how one is found."""
