"""The labelling page, and what people should label first."""
