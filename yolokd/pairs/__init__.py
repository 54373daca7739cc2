"""A student and a teacher together: levels, classes, and which method suits them."""
