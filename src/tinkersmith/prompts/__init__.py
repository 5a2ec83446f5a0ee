"""Chat templates and tokenizers of model folders, without torch: ground of both sides."""
