"""Tests of yolokd."""
