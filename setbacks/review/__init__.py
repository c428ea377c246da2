"""The labeling page, and what people should label first."""
