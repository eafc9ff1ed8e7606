"""Policy as data: what a sandbox sees and may ask of the kernel. Schemas are in the files' own comments."""
