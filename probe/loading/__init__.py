"""Finding a model by name and reading its weights: short names, the hub, folders, safetensors and GGUF files."""
