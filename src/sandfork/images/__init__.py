"""Images: root file systems for sandboxes, made or imported, kept by their content."""
