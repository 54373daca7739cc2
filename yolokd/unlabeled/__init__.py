"""Images without labels, beside labelled ones or alone."""
