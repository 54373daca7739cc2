"""Settings shipped with yolokd: default.yaml and one ready recipe per method."""
