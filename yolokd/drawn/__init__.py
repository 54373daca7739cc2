"""The drawn data set and the demonstration on it."""
