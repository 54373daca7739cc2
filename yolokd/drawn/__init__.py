"""The drawn data set and its pictures."""
