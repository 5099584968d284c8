"""This room writes and reads files: results, run folders, manifests, and the JSON that holds them."""
