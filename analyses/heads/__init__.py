"""Which heads retrieve, induce, copy and sink, and whether the model still answers without them."""
