"""The loading room turns the name that a user typed into a transformers model and its tokenizer.

It knows short names, the hub, folders, safetensors and GGUF files. It knows nothing about attention.
"""
