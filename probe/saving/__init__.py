"""What is kept on disk: results, run folders, manifests, and the JSON that holds them."""
